"""What a network's outputs say about classes, and whether labels speak of the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_alike", "class_indices", "class_logits", "classes_of", "predictions"]


def classes_of(shape: Sequence[int], instead: str = "") -> int:
    """Return how many classes outputs of one shape tell apart.

    Parameters
    ----------
    shape : sequence of int
        Of a batch's outputs: ``[N, classes]``, dimensions of size 1 aside; ``[N]`` or ``[N, 1]`` for one logit, which
        is positive for class 1 and tells two classes apart.
    instead : str
        A sentence for who has other outputs.

    Raises
    ------
    ValueError
        If the outputs are no class vector, as the images of an autoencoder.
    """
    sizes = [size for size in shape[1:] if size != 1]
    if len(sizes) > 1 or 0 in sizes:
        expected = "one value for each class, [N, classes], or one logit, [N] or [N, 1]"
        raise ValueError(f"the network's outputs are of shape {list(shape)}, and classes need {expected}.{instead}")
    return prod(sizes) if sizes else 2


def predictions(outputs: Tensor) -> Tensor:
    """Return the class of each image, ``[N]``, from outputs as :func:`classes_of` takes them.

    Raises
    ------
    ValueError
        If the outputs are no class vector, or NaN.
    """
    classes_of(outputs.shape)
    scores = outputs.flatten(1) if outputs.dim() > 1 else outputs[:, None]
    broken = int(scores.isnan().any(1).sum())
    if broken:
        raise ValueError(
            f"the network's outputs are NaN for {broken} of {len(scores)} images: check images and weights."
        )
    return scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0).long()


def class_logits(outputs: Tensor, classes: int) -> Tensor:
    """Return logits as losses take them, a row for each answer: ``[N, classes]``, or one for each place of each image.

    One logit :math:`z` becomes two, 0 and :math:`z`, whose cross-entropy is the binary one of :math:`z`.

    Parameters
    ----------
    outputs : Tensor
        As :func:`classes_of` takes them, or dense, ``[N, classes, ...]``.
    classes : int
        How many classes there are; for one logit 1 or 2.

    Raises
    ------
    ValueError
        If the outputs tell another number of classes apart, or none; the message says which shape they have.
    """
    shape, two = outputs.shape, max(classes, 2)
    if sum(size != 1 for size in shape[1:]) <= 1 and classes_of(shape) == two:
        rows = outputs.reshape(len(outputs), -1)
    elif len(shape) > 2 and (shape[1] == two or (shape[1] == 1 and two == 2)):
        rows = outputs.movedim(1, -1).reshape(-1, shape[1])
    else:
        raise ValueError(
            f"num_classes is {classes}, but the network's outputs are of shape {list(shape)}: there must be one value "
            "for each class, [N, num_classes] or [N, num_classes, ...], or one logit for two classes."
        )
    return torch.cat([torch.zeros_like(rows), rows], 1) if rows.shape[1] == 1 else rows


def check_alike(ann: Any, found: Sequence[int]) -> None:
    """Check that the original network's outputs have the shape of the spiking network's, ``[N, ...]``.

    Raises
    ------
    ValueError
        If they have another one, or are no tensor; the message says what they are.
    """
    if not isinstance(ann, Tensor):
        raise ValueError(f"the original network returns a {type(ann).__name__}, not one tensor of outputs.")
    if tuple(ann.shape) != tuple(found):
        raise ValueError(
            f"the original network's outputs are of shape {list(ann.shape)}, the spiking network's of {list(found)}: "
            "give the network that it was converted from."
        )


def class_indices(labels: object, classes: int | None = None) -> Tensor:
    """Return labels as class indices ``[N]``, int64.

    Parameters
    ----------
    labels : object
        Whole numbers ``[N]`` or ``[N, 1]``, one-hot rows ``[N, classes]``, or, for two classes, truth values, which may
        be the floats 0 and 1.
    classes : int, optional
        How many classes there are; without, labels are not compared with it.

    Raises
    ------
    ValueError
        If they are anything else, or a label is no class; the message says what was found.
    """
    try:
        values = torch.as_tensor(labels).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels must be a tensor of class indices [N], not a {type(labels).__name__}.") from error
    if values.dim() > 2 and values.numel() == len(values):
        values = values.reshape(len(values))
    if values.dim() == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dim() == 2 and classes in (None, values.shape[1]) and _is_one_hot(values):
        return values.int().argmax(1)
    kind = f"{str(values.dtype).removeprefix('torch.')} of shape {list(values.shape)}"
    if values.dim() != 1 or values.is_complex():
        raise ValueError(f"labels must be class indices of shape [N], or one-hot rows [N, classes]; not {kind}.")
    truth = values.dtype == torch.bool or (values.is_floating_point() and bool(((values == 0) | (values == 1)).all()))
    if truth and classes != 2 and (values.is_floating_point() or classes is not None):
        told = "" if classes is None else f", and the network tells {classes} classes apart"
        raise ValueError(f"labels must be class indices, whole numbers; these are {kind}{told}.")
    if values.is_floating_point() and not truth:
        raise ValueError(f"labels must be class indices, whole numbers; these are {kind}.")
    values = values.long()
    if values.numel():
        _check_range(int(values.min()), int(values.max()), classes)
    return values


def _is_one_hot(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all())


def _check_range(least: int, largest: int, classes: int | None) -> None:
    if least >= 0 and (classes is None or largest < classes):
        return
    told = (
        "classes are counted from 0"
        if classes is None
        else f"the network tells {classes} classes apart, from 0 to {classes - 1}"
    )
    if classes is not None and largest == classes and least >= 1:
        advice = "They seem to be counted from 1: subtract 1."
    elif least < 0:
        advice = "Leave images without a class out."
    else:
        advice = "Are they of another data set than the network's?"
    raise ValueError(f"labels range from {least} to {largest}, but {told}. {advice}")
