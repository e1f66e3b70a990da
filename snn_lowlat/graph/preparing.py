"""A copy of a network as it computes at inference: in evaluation mode, with its weights settled and without hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snn_lowlat.graph.obstacles import Obstacle

__all__ = ["computed_tensors", "prepared_copy"]

_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)


@torch.no_grad()
def prepared_copy(model: nn.Module, example_input: Tensor) -> tuple[nn.Module, list[Obstacle]]:
    """Copy a network, run the copy once so that its hooks leave their weights in it, and take the hooks away.

    Hooks of ``weight_norm``, ``spectral_norm`` and ``prune`` compute weights. Other hooks may watch; one that changes
    what a module gets or returns is an obstacle.

    Parameters
    ----------
    model : Module
        The network; it is not changed.
    example_input : Tensor
        A batch for it, ``[N, ...]``.

    Returns
    -------
    copy : Module
        The copy, in evaluation mode.
    obstacles : list of Obstacle
        The hooks that change values.

    Raises
    ------
    Exception
        Whatever copying or running the network raises.
    """
    model = copy.deepcopy(model, computed_tensors(model)).eval()
    hooked = [module for module in model.modules() if any(getattr(module, hooks, None) for hooks in _HOOKS)]
    obstacles: list[Obstacle] = []
    if hooked:
        _watch(model, obstacles)
        model(example_input.clone())
        for module in hooked:
            for hooks in _HOOKS:
                getattr(module, hooks, {}).clear()
    return model, obstacles


def computed_tensors(model: nn.Module) -> dict[int, Any]:
    """Copy the tensors that have a history, such as a weight that a hook has computed, which ``deepcopy`` refuses.

    Parameters
    ----------
    model : Module
        The network to copy.

    Returns
    -------
    dict
        Their copies by their ids: the second argument of :func:`copy.deepcopy`.
    """
    attributes = [value for module in model.modules() for value in (*vars(module).values(), *module._buffers.values())]
    tensors = (leaf for value in attributes for leaf in _tensors(value))
    return {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


def _watch(model: nn.Module, obstacles: list[Obstacle]) -> None:
    """Let each hook report itself when it changes a value."""
    for path, module in model.named_modules():
        for hooks, takes in ((module._forward_hooks, "output"), (module._forward_pre_hooks, "input")):
            for key, hook in hooks.items():
                place = f"{type(module).__name__} ({path or 'the network itself'})"
                hooks[key] = _watched(hook, place, takes, path or "output", obstacles)


def _watched(
    hook: Callable[..., Any], place: str, takes: str, node: str, obstacles: list[Obstacle]
) -> Callable[..., Any]:
    def watched(module: nn.Module, *given: Any) -> Any:
        value = given[-1] if takes == "output" else given if len(given) > 1 else given[0]
        before = [(tensor, tensor._version) for tensor in _tensors(value) if not tensor.is_inference()]
        result = hook(module, *given)
        changed = any(tensor._version != version for tensor, version in before)
        if result is not None and not changed:
            wrapped = result if takes == "output" or isinstance(result, tuple) else (result,)
            changed = not _same(wrapped, value)
        if changed:
            name = getattr(hook, "__qualname__", type(hook).__qualname__)
            obstacle = Obstacle(
                node,
                f"hook {name} on {place}",
                f"it changes the module's {takes}: write what it does into forward(), or remove the hook",
            )
            if obstacle not in obstacles:
                obstacles.append(obstacle)
        return result

    return watched


def _same(first: Any, second: Any) -> bool:
    leaves, structure = pytree.tree_flatten(first)
    others, other_structure = pytree.tree_flatten(second)
    if structure != other_structure:
        return False
    return all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b
        for a, b in zip(leaves, others, strict=True)
    )
