"""How each operation a network may use is written in the normal form.

One rule for each operation, whatever its spelling: ``F.relu(x)``, ``torch.relu(x)`` and ``x.relu_()`` all arrive at
:func:`relu`. A rule gets the builder, the operation's input as a node of the new graph and its other arguments as they
were written; it returns a node of the new graph, or raises :class:`Unsupported` with what the user can do about it.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from snn_lowlat.training.activations import CeilingReLU, QuantisedReLU, ValueRangeReLU

if TYPE_CHECKING:
    from snn_lowlat.graph.normal_form import Builder

__all__ = ["ACTIVATIONS", "Pieces", "Unsupported", "function_rule", "module_rule"]


class Unsupported(Exception):  # noqa: N818 - control flow between a rule and the builder, never seen by users
    """An operation has no place in a spiking network; the message is the advice for the user."""


class Pieces(list[fx.Node]):
    """What ``chunk`` and ``split`` return: several nodes."""


Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)
_FUNCTIONS: dict[str, Rule] = {}
_MODULES: dict[type[nn.Module], Rule] = {}

_NOT_RELU = "it is not a ReLU: replace it by nn.ReLU (or a ceiling activation) and fine-tune the network"
_GATE = "gates have no spiking counterpart here: remove the gate, or replace it by nn.ReLU, and fine-tune the network"
_SOFTMAX = "leave it out of the network: accuracy needs only the logits"
_STATISTICS = "it normalises by statistics of each input: use batch norm, which folds into the weights"
ACTIVATIONS = {
    **dict.fromkeys("silu swish gelu elu selu celu mish softplus tanh hardtanh hardswish".split(), _NOT_RELU),
    **dict.fromkeys("leaky_relu leakyrelu prelu rrelu glu logsigmoid softsign hardshrink".split(), _NOT_RELU),
    **dict.fromkeys("sigmoid hardsigmoid".split(), _GATE),
    **dict.fromkeys("softmax log_softmax logsoftmax".split(), _SOFTMAX),
    **dict.fromkeys("layer_norm layernorm group_norm groupnorm instance_norm instancenorm2d".split(), _STATISTICS),
}
"""Operations people do use, by lower-case name, and what to do about each."""


def function_rule(name: str) -> Rule | None:
    """Return the rule for a function or tensor method, by its name without a trailing underscore."""
    return _FUNCTIONS.get(name)


def module_rule(module: nn.Module) -> Rule | None:
    """Return the rule for a module, by its type or the nearest base type that has one."""
    return next((_MODULES[base] for base in type(module).__mro__ if base in _MODULES), None)


def _functions(*names: str) -> Callable[[AnyRule], AnyRule]:
    def register(rule: AnyRule) -> AnyRule:
        _FUNCTIONS.update(dict.fromkeys(names, rule))
        return rule

    return register


def _modules(*types: type[nn.Module]) -> Callable[[AnyRule], AnyRule]:
    def register(rule: AnyRule) -> AnyRule:
        _MODULES.update(dict.fromkeys(types, rule))
        return rule

    return register


# Activations: the places where neurons will be.


@_functions("relu")
def relu(build: Builder, x: fx.Node, inplace: bool = False) -> fx.Node:
    return build.site(x)


@_functions("relu6")
def relu6(build: Builder, x: fx.Node, inplace: bool = False) -> fx.Node:
    return build.site(x, ceiling=6.0)


@_functions("hardtanh")
def hardtanh(build: Builder, x: fx.Node, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> fx.Node:
    if min_val != 0:
        raise Unsupported("only Hardtanh(0, ceiling) is a clipped ReLU; this one passes negative values")
    return build.site(x, ceiling=max_val)


@_functions("threshold")
def threshold(build: Builder, x: fx.Node, threshold: float, value: float, inplace: bool = False) -> fx.Node:
    if threshold != 0 or value != 0:
        raise Unsupported("only threshold(x, 0, 0) is a ReLU")
    return build.site(x)


@_functions("clamp", "clip", "clamp_min", "clamp_max")
def clamp(build: Builder, x: fx.Node, min: Any = None, max: Any = None) -> fx.Node:
    if build.operation == "clamp_max":
        min, max = None, max if max is not None else min
    if isinstance(min, (int, float)) and min == 0:
        return build.site(x, ceiling=max)
    if min is None and max is not None and build.is_site(x):
        return build.ceiling(x, max)
    raise Unsupported("a clamp is a clipped ReLU only if its lower bound is 0: write x.clamp(min=0, max=ceiling)")


@_functions("minimum")
def minimum(build: Builder, x: fx.Node, other: Any) -> fx.Node:
    if build.is_site(x) and isinstance(other, Tensor):
        return build.ceiling(x, other)
    raise Unsupported("a minimum is understood only as the ceiling of a ReLU: torch.minimum(relu(x), ceiling)")


@_modules(nn.ReLU)
def relu_module(build: Builder, x: fx.Node, module: nn.ReLU) -> fx.Node:
    return build.site(x)


@_modules(nn.Hardtanh)
def hardtanh_module(build: Builder, x: fx.Node, module: nn.Hardtanh) -> fx.Node:
    return hardtanh(build, x, module.min_val, module.max_val)


@_modules(nn.Threshold)
def threshold_module(build: Builder, x: fx.Node, module: nn.Threshold) -> fx.Node:
    return threshold(build, x, module.threshold, module.value)


@_modules(CeilingReLU)
def ceiling_module(build: Builder, x: fx.Node, module: CeilingReLU) -> fx.Node:
    return build.site(x, ceiling=module.ceiling.detach())


@_modules(ValueRangeReLU)
def value_range_module(build: Builder, x: fx.Node, module: ValueRangeReLU) -> fx.Node:
    clipped = build.site(x, ceiling=module.ceiling)
    return build.rounded(clipped, module.timesteps) if module.rounds else clipped


@_modules(QuantisedReLU)
def quantised_module(build: Builder, x: fx.Node, module: QuantisedReLU) -> fx.Node:
    clipped = build.site(x, ceiling=module.ceiling.detach())
    return build.rounded(clipped, module.timesteps, module.shift) if module.rounds else clipped


# Layers with weights.


def _with_bias(module: Any, size: int) -> Any:
    """Give a layer the bias it lacks, so that a correction always finds a place."""
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros(size, dtype=module.weight.dtype, device=module.weight.device))
    return module


def _own_copy(module: nn.Module) -> nn.Module:
    """Copy a layer; a parametrised one, as by weight norm, becomes a plain one with the weights it has now."""
    if not parametrize.is_parametrized(module):
        return copy.deepcopy(module)
    # parametrize.remove_parametrizations() would change the class that the copy shares with the user's own module.
    kind: Any = parametrize.type_before_parametrizations(module)
    plain: nn.Module = kind.__new__(kind)
    plain.__dict__.update({key: copy.copy(value) for key, value in module.__dict__.items()})
    parametrizations = plain._modules.pop("parametrizations")
    plain = copy.deepcopy(plain)
    for name, _ in parametrizations.items():  # type: ignore[union-attr, operator]
        plain.register_parameter(name, nn.Parameter(getattr(module, name).detach().clone()))
    return plain


@_modules(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def convolution(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    return build.layer(_with_bias(_own_copy(module), module.out_channels), x)


@_modules(nn.Linear)
def linear(build: Builder, x: fx.Node, module: nn.Linear) -> fx.Node:
    return build.layer(_with_bias(_own_copy(module), module.out_features), x)


@_modules(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    if module.running_mean is None:
        raise Unsupported("this batch norm keeps no running statistics: train it with track_running_stats=True")
    module = _own_copy(module)
    if not module.affine:
        module.affine = True
        module.weight = nn.Parameter(torch.ones_like(module.running_var))
        module.bias = nn.Parameter(torch.zeros_like(module.running_mean))
    return build.layer(module, x)


@_functions("linear")
def functional_linear(build: Builder, x: fx.Node, weight: Tensor, bias: Tensor | None = None) -> fx.Node:
    module = nn.Linear(weight.shape[1], weight.shape[0])
    return build.layer(_filled(build, module, weight, bias), x)


@_functions("conv1d", "conv2d", "conv3d")
def functional_convolution(
    build: Builder,
    x: fx.Node,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> fx.Node:
    kind: Any = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.dim()]
    module = kind(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride,
        padding,
        dilation,
        groups,  # type: ignore[arg-type]
    )
    return build.layer(_filled(build, module, weight, bias), x)


def _filled(build: Builder, module: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    if not isinstance(weight, Tensor):
        raise Unsupported("its weight is computed from the input; a spiking layer needs constant weights")
    module.weight = nn.Parameter(weight.detach().clone())
    module.bias = nn.Parameter(weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().clone())
    return module  # type: ignore[no-any-return]


# Pooling and resizing.


@_modules(
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)
def stateless_module(build: Builder, x: fx.Node, module: nn.Module) -> fx.Node:
    return build.layer(copy.deepcopy(module), x)


@_modules(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def max_pool_module(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    if module.return_indices:
        raise Unsupported("max-pooling with return_indices=True can't be done on spikes: leave the indices out")
    return build.layer(copy.deepcopy(module), x)


def _register_pools() -> None:
    for dimensions in (1, 2, 3):
        for name in ("avg_pool", "max_pool", "adaptive_avg_pool"):
            kind = getattr(nn, "".join(part.capitalize() for part in name.split("_")) + f"{dimensions}d")
            _FUNCTIONS[f"{name}{dimensions}d"] = _functional(kind)


def _functional(kind: type[nn.Module]) -> Rule:
    def rule(build: Builder, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        module = kind(*args, **kwargs)
        return max_pool_module(build, x, module) if kind.__name__.startswith("MaxPool") else build.layer(module, x)

    return rule


_register_pools()


@_functions("interpolate")
def interpolate(
    build: Builder,
    x: fx.Node,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> fx.Node:
    if antialias:
        raise Unsupported("resizing with antialias=True is not supported: leave it out")
    return build.layer(nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor), x)


@_modules(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def upsample(build: Builder, x: fx.Node, module: nn.Upsample) -> fx.Node:
    # Plain ones, whatever class they were.
    options = module.size, module.scale_factor, module.mode, module.align_corners, module.recompute_scale_factor
    return build.layer(nn.Upsample(*options), x)


@_functions("mean")
def mean(build: Builder, x: fx.Node, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> fx.Node:
    dims = [dim] if isinstance(dim, int) else dim
    rank = len(build.shape_of(x))
    if dims is None or any(d % rank == 0 for d in dims):
        raise Unsupported("it averages over the batch: give the dimensions, without dimension 0")
    return build.function(torch.mean, x, sorted(d % rank for d in dims), keepdim)


@_functions("sum")
def sum_(build: Builder, x: fx.Node, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> fx.Node:
    averaged = mean(build, x, dim, keepdim)
    factor = 1
    for d in [dim] if isinstance(dim, int) else dim or ():
        factor *= build.shape_of(x)[d]
    return build.function(operator.mul, averaged, float(factor))


# Sums and constant factors.


@_functions("add", "iadd")
def add(build: Builder, x: Any, other: Any, alpha: float = 1) -> Any:
    if not isinstance(x, fx.Node):
        x, other = other, x
    if alpha != 1:
        other = mul(build, other, alpha) if isinstance(other, fx.Node) else other * alpha
    if isinstance(other, (int, float)) and other == 0:
        return x
    return build.function(operator.add, x, build.operand(x, other))


@_functions("sub", "isub", "subtract")
def sub(build: Builder, x: Any, other: Any, alpha: float = 1) -> Any:
    if not isinstance(x, fx.Node):
        return add(build, neg(build, other), x)
    if alpha != 1:
        other = mul(build, other, alpha) if isinstance(other, fx.Node) else other * alpha
    return build.function(operator.sub, x, build.operand(x, other))


@_functions("neg", "negative")
def neg(build: Builder, x: fx.Node) -> fx.Node:
    return build.function(operator.neg, x)


@_functions("mul", "imul", "multiply")
def mul(build: Builder, x: Any, other: Any) -> fx.Node:
    if not isinstance(x, fx.Node):
        x, other = other, x
    if isinstance(other, fx.Node):
        raise Unsupported(
            "it multiplies two activations (a gate); spiking layers only add: remove the gate and fine-tune"
        )
    return build.function(operator.mul, x, build.operand(x, other))


@_functions("div", "truediv", "itruediv", "divide", "true_divide")
def div(build: Builder, x: Any, other: Any) -> fx.Node:
    if isinstance(other, fx.Node):
        raise Unsupported("it divides by an activation; spiking layers only add: remove the division and fine-tune")
    return mul(build, x, 1.0 / other)


@_functions("zeros_like")
def zeros_like(build: Builder, x: fx.Node, **kwargs: Any) -> fx.Node:
    return build.function(operator.mul, x, 0.0)


# Shapes. Sizes are those of the example input; the batch may have any size.


@_functions("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "expand")
def reshape(build: Builder, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    before, after = build.shape_of(x), build.result_shape
    if before[0] != after[0] or before.numel() != after.numel():
        raise Unsupported("it mixes or repeats the images of a batch: keep dimension 0 as it is")
    if before == after:
        return x
    if len(after) == 2:
        return build.function(torch.flatten, x, 1)
    if len(after) == 1:
        # Hosts refuse to reshape [N, 1] to [N]: to them it looks as if the batch went.
        rows = x if len(before) == 2 else build.function(torch.flatten, x, 1, shape=torch.Size((before[0], 1)))
        return build.function(operator.getitem, rows, (slice(None), 0))
    return build.function(torch.reshape, x, (-1, *after[1:]))


@_modules(nn.Flatten, nn.Unflatten)
def reshape_module(build: Builder, x: fx.Node, module: nn.Module) -> fx.Node:
    return reshape(build, x)


@_functions("permute", "transpose", "swapaxes", "swapdims")
def permute(build: Builder, x: fx.Node, *dims: Any) -> fx.Node:
    rank = len(build.shape_of(x))
    dims = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
    order = [d % rank for d in dims]
    if build.operation != "permute":
        first, second = order
        order = list(range(rank))
        order[first], order[second] = second, first
    if order[0] != 0:
        raise Unsupported("it moves the batch dimension: keep dimension 0 where it is")
    return build.method("permute", x, *order)


@_functions("cat", "concat", "concatenate")
def cat(build: Builder, tensors: Any, dim: int = 0) -> fx.Node:
    nodes = list(tensors)
    if not all(isinstance(node, fx.Node) for node in nodes):
        raise Unsupported("it joins activations with a constant tensor: pad with F.pad instead")
    dim %= len(build.shape_of(nodes[0]))
    if dim == 0:
        raise Unsupported("it joins along the batch: use another dimension")
    return build.function(torch.cat, nodes, dim)


@_functions("chunk", "split", "tensor_split")
def split(build: Builder, x: fx.Node, sizes: Any, dim: int = 0) -> Pieces:
    rank = len(build.shape_of(x))
    if dim % rank == 0:
        raise Unsupported("it splits the batch: use another dimension")
    pieces, start = Pieces(), 0
    for value in build.result:
        stop = start + value.shape[dim]
        index = tuple([slice(None)] * (dim % rank) + [slice(start, stop)])
        pieces.append(build.function(operator.getitem, x, index, shape=value.shape))
        start = stop
    return pieces


@_functions("getitem")
def getitem(build: Builder, x: Any, index: Any) -> Any:
    if isinstance(x, Pieces):
        return x[index]
    first = index[0] if isinstance(index, tuple) and index else index
    if not (first is Ellipsis or first == slice(None)) or build.result_shape[0] != build.shape_of(x)[0]:
        raise Unsupported("it picks images out of the batch: index the other dimensions only, as in x[:, ...]")
    if any(isinstance(part, (Tensor, fx.Node, list)) for part in (index if isinstance(index, tuple) else (index,))):
        raise Unsupported("it indexes with a tensor or list: use slices")
    return x if build.result_shape == build.shape_of(x) else build.function(operator.getitem, x, index)


@_functions("pad")
def pad(build: Builder, x: fx.Node, pad: Any, mode: str = "constant", value: float | None = None) -> fx.Node:
    if mode != "constant":
        raise Unsupported(
            f"padding mode {mode!r} is not supported: use constant padding, or the layer's own padding_mode"
        )
    if len(pad) >= 2 * len(build.shape_of(x)):
        raise Unsupported("it pads the batch: pad the other dimensions only")
    kind: Any = {2: nn.ConstantPad1d, 4: nn.ConstantPad2d, 6: nn.ConstantPad3d}.get(len(pad))
    if kind is None:
        raise Unsupported("it pads more than three dimensions")
    return build.layer(kind(tuple(pad), value or 0.0), x)


@_modules(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
def pad_module(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    return pad(build, x, module.padding, "constant", module.value)


# What does nothing at inference.


@_modules(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
def identity_module(build: Builder, x: fx.Node, module: nn.Module) -> fx.Node:
    return x


@_functions(
    *[
        "contiguous",
        "clone",
        "detach",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_dropout",
        "stochastic_depth",
    ],
    *["to", "float", "double", "half", "bfloat16", "type_as", "cpu", "cuda", "requires_grad"],
)
def identity(build: Builder, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    return x
