"""The activation sites of a network in normal form, and the layers around them."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from snn_lowlat.graph.vocabulary import functions, module_of, modules
from snn_lowlat.neurons.accumulate_then_fire import MARGIN

__all__ = [
    "BATCH_NORMS",
    "WEIGHTED",
    "Site",
    "bias_carrier",
    "current_shapes",
    "depth",
    "find_sites",
    "is_sum_for_one_reader",
    "output_bias_carrier",
]

BATCH_NORMS = modules("norm")
"""Torch's batch norms."""

WEIGHTED = modules(has_weights=True)
"""Layers with weights, which are linear in what they read."""

_AVERAGE_POOLS = modules("average pool")
_WHOLE_WINDOWS = modules("max pool", "adaptive pool")
_RESHAPES = functions("rearrangement")


@dataclass(frozen=True, eq=False)
class Site:
    """One activation of the network, and so one layer of neurons.

    Attributes
    ----------
    name : str
        The site's name: the target of its node.
    node : Node
        The call of its ``nn.ReLU``.
    rest : tuple of Node
        What follows as a part of the activation: its clipping at the ceiling, then its rounding down to levels.
    ceiling : Tensor or None
        The trained ceiling in units of the pre-activation, shape ``[]`` or ``[C]``; None for a plain ReLU.
    levels : int or None
        The number of levels above zero, up to the ceiling, that the activation is rounded down to; None where it is not
        rounded.
    shift : float
        What is added before rounding down, in levels: 0.5 for rounding to the nearest.
    """

    name: str
    node: fx.Node
    rest: tuple[fx.Node, ...]
    ceiling: Tensor | None
    levels: int | None = None
    shift: float = 0.0

    @property
    def output(self) -> fx.Node:
        """What the rest of the network reads."""
        return self.rest[-1] if self.rest else self.node

    @property
    def current(self) -> fx.Node:
        """The node whose value drives the site: the pre-activation."""
        return self.node.all_input_nodes[0]


def is_sum_for_one_reader(node: fx.Node) -> bool:
    """Say whether a node adds up two values and only one node reads the sum."""
    return node.target is operator.add and len(node.all_input_nodes) == 2 and len(node.users) == 1


def find_sites(graph: fx.GraphModule) -> dict[str, Site]:
    """Return the sites of a network in normal form, in the order in which they are computed.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    """
    sites = {}
    for node in graph.graph.nodes:
        if isinstance(module_of(graph, node), nn.ReLU):
            rest: tuple[fx.Node, ...] = ()
            ceiling, levels, shift = None, None, 0.0
            clip = next((user for user in node.users if user.target is torch.minimum), None)
            if clip is not None:
                ceiling = operator.attrgetter(clip.args[1].target)(graph).detach()
                ceiling = ceiling.reshape(-1) if ceiling.numel() > 1 else ceiling.reshape(())
                rounding = _rounding(clip)
                rest = (clip, *rounding)
                if rounding:
                    scaling, shifting = (part.args[1] for part in rounding[:2])
                    levels = round(float((ceiling * _constant(graph, scaling).reshape(ceiling.shape)).max()))
                    shift = float(str(shifting)) - MARGIN
            sites[node.target] = Site(node.target, node, rest, ceiling, levels, shift)
    return sites


def _rounding(clip: fx.Node) -> tuple[fx.Node, ...]:
    """Return the nodes of ``floor(clip / step + shift + margin) * step``; none if the clipped value is not rounded."""
    nodes, node = [], clip
    for target in (operator.mul, operator.add, torch.floor, operator.mul):
        users = list(node.users)
        if len(users) != 1 or users[0].target is not target or users[0].args[0] is not node:
            return ()
        node = users[0]
        nodes.append(node)
    return tuple(nodes)


def _constant(graph: fx.GraphModule, value: object) -> Tensor:
    if isinstance(value, fx.Node):
        return operator.attrgetter(str(value.target))(graph).detach()  # type: ignore[no-any-return]
    return torch.tensor(value)


