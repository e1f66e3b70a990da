"""How each operation a network may use is written in the normal form.

One rule for each operation, whatever its spelling: ``F.relu(x)``, ``torch.relu(x)`` and ``x.relu_()`` all arrive at
:func:`relu`. A rule gets the builder, the operation's input as a node of the new graph and its other arguments as they
were written; it returns a node of the new graph, or raises :class:`Unsupported` with what the user can do about it.
What a rule builds has a row in :mod:`snn_lowlat.graph.vocabulary`, which says the rest.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, fx, nn

from snn_lowlat.activations import CeilingReLU, QuantisedReLU, ValueRangeReLU
from snn_lowlat.graph.vocabulary import by_dimensions, modules

if TYPE_CHECKING:
    from snn_lowlat.graph.normal_form import Builder

__all__ = [
    "ACTIVATIONS",
    "OF_COMPARISONS",
    "Comparison",
    "Pieces",
    "Unsupported",
    "arranged",
    "function_rule",
    "is_frozen_batch_norm",
    "module_rule",
    "reads_comparisons",
]


class Unsupported(Exception):  # noqa: N818 - control flow between a rule and the builder, never seen by users
    """An operation has no place in a spiking network; the message is the advice for the user."""


class Pieces(list[Any]):
    """What ``chunk`` and ``split`` return: several nodes."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Where a value is positive, or negative: ``x > 0`` or ``x < 0``, from which people build a ReLU."""

    x: fx.Node
    positive: bool


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
    """Return the rule for a module: that of its type, or of the nearest base type whose ``forward`` it has."""
    if is_frozen_batch_norm(module):
        return frozen_batch_norm
    base = _torch_type(module)
    return None if base is None else _MODULES[base]


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Say whether it is a batch norm with four buffers, as torchvision and those who copied it have for detectors."""
    return type(module).__name__ == "FrozenBatchNorm2d" and hasattr(module, "running_var")


def arranged(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put arguments as rules expect them: the input first, others by torch's names and not NumPy's, without ``out``."""
    named = {_SYNONYMS.get(name, name): value for name, value in kwargs.items() if name != "out"}
    if "input" in named and "condition" not in named:
        args = (named.pop("input"), *args)
    return args, named


_SYNONYMS = {"x": "input", "self": "input", "axis": "dim", "keepdims": "keepdim", "x2": "other"}


def _torch_type(module: nn.Module) -> type[nn.Module] | None:
    kind = type(module)
    return next((base for base in kind.__mro__ if base in _MODULES and kind.forward is base.forward), None)


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
    if not (isinstance(x, fx.Node) and max is not None) and not _is_zero(min):
        raise Unsupported("a clamp is a clipped ReLU only if its lower bound is 0: write x.clamp(min=0, max=ceiling)")
    if isinstance(max, fx.Node):
        raise Unsupported("its ceiling is computed from the input: it must be a number or a constant tensor")
    if _is_zero(min) or (min is None and is_nonnegative(build, x)):
        return build.site(x, ceiling=max)
    raise Unsupported("a clamp is a clipped ReLU only if its lower bound is 0: write x.clamp(min=0, max=ceiling)")


@_functions("minimum", "fmin")
def minimum(build: Builder, x: Any, other: Any) -> fx.Node:
    if not isinstance(x, fx.Node):
        x, other = other, x
    if isinstance(other, (int, float, Tensor)) and is_nonnegative(build, x):
        return build.site(x, ceiling=other)
    raise Unsupported("a minimum is understood only as the ceiling of a ReLU: torch.minimum(relu(x), ceiling)")


@_functions("maximum", "fmax")
def maximum(build: Builder, x: Any, other: Any) -> fx.Node:
    if not isinstance(x, fx.Node) or _is_zero(x):
        x, other = other, x
    if _is_zero(other):
        return build.site(x)
    raise Unsupported("a maximum is understood only as a ReLU: torch.maximum(x, torch.zeros(()))")


