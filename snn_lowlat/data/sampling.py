"""Which pictures go where: seeded splits that keep the classes in proportion."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["balanced_order", "stratified_split"]


def balanced_order(labels: Tensor, seed: int) -> Tensor:
    """Order the samples at random so that every prefix holds the classes as evenly as they last.

    Parameters
    ----------
    labels : Tensor
        int64 of shape ``[N]``.
    seed : int
        The same seed gives the same order.

    Returns
    -------
    Tensor
        A permutation of ``0 .. N-1``: one sample of each class, then a second of each, and so on.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty_like(shuffled)
    for label in sorted(set(labels.tolist())):
        members = labels[shuffled] == label
        rank[members] = torch.arange(int(members.sum()))
    return shuffled[rank.argsort(stable=True)]


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out a fraction of every class.

    Parameters
    ----------
    labels : Tensor
        int64 of shape ``[N]``.
    fraction : float
        Share of each class to hold out, in ``[0, 1)``; the number is rounded, and one sample of each class is
        always kept.
    seed : int
        The same seed gives the same split.

    Returns
    -------
    tuple of Tensor
        The sorted indices of the samples kept and of those held out.

    Raises
    ------
    ValueError
        If the fraction is not in ``[0, 1)``.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the fraction to hold out must be in [0, 1), not {fraction}.")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().squeeze(1)
        number = min(round(fraction * len(members)), len(members) - 1)
        held_out[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)
