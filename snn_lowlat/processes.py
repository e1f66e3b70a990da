"""Several processes that work on one network, with ``torch.distributed``."""

from __future__ import annotations

import copy
import logging
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, fx

from snn_lowlat.errors import ConversionError
from snn_lowlat.plan import SitePlan

__all__ = ["gathered", "mean_of_all", "same_everywhere", "share_of"]

_LOGGER = logging.getLogger(__name__)

Value = TypeVar("Value")


def gathered(value: Value) -> list[Value]:
    """Return the values of all processes in the order of their ranks; every process must call this.

    Parameters
    ----------
    value : object
        This process's own. Tensors in it must be on the CPU.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def share_of(available: int, wanted: int) -> int:
    """Return how many of the things that all processes want together this one gives; every process must call this.

    All give the same number as far as they have it, and the first ones more where others have less.

    Parameters
    ----------
    available : int
        How many this process has.
    wanted : int
        How many all processes want together.
    """
    everywhere = gathered(available)
    even, rest = divmod(wanted, len(everywhere))
    given = [min(number, even + (rank < rest)) for rank, number in enumerate(everywhere)]
    missing = wanted - sum(given)
    for rank, number in enumerate(everywhere):
        more = min(number - given[rank], missing)
        given[rank], missing = given[rank] + more, missing - more
    return given[distributed.get_rank() if len(given) > 1 else 0]


def mean_of_all(total: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Divide the sum over all processes by their count; bit for bit the same in each. Every process must call this.

    Parameters
    ----------
    total : Tensor
        This process's sum; of any shape where its count is 0.
    count : int
        Over how many values it goes.
    dtype : torch.dtype
        Of the result; that of another process where this one's count is 0.
    """
    shares = [(total, count, dtype)]
    if distributed.is_available() and distributed.is_initialized():
        # A sum of the backend's own may add in another order in each process.
        shares = [share for share in gathered((total.cpu(), count, dtype)) if share[1]]
    everything = sum((share[0] for share in shares[1:]), start=shares[0][0])
    return (everything / sum(share[1] for share in shares)).to(total.device, shares[0][2])


def same_everywhere(
    graph: fx.GraphModule, plan: dict[str, SitePlan], *, warn: bool = False
) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
    """Return the first process's weights and plan in every process; every process must call this.

    Parameters
    ----------
    graph : GraphModule
        This process's network in normal form. It is not changed: one with other weights is a copy.
    plan : dict of str to SitePlan
        This process's plan.
    warn : bool
        Say so where this process's weights were others.

    Raises
    ------
    ConversionError
        If this process's network has other parameters than the first one's.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return graph, plan
    own = graph.state_dict()
    sent: list[Any] = [None]
    if distributed.get_rank() == 0:
        sent = [({name: value.cpu() for name, value in own.items()}, plan)]
    distributed.broadcast_object_list(sent, src=0)
    weights, plan = sent[0]
    shapes, others = ({name: value.shape for name, value in state.items()} for state in (own, weights))
    if shapes != others:
        different = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
        raise ConversionError(
            f"process {distributed.get_rank()} has another network than the first one: {', '.join(different[:6])} "
            "differ. All processes must convert the same network."
        )
    if any(not torch.equal(own[name].cpu(), value) for name, value in weights.items()):
        if warn:
            _LOGGER.warning(
                "process %d had other weights than the first one, such as batch norms that were trained without "
                "synchronisation; the first one's network is converted.",
                distributed.get_rank(),
            )
        graph = copy.deepcopy(graph)
        graph.load_state_dict(weights)
    return graph, plan