@_functions("max")
def max_(build: Builder, x: Any, other: Any = None, keepdim: bool = False, dim: int | None = None) -> Any:
    if isinstance(other, (fx.Node, Tensor)):
        return maximum(build, x, other)
    dims = other if dim is None else dim
    if not isinstance(dims, int):
        raise Unsupported("it takes the maximum over the whole batch: give the dimension, as in x.amax((2, 3))")
    return Pieces([amax(build, x, dims, keepdim)])


@_functions("min")
def min_(build: Builder, x: Any, other: Any = None, **kwargs: Any) -> fx.Node:
    if isinstance(other, (fx.Node, Tensor)):
        return minimum(build, x, other)
    raise Unsupported("the smallest of several activations can't be computed on spikes: use max- or average pooling")


@_functions("gt", "ge", "greater", "greater_equal", "lt", "le", "less", "less_equal")
def compare(build: Builder, x: Any, other: Any) -> Comparison:
    more = build.operation in ("gt", "ge", "greater", "greater_equal")
    if not isinstance(x, fx.Node):
        x, other, more = other, x, not more
    if not _is_zero(other):
        raise Unsupported("a comparison is understood only as a ReLU: torch.where(x > 0, x, 0)")
    return Comparison(x, more)


OF_COMPARISONS = "a comparison of activations is understood only as a ReLU: torch.where(x > 0, x, 0) or x * (x > 0)"


def reads_comparisons(rule: Rule) -> bool:
    """Say whether a rule knows what to do with a comparison; every other operation on one is an obstacle."""
    return rule in (where, masked_fill, mul, identity)


@_functions("where")
def where(build: Builder, condition: Any, input: Any, other: Any) -> fx.Node:
    if not isinstance(condition, Comparison):  # as a method, x.where(x > 0, 0)
        condition, input = input, condition
    kept, dropped = (input, other) if isinstance(condition, Comparison) and condition.positive else (other, input)
    if isinstance(condition, Comparison) and kept is condition.x and _is_zero(dropped):
        return build.site(condition.x)
    raise Unsupported("a choice is understood only as a ReLU: torch.where(x > 0, x, 0)")


@_functions("masked_fill")
def masked_fill(build: Builder, x: fx.Node, mask: Any, value: Any) -> fx.Node:
    if isinstance(mask, Comparison) and not mask.positive and mask.x is x and _is_zero(value):
        return build.site(x)
    raise Unsupported("it overwrites values where a mask says so: multiply by a constant mask instead")


def _is_zero(value: Any) -> bool:
    """Say whether an argument is zero: a number, a constant tensor, or ``zeros_like`` of something."""
    if isinstance(value, fx.Node):
        return bool(value.target is operator.mul and value.args[1] == 0.0)
    if isinstance(value, Tensor):
        return not bool(value.count_nonzero())
    return isinstance(value, (int, float)) and value == 0


