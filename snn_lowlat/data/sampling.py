"""Which pictures go where: seeded splits that keep the classes in proportion."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, distributed
from torch.utils.data import Dataset, DistributedSampler

from snn_lowlat import checks

__all__ = ["EpochSampler", "balanced_order", "stratified_split"]


class EpochSampler(DistributedSampler[int]):
    """The order of training samples, shuffled anew in every epoch by the seed and the epoch alone.

    A training that goes on from a checkpoint therefore sees what it would have seen without an interruption. In epoch
    ``e`` sample ``i`` of ``M`` has the index ``e * M + i``, so that what is random about a sample can depend on the
    epoch, in whichever process it is prepared. Where several processes train, each gets its share.

    Parameters
    ----------
    dataset : Dataset
        Has a length, and takes indices of later epochs.
    seed : int
        The same seed gives the same orders.
    epoch : int
        The first epoch; each further pass is the next, unless ``set_epoch`` says otherwise, as Lightning does.
    """

    def __init__(self, dataset: Dataset[object], seed: int, epoch: int = 0) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        replicas, rank = (distributed.get_world_size(), distributed.get_rank()) if together else (1, 0)
        super().__init__(dataset, num_replicas=replicas, rank=rank, shuffle=True, seed=seed)
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        offset = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        indices = [offset + index for index in super().__iter__()]
        self.epoch += 1
        return iter(indices)


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
    fraction = checks.share("the fraction to hold out", fraction)
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().squeeze(1)
        number = min(round(fraction * len(members)), len(members) - 1)
        held_out[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)
