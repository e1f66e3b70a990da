"""Tracing a network with torch.fx while its values are known.

Plain symbolic tracing knows no sizes, so ``F.avg_pool2d(x, x.size()[3])``, ``x.view(x.size(0), -1)`` or a test on a
shape end up as arithmetic in the graph, or fail. Here every proxy carries the value it has for an example input: sizes
are numbers, tuples can be unpacked, and each node remembers what it computed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

__all__ = ["ValueTracer"]

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


class _ValueProxy(fx.Proxy):
    """A proxy that knows its value for the example input."""

    value: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.value, name) if name in _PROPERTIES else super().__getattr__(name)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.value, (tuple, list)):
            return iter([operator.getitem(self, index) for index in range(len(self.value))])  # type: ignore[call-overload]
        return super().__iter__()

    def __len__(self) -> int:
        return len(self.value)


class ValueTracer(fx.Tracer):
    """Trace a module on an example input; ``node.meta`` holds each node's ``value`` and its module's ``scope``.

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
        """Keep torch's own modules and ``leaves`` as single nodes."""
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node in a proxy that will know its value."""
        return _ValueProxy(node, self)

    # Tracing patches attribute access and calls of every module; both must behave as usual while a value is computed.

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Look an attribute of a module up: a proxy for a parameter, unless a value is being computed."""
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

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
        self._computing = True
        try:
            proxy.value = self._compute(kind, target, map_aggregate(args, _value), map_aggregate(kwargs, _value))
        finally:
            self._computing = False
        proxy.node.meta.update(value=proxy.value, scope=self.scope.module_path)
        return proxy

    @torch.no_grad()
    def _compute(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            first = not any(node.op == "placeholder" and "value" in node.meta for node in self.graph.nodes)
            return self._example_input if first else None
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