def depth(graph: fx.GraphModule) -> int:
    """Return the number of sites on the longest way through the network: how many layers a spike passes.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    """
    sites = {site.node for site in find_sites(graph).values()}
    depths: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        depths[node] = max((depths[before] for before in node.all_input_nodes), default=0) + (node in sites)
    return max(depths.values(), default=0)


def current_shapes(graph: fx.GraphModule, input_shape: Sequence[int]) -> dict[str, torch.Size]:
    """Return the shape of one image's currents at each site, ``[C, ...]``, by the site's name.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    input_shape : sequence of int
        The shape of one input image.
    """
    reference = next(graph.parameters(), torch.empty(0))
    with torch.no_grad():
        ShapeProp(graph).propagate(torch.zeros(2, *input_shape, dtype=reference.dtype, device=reference.device))
    return {site.name: site.current.meta["tensor_meta"].shape[1:] for site in find_sites(graph).values()}


def bias_carrier(graph: fx.GraphModule, site: Site, channels: Mapping[fx.Node, int]) -> str | None:
    """Return the layer whose bias shifts a site's pre-activation, channel by channel, and nothing else.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    site : Site
        One of its sites.
    channels : mapping of Node to int
        Where the channels of each node are: :func:`snn_lowlat.graph.channel_dimensions`.

    Returns
    -------
    str or None
        The layer's name; None if there is no such layer, as behind a concatenation that others read too.
    """
    return _carrier(graph, site.current, 1, channels)


def output_bias_carrier(graph: fx.GraphModule, channels: Mapping[fx.Node, int]) -> str | None:
    """Return the layer whose bias shifts the network's output, channel by channel; None if there is none."""
    output = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes[0]
    return _carrier(graph, output, channels[output], channels)


def _carrier(graph: fx.GraphModule, node: fx.Node, dimension: int, channels: Mapping[fx.Node, int]) -> str | None:
    """Return the layer whose bias shifts a node's value along a dimension, and nothing else."""
    # Sums may be nested deeper than Python calls can be.
    waiting = [(node, dimension)]
    while waiting:
        node, dimension = waiting.pop()
        if len(node.users) != 1:
            continue
        if node.op == "call_module":
            module = module_of(graph, node)
            if isinstance(module, WEIGHTED):
                if channels[node] == dimension:
                    return str(node.target)
                continue
            unpadded = isinstance(module, _AVERAGE_POOLS) and not _any(module.padding) and not module.ceil_mode
            # Pools have their own idea of channels, and mix what is in any other dimension.
            if dimension == 1 and (isinstance(module, _WHOLE_WINDOWS) or unpadded):
                waiting.append((node.all_input_nodes[0], 1))
        elif node.target == "permute":
            waiting.append((node.all_input_nodes[0], int(str(node.args[1 + dimension]))))
        elif node.target in _RESHAPES:
            (before,) = node.all_input_nodes
            if math.prod(_shape(before)) != math.prod(_shape(node)):
                continue
            place = _unreshaped(_shape(before), _shape(node), dimension)
            waiting += [] if place is None else [(before, place)]
        elif node.target is operator.add and node.args[0] is not node.args[1]:
            terms = [term for term in node.all_input_nodes if term.op != "get_attr" and _spans(term, node, dimension)]
            waiting += [(term, dimension) for term in reversed(terms)]
    return None


def _spans(term: fx.Node, node: fx.Node, dimension: int) -> bool:
    """Say whether a term of a sum has all of its channels, and none that is repeated."""
    shape, whole = _shape(term), _shape(node)
    return len(shape) == len(whole) and shape[dimension] == whole[dimension]


def _unreshaped(before: Sequence[int], after: Sequence[int], dimension: int) -> int | None:
    """Return where a dimension was before a reshape, if it was one and whole."""
    places = range(1, len(before))
    outside = math.prod(after[1:dimension])
    return next((d for d in places if before[d] == after[dimension] and math.prod(before[1:d]) == outside), None)


def _shape(node: fx.Node) -> Sequence[int]:
    """Return a node's shape; what has no dimension beside the batch has one of size 1."""
    shape = node.meta["tensor_meta"].shape
    return shape if len(shape) > 1 else (*shape, 1)


def _any(value: object) -> bool:
    return any(value) if isinstance(value, tuple) else bool(value)
