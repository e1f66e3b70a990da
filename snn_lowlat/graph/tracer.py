"""Tracing a network with torch.fx while its values are known.

Plain symbolic tracing knows no sizes, so ``F.avg_pool2d(x, x.size()[3])``, ``x.view(x.size(0), -1)`` or a test on a
shape end up as arithmetic in the graph, or fail. Here every proxy carries the value it has for an example input: sizes
are numbers, tuples can be unpacked, and each node remembers what it computed.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from snn_lowlat.graph.operations import is_frozen_batch_norm, module_rule

__all__ = ["IN_PLACE", "SignatureError", "ValueTracer", "input_name"]

_QUESTIONS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "element_size",
    "is_floating_point",
    "get_device",
    "stride",
}
"""Tensor methods that ask about a tensor's form, never about its content."""

_PROPERTIES = {"shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad", "itemsize"}


IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv)
"""What ``x += y`` and the like do to a tensor; fx by itself takes them for ``x = x + y``."""


class _ValueProxy(fx.Proxy):
    """A proxy that knows its value for the example input."""

    value: Any = None

    def __getattr__(self, name: str) -> Any:
        if name in _PROPERTIES:
            return getattr(self.value, name)
        if isinstance(self.value, (Tensor, tuple)) and isinstance(getattr(self.value, name, None), Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.value, (tuple, list)):
            return iter([operator.getitem(self, index) for index in range(len(self.value))])  # type: ignore[call-overload]
        return super().__iter__()

    def __len__(self) -> int:
        return len(self.value)

    def _changed(self, operation: Callable[..., Any], other: Any) -> Any:
        if not isinstance(self.value, Tensor):
            return NotImplemented
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    __iadd__ = partialmethod(_changed, operator.iadd)
    __isub__ = partialmethod(_changed, operator.isub)
    __imul__ = partialmethod(_changed, operator.imul)
    __itruediv__ = partialmethod(_changed, operator.itruediv)
    __ifloordiv__ = partialmethod(_changed, operator.ifloordiv)


class SignatureError(Exception):
    """``forward`` can't be called with one tensor; the message says what it takes."""


def input_name(forward: Callable[..., Any]) -> str:
    """Return the name of the parameter of ``forward`` that takes the input, if one tensor is enough to call it.

    Parameters
    ----------
    forward : callable
        A network's ``forward``, bound.

    Raises
    ------
    SignatureError
        If it takes no tensor by position, or needs more arguments than one.
    """
    parameters = list(inspect.signature(forward).parameters.values())
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((p for p in parameters if p.kind in (*by_position, inspect.Parameter.VAR_POSITIONAL)), None)
    if first is None:
        raise SignatureError("forward() takes no tensor by position")
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (*by_position, inspect.Parameter.KEYWORD_ONLY)
    ]
    if [name for name in needed if name != first.name]:
        raise SignatureError(f"forward() takes {len(needed)} inputs ({', '.join(needed)})")
    return first.name


class ValueTracer(fx.Tracer):
    """Trace a module on an example input, the first argument of ``forward``; other arguments keep their defaults.

    ``node.meta`` holds each node's ``value``, its module's ``scope``, and which of its arguments it ``changed`` in
    place, as nodes.

    Parameters
    ----------
    example_input : Tensor
        One batch, ``[N, ...]``, on the module's device.
    leaves : tuple of types
        Module types kept as one node besides torch's own.
    """

    def __init__(self, example_input: Tensor, leaves: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__()
        self._example_input = example_input
        self._leaves = leaves
        self._computing = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep torch's own modules and ``leaves`` as single nodes, unless they have a ``forward`` of their own."""
        if "forward" in vars(m):
            return False
        kept = isinstance(m, self._leaves) or is_frozen_batch_norm(m)
        return (kept and module_rule(m) is not None) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node in a proxy that will know its value."""
        return _ValueProxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return what to call, with the input as its only traced argument.

        Python itself fills in the defaults, whatever they are, and an instance may have a ``forward`` of its own.
        """
        placeholder = self.create_proxy("placeholder", input_name(self.root.forward), (), {})
        return (lambda root, x: root.forward(x)), [self.root, placeholder]

    # Tracing patches attribute access and calls of every module; both must behave as usual while a value is computed.

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Look an attribute of a module up: a proxy for a parameter, unless a value is being computed."""
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        """Prepare an argument of a node; a parameter that belongs to no module is a constant."""
        if isinstance(a, nn.Parameter) and all(a is not parameter for parameter in self.root.parameters()):
            a = a.detach()
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call a module: traced, unless a value is being computed."""
        return forward(*args, **kwargs) if self._computing else super().call_module(m, forward, args, kwargs)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Add a node and compute its value for the example input."""
        if kind == "call_method" and target in _QUESTIONS:
            return getattr(_value(args[0]), target)(*args[1:], **kwargs)
        if kind == "call_function" and target is getattr and args[1] in _PROPERTIES:
            return getattr(_value(args[0]), args[1])
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        read = {node: _version(node.meta.get("value")) for node in proxy.node.all_input_nodes}
        self._computing = True
        try:
            proxy.value = self._compute(kind, target, map_aggregate(args, _value), map_aggregate(kwargs, _value))
        finally:
            self._computing = False
        changed = [node for node, version in read.items() if _version(node.meta.get("value")) != version]
        proxy.node.meta.update(value=proxy.value, scope=self.scope.module_path, changed=changed)
        return proxy

    @torch.no_grad()
    def _compute(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self._example_input.clone()
        if kind == "get_attr":
            return operator.attrgetter(target)(self.root)
        if kind == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if kind == "call_function":
            return target(*args, **kwargs)
        return args[0]


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, _ValueProxy) else argument


def _version(value: Any) -> int | None:
    """Count how often a tensor has been changed in place."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None
