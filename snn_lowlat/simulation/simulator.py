"""A network made ready to be simulated again and again, as fast as this package can."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat.graph import (
    Schedule,
    Site,
    Walk,
    current_shapes,
    find_sites,
    is_sum_for_one_reader,
)
from snn_lowlat.graph.vocabulary import functions, modules
from snn_lowlat.int8 import IntegerConvolution, has_integer_kernels, use_integer_kernels, whole_numbers
from snn_lowlat.kernels.scan import FusedNeurons
from snn_lowlat.neurons import NEURONS, per_channel
from snn_lowlat.plan import Plan
from snn_lowlat.simulation.reference import fire

__all__ = ["Observer", "Simulator"]

Observer = Callable[[str, Tensor], None]
"""``observe(site, spikes)`` is called at each site with what its neurons fire, 0 or 1, ``[T, N, C, ...]``."""

_SHAPES = functions("rearrangement", "concatenation")
_FOR_BYTES = (IntegerConvolution, *modules("rearrangement", "pad"))


class Simulator:
    """Simulate a network layer by layer, all steps of a few images at a time.

    The spikes are those of :func:`snn_lowlat.simulation.simulate`, unless the order of floating-point sums decides:
    convolutions keep channels last in memory here. In whole numbers no order matters.

    - What is the same in every step is computed once: all that lies before the first neurons, if images are presented
      as constant currents.
    - Integrate-and-fire neurons, what their spikes are worth, and the sum of a residual block in front of them are one
      pass of the memory; see :class:`snn_lowlat.simulation.FusedNeurons`.
    - Convolutions that read small whole numbers only, with whole weights, run on kernels for eight bits where the
      platform has them, and spikes that are worth 1 are bytes then; see :func:`snn_lowlat.int8.whole_numbers`.

    Calls may come from several threads at once.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form. It keeps its weights: where they change, another simulator is needed.
    plan : mapping of str to SitePlan
        What each site becomes.
    image : Tensor
        One input image or more, ``[N, ...]``: its shape counts.
    scan : str, optional
        One of :data:`snn_lowlat.simulation.SCANS`; the fastest there is by default.
    """

    def __init__(self, graph: fx.GraphModule, plan: Plan, image: Tensor, *, scan: str | None = None) -> None:
        graph = fx.GraphModule(graph, copy.deepcopy(graph.graph)).eval()
        self._plan = dict(plan)
        self._sums = _sums_before_neurons(graph, plan, image.shape[1:])
        whole = whole_numbers(graph, plan)
        on_bytes = bool(whole.on_bytes) and image.device.type == "cpu" and image.dtype == torch.float32
        if on_bytes and has_integer_kernels():
            use_integer_kernels(graph, image, whole.on_bytes)
        elif on_bytes and whole.everything:
            warnings.warn(
                "this platform has no convolutions of eight bits: the network in whole numbers runs in single "
                "precision, with the same spikes, but no faster than any other.",
                stacklevel=2,
            )
        _lay_channels_last(graph)
        on_bytes = any(isinstance(module, IntegerConvolution) for module in graph.modules())
        sites = find_sites(graph)
        self._schedule = Schedule(graph, sums={sites[name].node: found.terms for name, found in self._sums.items()})
        # What a layer has just computed, for nobody else.
        layers = [(node, layer) for node, layer in self._schedule.modules.items() if len(node.users) == 1]
        self._free = {node for node, layer in layers if [*layer.parameters(), *layer.buffers()]}
        # Neurons whose spikes are worth what they are worth, and, for who wants to see them, 1.
        self._neurons: dict[tuple[str, bool], FusedNeurons] = {}
        for name, site in plan.items():
            factor = self._sums[name].factor if name in self._sums else None
            dtype = torch.uint8 if on_bytes and bool((site.amplitude == 1).all()) else None
            for watched, amplitude in ((False, site.amplitude), (True, torch.ones(()))):
                if NEURONS[site.neuron].soft_reset:
                    fused = FusedNeurons(replace(site, amplitude=amplitude), factor, dtype=dtype, scan=scan)
                    self._neurons[name, watched] = fused

    @torch.no_grad()
    def __call__(self, inputs: Tensor, observe: Observer | None = None) -> Tensor:
        """Simulate.

        Parameters
        ----------
        inputs : Tensor
            Input currents ``[T, N, ...]``. A tensor that has been expanded along the steps is the same in all of them.
        observe : callable, optional
            See :data:`Observer`.

        Returns
        -------
        Tensor
            The network's output in each step, ``[T, N, classes]``.
        """
        constant = inputs.stride(0) == 0 or len(inputs) == 1
        images = inputs[0] if constant else inputs.flatten(0, 1)
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        outputs: Tensor = _Simulation(self, len(inputs), observe, constant=constant).run(images)
        return outputs.reshape(*inputs.shape[:2], *outputs.shape[1:])


def _lay_channels_last(graph: fx.GraphModule) -> None:
    """Give convolutions copies of their weights in the layout of what they read; else each call makes one."""
    for name, module in list(graph.named_modules()):
        if isinstance(module, nn.Conv2d):
            laid_out = copy.copy(module)
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            laid_out._parameters = {**module._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
            graph.set_submodule(name, laid_out)


@dataclass(frozen=True, eq=False)
class _Sum:
    """A sum of two terms that nothing but neurons read, and which is left to them."""

    terms: tuple[fx.Node, fx.Node]
    factor: Tensor | None
    """What the second term is multiplied by, which is left to the neurons too."""


def _sums_before_neurons(graph: fx.GraphModule, plan: Plan, input_shape: Sequence[int]) -> dict[str, _Sum]:
    """Return the sums in front of integrate-and-fire neurons, by their sites."""
    shapes = current_shapes(graph, input_shape)
    found = {}
    for name, site in find_sites(graph).items():
        node = site.current
        terms = node.all_input_nodes
        if not is_sum_for_one_reader(node) or not NEURONS[plan[name].neuron].soft_reset:
            continue
        if all(term.op != "get_attr" and term.meta["tensor_meta"].shape[1:] == shapes[name] for term in terms):
            first, second = sorted(terms, key=lambda term: _factor(graph, term, shapes[name]) is not None)
            factor = _factor(graph, second, shapes[name])
            found[name] = _Sum((first, second if factor is None else second.all_input_nodes[0]), factor)
    return found


def _factor(graph: fx.GraphModule, node: fx.Node, shape: Sequence[int]) -> Tensor | None:
    """Return what a node multiplies its input by, one factor for each channel; None if it does anything else."""
    if node.target is not operator.mul or len(node.users) > 1:
        return None
    constant = node.args[1]
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return None
    factor: Tensor = operator.attrgetter(str(constant.target))(graph).detach()
    rows = factor.reshape(len(factor), -1) if factor.dim() == len(shape) else None
    return rows[:, 0].clone() if rows is not None and bool((rows == rows[:, :1]).all()) else None


class _Simulation(Walk):
    """One micro-batch, all layers one after the other."""

    def __init__(self, simulator: Simulator, timesteps: int, observe: Observer | None, *, constant: bool) -> None:
        super().__init__(simulator._schedule, timesteps, constant=constant)
        self._simulator = simulator
        self._observe = observe

    def neurons(self, site: Site, terms: Sequence[Tensor]) -> Tensor:
        plan, watched = self._simulator._plan[site.name], self._observe is not None
        constant = not self.varies(site.node)
        fused = self._simulator._neurons.get((site.name, watched))
        if fused is not None:
            overwrite = self.schedule.reads[site.node][0] in self._simulator._free
            spikes = fused(terms[0], self.timesteps, *terms[1:], constant_in_time=constant, overwrite=overwrite)
        else:
            watched = True  # what they fire is worth 1
            (currents,) = terms
            each_step = currents.expand(self.timesteps, *currents.shape) if constant else self._steps(currents)
            spikes = fire(each_step, plan).flatten(0, 1)
        if self._observe is not None:
            self._observe(site.name, self._steps(spikes))
        worth = watched and spikes.dtype != torch.uint8
        return spikes * per_channel(plan.amplitude, spikes) if worth else spikes

    def max_pool(self, node: fx.Node, currents: Tensor) -> Any:
        return super().max_pool(node, _no_bytes(currents))

    def layer(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        moves = node.op == "call_method" or node.target in _SHAPES
        for_bytes = moves or isinstance(self.schedule.modules.get(node), _FOR_BYTES)
        return super().layer(node, args if for_bytes else tuple(map(_no_bytes, args)), kwargs)

    def _steps(self, values: Tensor) -> Tensor:
        return values.reshape(self.timesteps, -1, *values.shape[1:])


def _no_bytes(value: Any) -> Any:
    """Return numbers that can be added up beyond 255."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.uint8 else value
