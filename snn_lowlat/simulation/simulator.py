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
from torch.fx.node import map_arg

from snn_lowlat.graph import current_shapes, find_sites, is_sum_for_one_reader
from snn_lowlat.int8 import IntegerConvolution, has_integer_kernels, use_integer_kernels, whole_numbers
from snn_lowlat.kernels.scan import FusedNeurons
from snn_lowlat.neurons import NEURONS, is_cumulative, max_pool_window, per_channel
from snn_lowlat.plan import Plan
from snn_lowlat.simulation.reference import fire

__all__ = ["Observer", "Simulator"]

Observer = Callable[[str, Tensor], None]
"""``observe(site, spikes)`` is called at each site with what its neurons fire, 0 or 1, ``[T, N, C, ...]``."""

_SHAPES = (operator.getitem, torch.cat, torch.flatten, torch.reshape)
_FOR_BYTES = (IntegerConvolution, nn.Flatten, nn.Identity, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


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
        sums = _sums_before_neurons(graph, plan, image.shape[1:])
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
        self._interpreter = _Interpreter(graph, plan, sums, on_bytes, scan)

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
        still = inputs.stride(0) == 0 or len(inputs) == 1
        images = inputs[0] if still else inputs.flatten(0, 1)
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        outputs = self._interpreter.simulate(images, len(inputs), observe, still=still)
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

    node: fx.Node
    first: fx.Node
    second: fx.Node
    factor: Tensor | None
    """What the second term multiplies its input by, which is left to the neurons too."""


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
            found[name] = _Sum(node, first, second, _factor(graph, second, shapes[name]))
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


class _Interpreter(fx.Interpreter):
    """Runs the layers of a micro-batch one after the other.

    If images are the same in all steps, values that nothing but the image decides are ``[N, ...]``. All others are
    ``[T * N, ...]``. Each call works with a copy, so that several may run at once.
    """

    _timesteps: int
    _observe: Observer | None
    _still: set[fx.Node]

    def __init__(
        self,
        graph: fx.GraphModule,
        plan: Plan,
        sums: Mapping[str, _Sum],
        on_bytes: bool,
        scan: str | None,
    ) -> None:
        super().__init__(graph)
        self._plan = dict(plan)
        self._sites = {site.node: site for site in find_sites(graph).values()}
        self._sums = {found.node: found for found in sums.values()}
        self._passed = {node for site in self._sites.values() for node in site.rest}
        self._passed |= {found.second for found in sums.values() if found.factor is not None}
        self._before_spikes = _before(graph, set(self._sites))
        # What a layer has just computed, for nobody else.
        self._free = {node for node in graph.graph.nodes if len(node.users) == 1 and self._has_weights(node)}
        # Neurons whose spikes are worth what they are worth, and, for who wants to see them, 1.
        self._neurons: dict[tuple[str, bool], FusedNeurons] = {}
        for name, site in plan.items():
            factor = sums[name].factor if name in sums else None
            dtype = torch.uint8 if on_bytes and bool((site.amplitude == 1).all()) else None
            for watched, amplitude in ((False, site.amplitude), (True, torch.ones(()))):
                if NEURONS[site.neuron].soft_reset:
                    fused = FusedNeurons(replace(site, amplitude=amplitude), factor, dtype=dtype, scan=scan)
                    self._neurons[name, watched] = fused

    def simulate(self, images: Tensor, timesteps: int, observe: Observer | None, *, still: bool) -> Tensor:
        """Run so many steps of images ``[T * N, ...]``, or ``[N, ...]`` if they are still."""
        call = copy.copy(self)
        call._timesteps = timesteps
        call._observe = observe
        call._still = self._before_spikes if still else set()
        outputs: Tensor = call.run(images)
        return outputs

    def run_node(self, n: fx.Node) -> Any:
        if n in self._sites:
            return self._fire(self._sites[n].name, self.env[self._sites[n].current], self._sites[n].current)
        if n in self._sums:
            return self._value(self._sums[n].first, n), self._value(self._sums[n].second, n)
        if n in self._passed:  # neurons do that by themselves
            return self._value(n.all_input_nodes[0], n)
        if n not in self._still and is_cumulative(self._module(n)):
            return max_pool_window(self._module(n), _no_bytes(self._value(n.all_input_nodes[0], n)), self._timesteps)
        return super().run_node(n)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        return map_arg((n.args, n.kwargs), lambda before: self._value(before, n))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(target)
        return layer(*(args if isinstance(layer, _FOR_BYTES) else map(_no_bytes, args)), **kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return target(*(args if target in _SHAPES else map(_no_bytes, args)), **kwargs)

    def _value(self, node: fx.Node, reader: fx.Node) -> Any:
        """Return a node's value as another reads it: for each step, if anything there differs from step to step."""
        value = self.env[node]
        if node in self._still and reader not in self._still:
            return torch.cat([value] * self._timesteps)
        return value

    def _fire(self, name: str, currents: Any, node: fx.Node) -> Tensor:
        still, watched = node in self._still, self._observe is not None
        plan = self._plan[name]
        if (name, watched) in self._neurons:
            first, other = currents if node in self._sums else (currents, None)
            overwrite = (self._sums[node].first if node in self._sums else node) in self._free
            spikes = self._neurons[name, watched](first, self._timesteps, other, still=still, overwrite=overwrite)
        else:
            watched = True  # what they fire is worth 1
            each_step = currents.expand(self._timesteps, *currents.shape) if still else self._steps(currents)
            spikes = fire(each_step, plan).flatten(0, 1)
        if self._observe is not None:
            self._observe(name, self._steps(spikes))
        worth = watched and spikes.dtype != torch.uint8
        return spikes * per_channel(plan.amplitude, spikes) if worth else spikes

    def _steps(self, values: Tensor) -> Tensor:
        return values.reshape(self._timesteps, -1, *values.shape[1:])

    def _has_weights(self, node: fx.Node) -> bool:
        module = self._module(node)
        return module is not None and any(True for _ in (*module.parameters(), *module.buffers()))

    def _module(self, node: fx.Node) -> Any:
        return self.fetch_attr(str(node.target)) if node.op == "call_module" else None


def _before(graph: fx.GraphModule, sites: set[fx.Node]) -> set[fx.Node]:
    """Return the nodes that the image decides without any neurons."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        reads = [before for before in node.all_input_nodes if before.op != "get_attr"]
        if node.op == "placeholder" or (reads and node not in sites and found.issuperset(reads)):
            found.add(node)
    return found


def _no_bytes(value: Any) -> Any:
    """Return numbers that can be added up beyond 255."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.uint8 else value
