"""The operations of the normal form: one row each, and nothing else is in a network in normal form.

A rule in :mod:`snn_lowlat.graph.operations` says how people write an operation; its row here says all that the rest of
the package asks about it. Whoever follows a network asks for an operation's row or kind, or for the modules and
functions of some kinds, and keeps no list of its own: an operation is added by a rule and a row.

The kind says most of it: what a layer of neurons may be given, how it is counted
(:mod:`snn_lowlat.evaluation.operations`), which way channels, signs and biases go through it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from snn_lowlat.neurons.max_pool import MAX_POOLS, PER_STEP_MAX_POOLS

__all__ = [
    "OPERATIONS",
    "Kind",
    "Operation",
    "by_dimensions",
    "functions",
    "keeps_signs",
    "module_of",
    "modules",
    "operation_of",
    "row",
]

Kind: TypeAlias = Literal[
    "activation",
    "ceiling",
    "convolution",
    "transposed convolution",
    "linear",
    "norm",
    "max pool",
    "per-step max pool",
    "average pool",
    "adaptive pool",
    "pad",
    "resize",
    "rearrangement",
    "concatenation",
    "mean",
    "sum",
    "factor",
    "rounding",
]
"""What an operation does.

``activation``
    A site; neurons take its place.
``ceiling``
    The clipping and rounding that may follow as a part of a site. Neurons have both in their thresholds.
``convolution``, ``transposed convolution``, ``linear``, ``norm``
    Layers with weights, each with a bias.
``max pool``, ``per-step max pool``
    Of the currents' running sums, or of each step's currents.
``average pool``, ``adaptive pool``, ``mean``
    Averages, within the channels or over any dimensions.
``pad``, ``resize``
    Elements around an image, or more or fewer of them in it.
``rearrangement``, ``concatenation``
    The same elements in another order or form, or a part of them; those of several nodes.
``sum``, ``factor``
    Of two nodes or with a constant; by a constant, of which -1 is one.
``rounding``
    Of the image, where a network is integer-only.
"""

Time: TypeAlias = Literal["wrapped", "safe", "known", "replaced"]
"""How SpikingJelly's ``adapt_step_mode_graph`` takes a window ``[T, N, ...]`` through an operation.

``wrapped``
    By a module of SpikingJelly's own in its place, which folds time into the batch.
``safe``
    As it is: it counts dimensions from the last, or treats all elements alike.
``known``
    By rules of SpikingJelly's.
``replaced``
    A module of this package, which knows of time, is in its place.