def is_nonnegative(build: Builder, node: Any) -> bool:
    """Say whether a node of the new graph is known to have no negative values: activations, and linear maps of them."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (int, float)) or (isinstance(node, fx.Node) and node.op == "get_attr"):
            if not bool((torch.as_tensor(build.constant(node)) >= 0).all()):
                return False
        elif not isinstance(node, fx.Node) or not (build.is_site(node) or build.clipped_site(node) is not None):
            passes = isinstance(node, fx.Node) and (
                node.target in (operator.mul, torch.floor) or build.keeps_signs(node)
            )
            if not passes:
                return False
            waiting += node.args if node.target in (operator.add, operator.mul) else node.all_input_nodes
    return True


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


def _plain(module: Any) -> Any:
    """Make torch's own module with a module's options and the weights it has now, be they computed or parametrised."""
    kind = next(base for base in type(module).__mro__ if base in _MODULES)
    options = {name: getattr(module, name) for name in inspect.signature(kind).parameters if name not in _NO_OPTIONS}
    if "bias" in options:
        options["bias"] = module.bias is not None
    with torch.device("meta"):
        plain = kind(**options)
    for name, placeholder in (*plain.named_parameters(), *plain.named_buffers()):
        value = getattr(module, name).detach().clone()
        if isinstance(placeholder, nn.Parameter):
            trained = getattr(module._parameters.get(name), "requires_grad", True)
            plain.register_parameter(name, nn.Parameter(value, requires_grad=trained))
        else:
            plain.register_buffer(name, value)
    return plain


_NO_OPTIONS = ("device", "dtype", "inplace", "process_group")


def _with_bias(module: Any, size: int) -> Any:
    """Give a layer the bias it lacks, so that a correction always finds a place."""
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros(size, dtype=module.weight.dtype, device=module.weight.device))
    return module


@_modules(*modules("convolution", "transposed convolution"))
def convolution(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    return build.layer(_with_bias(_plain(module), module.out_channels), x)


@_modules(nn.Linear)
def linear(build: Builder, x: fx.Node, module: nn.Linear) -> fx.Node:
    return build.layer(_with_bias(_plain(module), module.out_features), x)


@_modules(*modules("norm"), nn.SyncBatchNorm)
def batch_norm(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    if module.training:
        raise Unsupported("this batch norm stays in training mode when eval() is called: let it follow")
    return functional_batch_norm(
        build, x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps
    )


def frozen_batch_norm(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    eps = getattr(module, "eps", 1e-5)
    return functional_batch_norm(build, x, module.running_mean, module.running_var, module.weight, module.bias, eps=eps)


@_functions("batch_norm")
def functional_batch_norm(
    build: Builder,
    x: fx.Node,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> fx.Node:
    if running_mean is None or running_var is None:
        raise Unsupported("this batch norm keeps no running statistics: train it with track_running_stats=True")
    if training:
        raise Unsupported("this batch norm uses the statistics of the batch: pass training=self.training")
    _check_constant(running_mean, running_var, weight, bias)
    kind = by_dimensions("norm")[max(len(build.shape_of(x)) - 2, 1)]
    with torch.device("meta"):
        module = kind(len(running_mean), eps)
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        module.register_buffer(name, value.detach().clone())
    module.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=running_mean.device))
    for name, given, default in (("weight", weight, torch.ones_like), ("bias", bias, torch.zeros_like)):
        value = default(running_mean) if given is None else given.detach().clone()
        trained = getattr(given, "requires_grad", True) or given is None
        module.register_parameter(name, nn.Parameter(value, requires_grad=trained))
    return build.layer(module, x)


@_functions("linear")
def functional_linear(build: Builder, x: fx.Node, weight: Tensor, bias: Tensor | None = None) -> fx.Node:
    _check_constant(weight, bias)
    with torch.device("meta"):
        module = nn.Linear(weight.shape[1], weight.shape[0])
    return build.layer(_filled(module, weight, bias), x)


@_functions("matmul", "mm", "imatmul")
def matmul(build: Builder, x: Any, other: Any = None, mat2: Any = None) -> fx.Node:
    other = mat2 if other is None else other
    if isinstance(x, Tensor) and x.dim() == 2 and isinstance(other, fx.Node) and len(build.shape_of(other)) == 3:
        return functional_convolution(build, other, x[:, :, None])
    if isinstance(x, Tensor) or (isinstance(other, Tensor) and other.dim() != 2):
        raise Unsupported("a product with a constant is understood as a linear layer: x @ weight, with a matrix weight")
    return _product(build, x, other.t() if isinstance(other, Tensor) else other)


def _product(build: Builder, x: Any, weight: Any) -> fx.Node:
    product = functional_linear(build, x, weight)
    product.meta["product"] = build.module(product)
    return product


@_functions("addmm")
def addmm(build: Builder, bias: Any, mat1: fx.Node, mat2: Any, beta: float = 1, alpha: float = 1) -> fx.Node:
    if not isinstance(bias, Tensor) or not isinstance(mat2, Tensor) or bias.dim() > 1:
        raise Unsupported("it is understood as a linear layer only: torch.addmm(bias, x, weight)")
    return functional_linear(build, mat1, alpha * mat2.t(), (beta * bias).expand(mat2.shape[1]))


@_functions("einsum")
def einsum(build: Builder, equation: str, *operands: Any) -> fx.Node:
    first, second = operands if len(operands) == 2 else operands[0]
    reads, _, result = equation.replace(" ", "").partition("->")
    left, _, right = reads.partition(",")
    if isinstance(first, Tensor):
        first, second, left, right = second, first, right, left
    if isinstance(first, fx.Node) and isinstance(second, Tensor) and len(right) == 2:
        for weight, (out, along) in ((second, (right[0], right[1])), (second.t(), (right[1], right[0]))):
            if left.endswith(along) and left.count(along) == 1 and result == left[:-1] + out and out not in left:
                return _product(build, first, weight)
    raise Unsupported("it is understood as a linear layer only: torch.einsum('ni,oi->no', x, weight)")


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
    _check_constant(weight, bias)
    kind = by_dimensions("convolution")[weight.dim() - 2]
    sizes = weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:])
    with torch.device("meta"):
        module = kind(*sizes, stride, padding, dilation, groups)
    return build.layer(_filled(module, weight, bias), x)


@_functions("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def functional_transposed_convolution(
    build: Builder,
    x: fx.Node,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> fx.Node:
    _check_constant(weight, bias)
    kind = by_dimensions("transposed convolution")[weight.dim() - 2]
    sizes = weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:])
    with torch.device("meta"):
        module = kind(*sizes, stride, padding, output_padding, groups, dilation=dilation)
    return build.layer(_filled(module, weight, bias, module.out_channels), x)


def _filled(module: Any, weight: Tensor, bias: Tensor | None, size: int | None = None) -> nn.Module:
    size = weight.shape[0] if size is None else size
    module.weight = nn.Parameter(weight.detach().clone())
    module.bias = nn.Parameter(weight.new_zeros(size) if bias is None else bias.detach().clone())
    return module  # type: ignore[no-any-return]


def _check_constant(*weights: Any) -> None:
    if not all(weight is None or isinstance(weight, Tensor) for weight in weights):
        raise Unsupported("its weight is computed from the input; a spiking layer needs constant weights")


# Pooling and resizing.

_MAX_POOLS = by_dimensions("max pool")
_ADAPTIVE_MAX_POOLS = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


@_modules(*modules("average pool", "adaptive pool"))
def stateless_module(build: Builder, x: fx.Node, module: nn.Module) -> fx.Node:
    return build.layer(_plain(module), x)


@_modules(*modules("max pool"))
def max_pool_module(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    if module.return_indices:
        raise Unsupported("max-pooling with return_indices=True can't be done on spikes: leave the indices out")
    return build.layer(_plain(module), x)


@_modules(*_ADAPTIVE_MAX_POOLS)
def adaptive_max_pool_module(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    if module.return_indices:
        raise Unsupported("max-pooling with return_indices=True can't be done on spikes: leave the indices out")
    dimensions = next(number for number, kind in enumerate(_ADAPTIVE_MAX_POOLS, 1) if isinstance(module, kind))
    sizes = build.shape_of(x)[-dimensions:]
    wanted = module.output_size if isinstance(module.output_size, (tuple, list)) else (module.output_size,) * dimensions
    after = [before if size is None else size for size, before in zip(wanted, sizes, strict=True)]
    if any(before % size for size, before in zip(after, sizes, strict=True)):
        raise Unsupported(
            f"its windows are of different sizes ({tuple(sizes)} to {tuple(after)}): choose an output size that "
            "divides the input's, or average pooling"
        )
    kernel = tuple(before // size for size, before in zip(after, sizes, strict=True))
    return build.layer(_MAX_POOLS[dimensions](kernel), x)


@_functions("amax")
def amax(build: Builder, x: fx.Node, dim: Any = (), keepdim: bool = False) -> fx.Node:
    shape = build.shape_of(x)
    dims = {d % len(shape) for d in ((dim,) if isinstance(dim, int) else tuple(dim))}
    if len(shape) - 2 not in _MAX_POOLS or not dims or min(dims) < 2:
        raise Unsupported("a maximum is understood as pooling only, over dimensions 2 and up, as in x.amax((2, 3))")
    kernel = tuple(shape[d] if d in dims else 1 for d in range(2, len(shape)))
    sizes = torch.Size(1 if d in dims else size for d, size in enumerate(shape))
    pooled = build.layer(_MAX_POOLS[len(shape) - 2](kernel), x, sizes)
    if keepdim:
        return pooled
    kept = torch.Size(size for d, size in enumerate(shape) if d not in dims)
    if len(kept) == 2:
        return build.function(torch.flatten, pooled, 1, shape=kept)
    return build.function(torch.reshape, pooled, (-1, *kept[1:]), shape=kept)


def _register_pools() -> None:
    for dimensions in (1, 2, 3):
        for name in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool"):
            kind = getattr(nn, "".join(part.capitalize() for part in name.split("_")) + f"{dimensions}d")
            _FUNCTIONS[f"{name}{dimensions}d"] = _functional(kind)


def _functional(kind: type[nn.Module]) -> Rule:
    def rule(build: Builder, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        made: fx.Node = _MODULES[kind](build, x, module=kind(*args, **kwargs))
        return made

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
    if isinstance(other, Tensor) and "product" in x.meta and build.reads_alone():
        # The other half of a linear layer that is written as x @ weight + bias.
        layer, bias = x.meta["product"], other.detach().flatten()
        if len(bias) == layer.out_features and other.shape[-1] == len(bias):
            layer.bias = nn.Parameter(layer.bias + bias)
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
    if not isinstance(x, fx.Node):
        raise Unsupported(OF_COMPARISONS)
    if isinstance(other, Comparison):
        if other.positive and other.x is x:
            return build.site(x)
        raise Unsupported(OF_COMPARISONS)
    if isinstance(other, fx.Node):
        raise Unsupported(
            "it multiplies two activations (a gate); spiking layers only add: remove the gate and fine-tune"
        )
    return build.function(operator.mul, x, build.operand(x, other))


@_functions("rsub")
def rsub(build: Builder, x: Any, other: Any, alpha: float = 1) -> Any:
    return sub(build, other, x, alpha)


@_functions("div", "truediv", "itruediv", "divide", "true_divide")
def div(build: Builder, x: Any, other: Any, rounding_mode: str | None = None) -> fx.Node:
    if isinstance(other, fx.Node):
        raise Unsupported("it divides by an activation; spiking layers only add: remove the division and fine-tune")
    quotient = mul(build, x, 1.0 / other)
    return (
        quotient
        if rounding_mode is None
        else trunc(build, quotient)
        if rounding_mode == "trunc"
        else floor(build, quotient)
    )


@_functions("floordiv", "ifloordiv", "floor_divide")
def floor_divide(build: Builder, x: Any, other: Any) -> fx.Node:
    return div(build, x, other, rounding_mode="floor")


# Rounding, of which only that of clipped activations stays; see snn_lowlat.graph.levels.


@_functions("floor")
def floor(build: Builder, x: fx.Node) -> fx.Node:
    return build.rounding(x)


@_functions("trunc", "fix")
def trunc(build: Builder, x: fx.Node) -> fx.Node:
    if not is_nonnegative(build, x):
        raise Unsupported("it rounds negative values up: clip before rounding, or use torch.floor")
    return build.rounding(x)


@_functions("round")
def round_(build: Builder, x: fx.Node, decimals: int = 0) -> fx.Node:
    if decimals:
        raise Unsupported("rounding to decimals is not understood: scale, round to whole numbers, and scale back")
    return build.rounding(build.function(operator.add, x, 0.5))


@_functions("ceil")
def ceil(build: Builder, x: fx.Node) -> fx.Node:
    raise Unsupported(
        "rounding up is not understood: neurons round down, as torch.floor(x + shift) with a shift below 1"
    )


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
def permute(build: Builder, x: fx.Node, *dims: Any, **named: Any) -> fx.Node:
    rank = len(build.shape_of(x))
    dims = (*dims, *named.values())
    dims = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
    order = [d % rank for d in dims]
    if build.operation != "permute":
        first, second = order
        order = list(range(rank))
        order[first], order[second] = second, first
    if order[0] != 0:
        raise Unsupported("it moves the batch dimension: keep dimension 0 where it is")
    return build.method("permute", x, *order)


@_modules(nn.PixelShuffle, nn.PixelUnshuffle)
def pixel_shuffle(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    return build.layer(_plain(module), x)


_FUNCTIONS.update(pixel_shuffle=_functional(nn.PixelShuffle), pixel_unshuffle=_functional(nn.PixelUnshuffle))


@_functions("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(build: Builder, x: fx.Node, groups: int) -> fx.Node:
    batch, channels, *space = build.shape_of(x)
    grouped = torch.Size((batch, groups, channels // groups, *space))
    turned = torch.Size((batch, channels // groups, groups, *space))
    x = build.function(torch.reshape, x, (-1, *grouped[1:]), shape=grouped)
    x = build.method("permute", x, 0, 2, 1, *range(3, len(grouped)), shape=turned)
    return build.function(torch.reshape, x, (-1, channels, *space))


@_modules(nn.ChannelShuffle)
def channel_shuffle_module(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    return channel_shuffle(build, x, module.groups)


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
def split(build: Builder, x: fx.Node, *sizes: Any, dim: int = 0, **named: Any) -> Pieces:
    dim = sizes[1] if len(sizes) > 1 else dim
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
    kind = by_dimensions("pad").get(len(pad) // 2)
    if kind is None or len(pad) % 2:
        raise Unsupported("it pads more than three dimensions")
    return build.layer(kind(tuple(pad), value or 0.0), x)


@_modules(*modules("pad"))
def pad_module(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    return pad(build, x, module.padding, "constant", module.value)


# What does nothing at inference.


@_modules(nn.Identity)
def identity_module(build: Builder, x: fx.Node, module: nn.Module) -> fx.Node:
    return x


_ALWAYS_DROPS = (
    "it drops values at inference too: pass training=self.training, or use an nn.Dropout that eval() reaches"
)


@_modules(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
def dropout_module(build: Builder, x: fx.Node, module: Any) -> fx.Node:
    if module.training and module.p > 0:
        raise Unsupported(_ALWAYS_DROPS)
    return x


@_functions("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "stochastic_depth")
def dropout(build: Builder, x: fx.Node, p: float = 0.5, *args: Any, training: bool = True, **kwargs: Any) -> fx.Node:
    # stochastic_depth has its mode before the switch, and torch.dropout calls the switch train.
    switches = [a for a in args if isinstance(a, bool)][:1] or [kwargs.get("train", training)]
    if switches[0] and p > 0:
        raise Unsupported(_ALWAYS_DROPS)
    return x


@_functions("alpha_dropout", "feature_alpha_dropout")
def alpha_dropout(build: Builder, x: fx.Node, p: float = 0.5, training: bool = False, **kwargs: Any) -> fx.Node:
    return dropout(build, x, p, training=kwargs.get("train", training))


@_functions(
    *["contiguous", "clone", "detach", "pos", "positive"],
    *["to", "float", "double", "half", "bfloat16", "type_as", "cpu", "cuda", "requires_grad"],
)
def identity(build: Builder, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    return x


@_functions("getattr")
def attribute(build: Builder, x: Any, name: str) -> Any:
    if isinstance(x, Pieces) and name == "values":  # of what torch.max(x, dim) returns
        return x[0]
    if isinstance(x, fx.Node) and name == "data":
        return x
    if isinstance(x, fx.Node) and name == "mT" and len(build.shape_of(x)) > 2:
        rank = len(build.shape_of(x))
        return build.method("permute", x, *range(rank - 2), rank - 1, rank - 2)
    raise Unsupported(f"there is no spiking counterpart for the attribute {name!r} of a tensor")
