"""Noticing what has been changed in a host's network since it was built, in whatever way that was done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules import module as torch_module

from snn_lowlat.neurons.loops import checksum

__all__ = ["Sight", "Watch"]

# How a network is being run or trained at the moment, and what neurons remember between steps, is no part of it.
_PASSING = {"training", "_step_mode", "_store_v_seq", "counting", "folded_steps", "memory", "batch"}
_PASSING |= {"_backend", "detach_reset"}
_SURROGATE = "surrogate_function"
_OF_EVERY_MODULE = set(nn.Module().__dict__)
_BASES = (nn.Module, fx.GraphModule)
_OPTIONS = (bool, int, float, str, tuple, type(None))


class Sight(NamedTuple):
    """A host's network as it is at one moment.

    Attributes
    ----------
    changed : str or None
        The first module that is not of the class, has not the options or does not run the code that it was built with.
    observed : bool
        Somebody has put hooks on its modules, which see their inputs and outputs and may change them.
    numbers : tuple or None
        Where weights and the neurons' values lie, and their checksums; None if they are not in the processor's memory.
    """

    changed: str | None
    observed: bool
    numbers: tuple[Any, ...] | None


class Watch:
    """Looks at a host's network, and compares it with the one that was built.

    Versions of tensors do not say enough: what is written through ``.data``, or an array of NumPy's that shares the
    memory, leaves them as they are. So each look reads all numbers, at the speed of memory.

    Parameters
    ----------
    network : Module
        The network, just built.
    """

    def __init__(self, network: nn.Module) -> None:
        self._built: list[tuple[str, type, tuple[tuple[str, Any], ...]]] = []
        for name, module in network.named_modules():
            self._built.append((name, _kind(name, module), _options(name, module)))
        self._drawing = _drawing(network)
        self._sums: dict[tuple[Any, ...], Callable[[], object]] = {}

    def look(self, network: nn.Module) -> Sight:
        """Look at the network; not from several threads at once."""
        modules = dict(network.named_modules())
        observed = bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
        tensors: list[Tensor] = []
        for module in modules.values():
            observed = observed or bool(module._forward_hooks or module._forward_pre_hooks)
            tensors += module._parameters.values()  # type: ignore[arg-type]
            for key, value in module._buffers.items():
                if key not in module._non_persistent_buffers_set:
                    tensors.append(value)  # type: ignore[arg-type]
        tensors = [value for value in tensors if value is not None]
        readable = all(value.device.type == "cpu" and value.layout == torch.strided for value in tensors)
        return Sight(self._changed(modules), observed, self._numbers(tensors) if readable else None)

    def changed(self, network: nn.Module) -> str | None:
        """Return the name of the first module that is not what was built; None if all are."""
        return self._changed(dict(network.named_modules()))

    def _changed(self, modules: dict[str, nn.Module]) -> str | None:
        for place, (name, kind, options) in enumerate(self._built):
            module = modules.get(name)
            if module is None or not _is_as_built(module, kind, options):
                if module is None or name or "forward" in module.__dict__ or _drawing(module) != self._drawing:
                    return str(name)
                # Pickling writes the same code again with other names of variables.
                self._built[place] = (name, kind, _options(name, module))
        built = {name for name, _, _ in self._built} if len(modules) > len(self._built) else modules.keys()
        return next((name for name in modules if name not in built), None)

    def _numbers(self, tensors: list[Tensor]) -> tuple[Any, ...]:
        numbers, sums = [], {}
        for value in tensors:
            place = value.data_ptr(), value.dtype, value.shape
            read = self._sums.get(place)
            if read is None or not value.is_contiguous():
                read = checksum(value.detach().contiguous().view(-1).view(torch.uint8).numpy())
            sums[place] = read
            numbers.append((place, read()))
        self._sums = sums
        return tuple(numbers)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sums": {}}


def _kind(name: str, module: nn.Module) -> type:
    if name.rpartition(".")[2] == _SURROGATE:  # it matters for gradients only
        return nn.Module
    # Each graph module has a class of its own.
    return fx.GraphModule if isinstance(module, fx.GraphModule) else type(module)


def _options(name: str, module: nn.Module) -> tuple[tuple[str, Any], ...]:
    if isinstance(module, fx.GraphModule):
        return (("_code", module.code),)
    if name.rpartition(".")[2] == _SURROGATE:
        return (("spiking", getattr(module, "spiking", None)),)
    skipped = _PASSING | _OF_EVERY_MODULE
    return tuple((k, v) for k, v in module.__dict__.items() if k not in skipped and isinstance(v, _OPTIONS))


def _drawing(network: nn.Module) -> object:
    """Describe what a traced network does, by the places of its operations and not by their names."""
    if not isinstance(network, fx.GraphModule):
        return None
    places = {node: place for place, node in enumerate(network.graph.nodes)}
    operations = (
        (n.op, getattr(n.target, "__name__", n.target), n.args, n.kwargs)
        for n in network.graph.nodes
        if n.op != "placeholder"
    )
    return [repr(map_arg(operation, lambda before: places[before])) for operation in operations]


def _is_as_built(module: nn.Module, kind: type, options: tuple[tuple[str, Any], ...]) -> bool:
    state = module.__dict__
    if "forward" in state or not (type(module) is kind or (kind in _BASES and isinstance(module, kind))):
        return False
    for key, option in options:
        value = state.get(key)
        if value is option or (option is None and not isinstance(value, _OPTIONS)):
            continue
        if type(value) is not type(option) or value != option:
            return False
    return True