In snnTorch's networks no operation sees time: they take one step, or a window folded into the batch.
"""


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of the normal form.

    Attributes
    ----------
    target : type, callable or str
        The module's type, the function, or the tensor method's name. Its name is what files say.
    kind : str
        See :data:`Kind`.
    time : str
        See :data:`Time`.
    dimensions : int or None
        Of the images that it takes, without batch and channels; None for any number.
    integers : bool
        Whether it has a counterpart in integer-only networks, for some options at least.
    keeps_signs : callable
        Given the module, if it is one, it says whether no negative numbers come out where none go in.
    positive : tuple of str
        The options of a module that have to be at least 1.
    words : mapping of str to tuple of str
        The words that options may be.
    """

    target: Any
    kind: Kind
    time: Time
    dimensions: int | None = None
    integers: bool = True
    keeps_signs: Callable[[Any], bool] = lambda _: False
    positive: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called where networks are saved."""
        return self.target if isinstance(self.target, str) else str(self.target.__name__)

    @property
    def is_module(self) -> bool:
        """Whether it is a module; it is a function or method otherwise."""
        return isinstance(self.target, type)

    @property
    def has_weights(self) -> bool:
        """Whether it is a layer with weights, with a bias, and linear in what it reads."""
        return self.folds_norm or self.kind == "norm"

    @property
    def folds_norm(self) -> bool:
        """Whether a batch norm behind it goes into its weights."""
        return self.kind in ("convolution", "transposed convolution", "linear")

    @property
    def is_saved(self) -> bool:
        """Whether a saved network may have it: spiking networks have no ceilings."""
        return self.kind != "ceiling"


def _always(_: Any) -> bool:
    return True


def _each(targets: Sequence[type[nn.Module]], kind: Kind, time: Time, **facts: Any) -> tuple[Operation, ...]:
    """Make the rows of modules for images of 1, 2 and 3 dimensions."""
    return tuple(Operation(target, kind, time, dimensions, **facts) for dimensions, target in enumerate(targets, 1))


_CHANNELS = ("in_channels", "out_channels")
_WINDOW = ("kernel_size", "stride", "dilation")
_CONVOLUTION: dict[str, Any] = {
    "positive": (*_CHANNELS, *_WINDOW, "groups"),
    "words": {"padding": ("same", "valid"), "padding_mode": ("zeros", "reflect", "replicate", "circular")},
}
_TRANSPOSED: dict[str, Any] = {**_CONVOLUTION, "words": {"padding_mode": ("zeros",)}, "integers": False}
_POOL: dict[str, Any] = {"positive": _WINDOW, "keeps_signs": _always}
_RESIZING = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear")

OPERATIONS: tuple[Operation, ...] = (
    Operation(nn.ReLU, "activation", "replaced", keeps_signs=_always),
    Operation(torch.minimum, "ceiling", "replaced"),
    Operation(torch.floor, "ceiling", "replaced"),
    *_each((nn.Conv1d, nn.Conv2d, nn.Conv3d), "convolution", "wrapped", **_CONVOLUTION),
    *_each(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed convolution", "wrapped", **_TRANSPOSED
    ),
    Operation(nn.Linear, "linear", "wrapped", positive=("in_features", "out_features")),
    *_each(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), "norm", "wrapped", integers=False, positive=("num_features",)
    ),
    *_each(MAX_POOLS, "max pool", "replaced", **_POOL),
    *_each(PER_STEP_MAX_POOLS, "per-step max pool", "wrapped", **_POOL),
    *_each((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), "average pool", "wrapped", **_POOL),
    *_each((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), "adaptive pool", "wrapped", **_POOL),
    *_each(
        (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), "pad", "safe", keeps_signs=lambda pad: pad.value >= 0
    ),
    Operation(
        nn.Upsample,
        "resize",
        "wrapped",
        keeps_signs=lambda resize: resize.mode != "bicubic",
        words={"mode": _RESIZING},
    ),
    Operation(torch.flatten, "rearrangement", "known", keeps_signs=_always),
    Operation(torch.reshape, "rearrangement", "known", keeps_signs=_always),
    Operation(operator.getitem, "rearrangement", "known", keeps_signs=_always),
    Operation("permute", "rearrangement", "known", keeps_signs=_always),
    Operation(nn.PixelShuffle, "rearrangement", "safe", 2, keeps_signs=_always, positive=("upscale_factor",)),
    Operation(nn.PixelUnshuffle, "rearrangement", "safe", 2, keeps_signs=_always, positive=("downscale_factor",)),
    Operation(torch.cat, "concatenation", "known", keeps_signs=_always),
    Operation(torch.mean, "mean", "known", keeps_signs=_always),
    Operation(operator.add, "sum", "known", keeps_signs=_always),
    Operation(operator.sub, "sum", "known"),
    Operation(operator.mul, "factor", "known"),
    Operation(operator.neg, "factor", "known"),
    Operation(torch.round, "rounding", "safe"),
    Operation(torch.clamp, "rounding", "safe"),
)

_ROWS: dict[object, Operation] = {operation.target: operation for operation in OPERATIONS}


def modules(*kinds: Kind, **facts: object) -> tuple[Any, ...]:
    """Return the modules of some kinds, or of all, of which some facts are true.

    Parameters
    ----------
    *kinds : str
        See :data:`Kind`; all by default.
    **facts : object
        What attributes of :class:`Operation` are, as in ``has_weights=True``.
    """
    return tuple(operation.target for operation in _select(kinds, facts) if operation.is_module)


def functions(*kinds: Kind, **facts: object) -> tuple[Any, ...]:
    """Return the functions, and the names of the methods, of some kinds; the arguments are those of :func:`modules`."""
    return tuple(operation.target for operation in _select(kinds, facts) if not operation.is_module)


def by_dimensions(kind: Kind) -> dict[int, Any]:
    """Return the modules of a kind by the number of dimensions of the images that they take."""
    return {operation.dimensions or 0: operation.target for operation in _select((kind,), {}) if operation.is_module}


def row(target: object) -> Operation | None:
    """Return the row of a module, function or method's name; None for what is no operation of the normal form."""
    if isinstance(target, nn.Module):
        return next((_ROWS[kind] for kind in type(target).__mro__ if kind in _ROWS), None)
    return _ROWS.get(target)


def operation_of(graph: nn.Module, node: fx.Node) -> Operation | None:
    """Return the row of what a node computes; None for inputs, outputs and constants, and what has no row."""
    if node.op == "call_module":
        return row(module_of(graph, node))
    return row(node.target) if node.op in ("call_function", "call_method") else None


def module_of(graph: nn.Module, node: fx.Node) -> Any:
    """Return the module that a node calls; None for anything else."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def keeps_signs(graph: nn.Module, node: fx.Node) -> bool:
    """Say whether no negative numbers come out of a node where none go in."""
    operation = operation_of(graph, node)
    return operation is not None and operation.keeps_signs(module_of(graph, node))


def _select(kinds: Sequence[Kind], facts: Mapping[str, object]) -> list[Operation]:
    return [
        operation
        for operation in OPERATIONS
        if (not kinds or operation.kind in kinds)
        and all(getattr(operation, fact) == value for fact, value in facts.items())
    ]
