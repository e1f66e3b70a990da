"""What a spiking network computes, counted on data while it runs, and what the network it came from would.

Every event of a neuron is one transmission to whatever it is connected with. What is counted:

- A layer with weights that is reached by events adds one weight for each event and each place the event reaches
  through it: a *synaptic operation*. Padding, strides, dilation and groups are those of the layer, so that an event at
  the border reaches fewer places than one in the middle. Weights that are zero count like the others.
- Average pools, padding, slices, concatenations and constant factors have no neurons and add nothing up: they pass each
  event on to every place where it counts, and their factors are in the weights behind them. An event that passes a pool
  of 8 x 8 and then a layer with 10 outputs costs 10 synaptic operations.
- Events that reach neurons without passing weights, as by the shortcut of a residual block, are one *addition* each
  for every neuron they reach. The sum of what two layers with weights add up costs nothing: both add to one potential.
- A layer that reads real numbers costs a multiply-accumulate (MAC) for each weight and place: once in a window if it
  reads the image itself (direct input), in every step if it reads what other layers have added up, as behind a
  convolution without neurons of its own, or a batch norm that follows no layer it could be folded into.
- A neuron compares once and adds its constant current (bias, direct input) once in each step, and subtracts its
  threshold at each spike.
- Max-pools compare in each step. What they compare are running sums: one addition for each current that reaches them
  and one for each of their outputs, and both are kept from step to step.
- Memory: each synaptic operation, MAC and bias reads one parameter; each update of a neuron reads and writes its state.

Why SpikingJelly's ``op_counter`` (2.0.0) is not used: its counters find out at each operator whether the input is
binary, and take anything else for real numbers. In a converted network spikes carry the threshold of their channel,
average pools pass on halves and quarters, and direct input that happens to be 0 or 1 is no spike. ``extra_rules`` see
the tensors of one operator, not where they come from, so no rule can tell these cases apart, nor count the first layer
once for all steps; and it doesn't know which of its neurons transmit less than they fire. Here the places that an event
reaches are found once from the network's structure, by a backward pass through layers of ones.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from snn_lowlat import checks
from snn_lowlat.calibration import inputs_of
from snn_lowlat.devices import device_of
from snn_lowlat.encoding import input_events, make_encoder
from snn_lowlat.evaluation.measuring.steps import listed_steps
from snn_lowlat.graph import BATCH_NORMS, Schedule, Site, Walk
from snn_lowlat.graph.vocabulary import functions, modules
from snn_lowlat.images import floating_type, usable_images
from snn_lowlat.model import SpikingModel
from snn_lowlat.neurons import NEURONS, is_cumulative
from snn_lowlat.plan import Plan
from snn_lowlat.progress import progress_bar
from snn_lowlat.simulation import Simulator, is_counted, micro_batches, simulate, transmissions

__all__ = ["EventCounter", "LayerOperations", "Operations", "ann_operations", "measure_operations"]

_INPUT = "input"
_SPATIAL = modules("average pool", "adaptive pool", "resize")
_PADS = modules("pad")
_MOVED = modules("rearrangement")
_SUMS = functions("sum")
_ADDS_PRODUCTS = modules(folds_norm=True)


@dataclass(frozen=True)
class LayerOperations:
    """What one part of a network does for one image, on average over the images measured.

    Parameters
    ----------
    name : str
        The layer's, site's or operation's name in the network's normal form.
    kind : str
        ``"weights"``, ``"neurons"``, ``"pool"``, ``"sum"`` or ``"readout"``.
    events : float
        Events that arrive at a layer with weights; events that neurons send.
    spikes : float
        Spikes that neurons fire. They are the events, but for neurons that only transmit where they switch.
    synaptic_operations : float
        Additions of a weight that an event causes.
    macs : float
        Multiply-accumulates on real numbers.
    additions : float
        All other additions.
    comparisons : float
        With a threshold, or of the values in a max-pool; of a ReLU with 0 in the original network.
    parameter_reads : float
        Weights and biases read.
    state_accesses : float
        Potentials read and written.
    inputs, outputs, parameters, kernel : int
        Sizes that models of memory need: the elements of the input and output of one step, the number of parameters,
        and the weights that one input channel of a convolution has; 0 for other layers.
    """

    name: str
    kind: str
    events: float = 0.0
    spikes: float = 0.0
    synaptic_operations: float = 0.0
    macs: float = 0.0
    additions: float = 0.0
    comparisons: float = 0.0
    parameter_reads: float = 0.0
    state_accesses: float = 0.0
    inputs: int = 0
    outputs: int = 0
    parameters: int = 0
    kernel: int = 0

    @property
    def memory_accesses(self) -> float:
        """Parameters read, and states read and written."""
        return self.parameter_reads + self.state_accesses


@dataclass(frozen=True)
class Operations:
    """What a whole network does for one image, on average over the images measured.

    Parameters
    ----------
    layers : tuple of LayerOperations
        In the order in which they are computed.
    timesteps : int
        The number of steps; 1 for the original network.
    images : int
        How many images were measured; 0 where the operations do not depend on them.
    spiking : bool
        Whether these are a spiking network's.
    """

    layers: tuple[LayerOperations, ...]
    timesteps: int
    images: int
    spiking: bool = True

    def total(self, quantity: str) -> float:
        """Add up one of the quantities of :class:`LayerOperations` over all layers."""
        return float(sum(getattr(layer, quantity) for layer in self.layers))

    @property
    def synaptic_operations(self) -> float:
        """Additions of a weight that an event causes."""
        return self.total("synaptic_operations")

    @property
    def macs(self) -> float:
        """Multiply-accumulates on real numbers."""
        return self.total("macs")

    @property
    def additions(self) -> float:
        """All other additions."""
        return self.total("additions")

    @property
    def comparisons(self) -> float:
        """Comparisons with thresholds and in max-pools."""
        return self.total("comparisons")

    @property
    def memory_accesses(self) -> float:
        """Parameters read, and states read and written."""
        return self.total("memory_accesses")

    @property
    def spikes(self) -> float:
        """Spikes that neurons fire."""
        return self.total("spikes")

    @property
    def firing_rates(self) -> dict[str, float]:
        """Spikes per neuron and step of each layer of neurons."""
        neurons = [layer for layer in self.layers if layer.kind == "neurons"]
        return {layer.name: layer.spikes / (layer.outputs * self.timesteps) for layer in neurons}

    def to_dict(self) -> dict[str, Any]:
        """Return totals and layers as plain values."""
        totals = ("spikes", "synaptic_operations", "macs", "additions", "comparisons", "memory_accesses")
        return {
            "timesteps": self.timesteps,
            "images": self.images,
            "spiking": self.spiking,
            **{name: getattr(self, name) for name in totals},
            "layers": [asdict(layer) for layer in self.layers],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Operations:
        """Read back what :meth:`to_dict` returned."""
        layers = tuple(LayerOperations(**layer) for layer in values["layers"])
        return cls(layers, values["timesteps"], values["images"], values["spiking"])


def measure_operations(
    snn: SpikingModel,
    loader: Iterable[object],
    *,
    images: int | None = None,
    timesteps: int | Sequence[int] | None = None,
    progress: bool = False,
) -> dict[int, Operations]:
    """Run a spiking network on images and count what it does.

    Parameters
    ----------
    snn : SpikingModel
        The converted network. Its normal form runs, so the figures do not depend on the host.
    loader : iterable
        Batches of images, alone or with labels.
    images : int, optional
        Stop after so many; all of them by default.
    timesteps : int or sequence of int, optional
        ``T`` counts for 1, 2, ... T steps, a sequence for those it names; all of the network's steps by default.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict of int to Operations
        By the number of steps.

    Raises
    ------
    ValueError
        If there are no images, or a step is listed that the network does not simulate.
    """
    snn = checks.spiking_model("snn", snn)
    loader = checks.batches("loader", loader)
    if images is not None:
        images = checks.count("images", images)
    graph, plan = snn.normal_form()
    counter = EventCounter(graph, plan, snn.encoder, listed_steps(timesteps, snn.timesteps))
    seen, place = 0, device_of(snn)
    for batch in progress_bar(loader, "counting operations", progress=progress):
        inputs = inputs_of(batch)[: None if images is None else images - seen].to(place)
        if not len(inputs):
            continue
        inputs = usable_images(inputs, floating_type(graph), snn.provenance.input_shape)
        for part in micro_batches(inputs, counter.timesteps, snn.micro_batch):
            counter.run(part, snn.seed)
        seen += len(inputs)
        if images is not None and seen >= images:
            break
    return counter.compute()


class EventCounter:
    """Count the events of each neuron over images, and turn them into operations.

    Memory: one number for each neuron and listed number of steps; spikes are never kept.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    plan : mapping of str to SitePlan
        What each site became.
    encoder : str
        The input coding's name.
    steps : sequence of int
        The numbers of steps to count for, in rising order.
    """

    def __init__(self, graph: fx.GraphModule, plan: Plan, encoder: str, steps: Sequence[int]) -> None:
        self._graph, self._plan = graph, plan
        self._encoder = encoder
        self._steps = list(steps)
        self._windows = is_counted(plan)
        self._images = 0
        self._shape: torch.Size = torch.Size()
        self._simulator: Simulator | None = None
        # By site and number of steps: how many events each neuron sent, and spikes it fired, summed over images.
        self.events: dict[str, dict[int, Tensor]] = {}
        self.spikes: dict[str, dict[int, Tensor]] = {}

    @property
    def timesteps(self) -> int:
        """The largest number of steps."""
        return self._steps[-1]

    def run(self, images: Tensor, seed: int, watch: Callable[[str, Tensor, Tensor], None] | None = None) -> Tensor:
        """Simulate a few images ``[N, ...]`` and count; return the outputs of the longest window ``[T, N, classes]``.

        ``watch(site, currents, spikes)`` sees the longest window too.
        """
        encode = make_encoder(self._encoder)
        # Neurons that see their whole window first fire otherwise in a shorter one.
        for steps in self._steps if self._windows else self._steps[-1:]:
            listed = [steps] if self._windows else self._steps
            inputs = encode(images, steps, seed)
            if watch is not None and steps == self._steps[-1]:
                outputs, _ = simulate(self._graph, self._plan, inputs, _Observer(self, listed, watch))
            else:
                self._simulator = self._simulator or Simulator(self._graph, self._plan, images)
                outputs = self._simulator(inputs, partial(self.observe, listed))
            sent = input_events(self._encoder, images, steps, seed)
            if sent is not None:
                self.add(self.events, _INPUT, listed, sent)
        self._images += len(images)
        self._shape = images.shape[1:]
        return outputs

    def observe(self, listed: Sequence[int], name: str, spikes: Tensor) -> None:
        """Count one layer's spikes ``[T, N, C, ...]`` up to each of the steps listed."""
        plan = self._plan[name]
        self.add(self.spikes, name, listed, spikes)
        if NEURONS[plan.neuron].transmissions is None:
            self.add(self.events, name, listed, spikes)
        else:
            # What is on at the end of a window is switched off after it, whenever that is.
            for steps in listed:
                self.add(self.events, name, [steps], transmissions(spikes[:steps], plan))

    @staticmethod
    def add(totals: dict[str, dict[int, Tensor]], name: str, listed: Sequence[int], sent: Tensor) -> None:
        """Add what neurons sent, ``[T, N, C, ...]``, to their totals for each of the steps listed."""
        counts = (sent != 0).sum(1).cumsum(0).double()
        found = totals.setdefault(name, {})
        for steps in listed:
            number = counts[steps - 1] if len(listed) > 1 else counts[-1]
            found[steps] = found[steps] + number if steps in found else number

    def compute(self) -> dict[int, Operations]:
        """Return the operations for each number of steps."""
        if self._images == 0:
            raise ValueError("there are no images to count operations on: the loader gave none.")
        structure = _Structure(self._graph, self._shape, spiking=True, encoder=self._encoder)
        counted = {}
        for steps in self._steps:
            events = {name: totals[steps] for name, totals in self.events.items()}
            spikes = {name: float(totals[steps].sum()) for name, totals in self.spikes.items()}
            # Neurons that see their window first are updated while they do, and again while they fire.
            updates = {name: steps * (1 if NEURONS[site.neuron].online else 2) for name, site in self._plan.items()}
            layers = tuple(part.operations(events, spikes, self._images, steps, updates) for part in structure.parts)
            counted[steps] = Operations(layers, steps, self._images)
        return counted


class _Observer:
    """Hands what a simulation's neurons fire to a counter, and to somebody else who wants to see their currents too."""

    def __init__(
        self, counter: EventCounter, listed: Sequence[int], watch: Callable[[str, Tensor, Tensor], None]
    ) -> None:
        self._counter, self._listed, self._watch = counter, listed, watch

    def __call__(self, name: str, currents: Tensor, spikes: Tensor) -> None:
        self._counter.observe(self._listed, name, spikes)
        self._watch(name, currents, spikes)


def ann_operations(graph: fx.GraphModule, input_shape: Sequence[int]) -> Operations:
    """Count what the network with its activations does for one image: the same layers, all on real numbers.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    input_shape : sequence of int
        The shape of one input image.
    """
    structure = _Structure(graph, input_shape, spiking=False, encoder="direct")
    return Operations(tuple(part.operations({}, {}, 1, 1, {}) for part in structure.parts), 1, 0, spiking=False)


@dataclass
class _Part:
    """One part of the network: what happens in it once, in every step, and for each event of each neuron."""

    name: str
    kind: str
    sizes: dict[str, int]
    once: dict[str, float]
    each_step: dict[str, float]
    each_event: dict[str, dict[str, Tensor]]
    spiking: bool

    def operations(
        self,
        events: Mapping[str, Tensor],
        spikes: Mapping[str, float],
        images: int,
        steps: int,
        updates: Mapping[str, int],
    ) -> LayerOperations:
        """Work out the operations for one image from the events and spikes of all ``images``."""
        values = {field.name: 0.0 for field in fields(LayerOperations) if field.type == "float"}
        for quantity, number in self.once.items():
            values[quantity] += number
        for quantity, number in self.each_step.items():
            doubled = quantity in ("additions", "state_accesses") and self.kind == "neurons"
            values[quantity] += number * (updates[self.name] if doubled else steps)
        for quantity, reached in self.each_event.items():
            values[quantity] += sum(float((events[name] * places).sum()) for name, places in reached.items()) / images
        if self.kind == "neurons" and self.spiking:
            values["events"] = float(events[self.name].sum()) / images
            values["spikes"] = spikes[self.name] / images
            values["additions"] += values["spikes"]  # each subtracts the threshold
        values["parameter_reads"] += values["synaptic_operations"] + values["macs"]
        numbers: dict[str, Any] = {**values, **self.sizes}
        return LayerOperations(self.name, self.kind, **numbers)


# The entries of a value's batch dimension in the structural pass.
_EVENTS, _REAL, _CONSTANT = range(3)


class _Structure(Walk):
    """Follows events and real numbers through one image's layers, all weights being one.

    A value has three entries in the place of a batch: how many events reach an element if each neuron sends one,
    whether it holds a real number that changes from step to step, and whether it holds one that stays. Operations
    between layers treat the entries of a batch alike, so they run as they are; the first entry's gradient with respect
    to the neurons before it says how many places each of them reaches.
    """

    def __init__(self, graph: fx.GraphModule, input_shape: Sequence[int], *, spiking: bool, encoder: str) -> None:
        super().__init__(Schedule(graph))
        self.parts: list[_Part] = []
        self._spiking = spiking
        self._leaves: dict[str, Tensor] = {}
        device = next((parameter.device for parameter in graph.parameters()), torch.device("cpu"))
        zeros = torch.zeros(1, *input_shape, dtype=torch.float64, device=device)
        with torch.enable_grad():
            direct = encoder == "direct"
            inputs = _value(constant=torch.ones_like(zeros)) if direct else self._source(_INPUT, zeros)
            self._readout(self.run(inputs))
        del self._leaves

    def layer(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        if node.op == "call_module":
            return self._module(str(node.target), self.schedule.modules[node], args[0])
        values: list[Tensor] = [self.values[n] for n in self.schedule.reads[node] if n.op != "get_attr"]
        constants = [value for argument, value in zip(node.args, args, strict=True) if not _is_value(argument)]
        if node.target in _SUMS:
            return self._sum(node, values, constants)
        if node.target is operator.neg:
            return values[0]
        if node.target is operator.mul:
            return values[0] * (torch.as_tensor(constants[0]) != 0)
        if node.target is torch.mean:
            return self._added_up(node.name, args[0], lambda value: value.sum(*args[1:]))
        return super().layer(node, args, kwargs)  # type: ignore[no-any-return]

    def _source(self, name: str, like: Tensor) -> Tensor:
        leaf = torch.ones_like(like, requires_grad=True)
        self._leaves[name] = leaf
        return _value(events=leaf)

    def neurons(self, site: Site, terms: Sequence[Tensor]) -> Tensor:
        name, (value,) = site.name, terms
        number = value[0].numel()
        if not self._spiking:
            self._record(name, "neurons", value, value, once={"comparisons": number})
            return _value(constant=torch.ones_like(value[:1]))
        each_step = {"comparisons": number, "additions": number, "state_accesses": 2 * number}
        self._record(name, "neurons", value, value, each_step=each_step, events={"additions": value[_EVENTS].sum()})
        return self._source(name, value[:1].detach())

    def _readout(self, value: Tensor) -> None:
        number = value[0].numel()
        if self._spiking:
            each_step = {"additions": number, "state_accesses": 2 * number}
            events = {"additions": value[_EVENTS].sum()}
            self._record("readout", "readout", value, value, each_step=each_step, events=events)

    def _module(self, name: str, module: Any, value: Tensor) -> Tensor:
        if isinstance(module, _PADS):
            pad = copy.copy(module)
            pad.value = 0.0
            return pad(value)  # type: ignore[no-any-return]
        if isinstance(module, _MOVED):
            return module(value)  # type: ignore[no-any-return]
        if isinstance(module, _SPATIAL):
            patterns = _patterns(module, value)
            return self._added_up(name, value, lambda part: _spread(patterns, part))
        return self._weights(name, module, value)

    def _weights(self, name: str, module: Any, value: Tensor) -> Tensor:
        real, constant = value[_REAL : _REAL + 1] > 0, value[_CONSTANT:] > 0
        # An event that meets a number which was added up before is added to it.
        reading = torch.cat([value[:1] * ~real, real, constant & ~real])
        results = _ones(module)(reading)
        places = results.flatten(1).sum(1)
        macs = places.detach()
        varies = (results[_EVENTS] + results[_REAL] > 0).double()
        number, outputs = float(varies.sum()), varies.numel()
        weight = module.weight
        self._record(
            name,
            "weights",
            value,
            results,
            once={
                "macs": float(macs[_CONSTANT]),
                "parameter_reads": outputs - number,
                "additions": 0 if self._spiking else outputs,
            },
            each_step={"macs": float(macs[_REAL]), "parameter_reads": number},
            events={
                "synaptic_operations": places[_EVENTS],
                "events": reading[_EVENTS].sum(),
                "additions": (value[:1] * real).sum(),
            },
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            kernel=module.out_channels // module.groups * weight[0, 0].numel() if weight.dim() > 2 else 0,
        )
        return _value(real=varies[None], constant=(results[_CONSTANT:].detach() > 0).double())

    def max_pool(self, node: fx.Node, value: Tensor) -> Tensor:
        module = self.schedule.modules[node]
        patterns = _patterns(module, value)
        varies = ((value[_EVENTS] + value[_REAL]) > 0).double()[None].detach()
        stays = (value[_CONSTANT:] > 0).double() * (1 - varies)
        real, constant = ((_spread(patterns, mask) > 0).double() for mask in (varies, stays))
        compared = _spread(patterns, torch.ones_like(varies)) - 1
        each_step, once = float((compared * real).sum()), float((compared * (1 - real)).sum())
        result = _value(real=real, constant=constant)
        changes = {"comparisons": each_step}
        if self._spiking and is_cumulative(module):
            number = float((value[_REAL] > 0).sum() + real.sum())
            changes |= {"additions": number, "state_accesses": 2 * number}
        events = {"additions": value[_EVENTS].sum()}
        self._record(
            str(node.target), "pool", value, result, once={"comparisons": once}, each_step=changes, events=events
        )
        return result

    def _added_up(self, name: str, value: Tensor, add_up: Callable[[Tensor], Tensor]) -> Tensor:
        """Pass events on through an average; real numbers are added up there."""
        result = add_up(value)
        added = (add_up((value[1:] > 0).double()) - 1).clamp(min=0).flatten(1).sum(1)
        each_step, once = float(added[0]), float(added[1])
        if each_step or once:
            self._record(name, "pool", value, result, once={"additions": once}, each_step={"additions": each_step})
        return result

    def _sum(self, node: fx.Node, values: list[Tensor], constants: list[Any]) -> Tensor:
        if len(values) < 2:
            # A constant of the network goes into the biases.
            return values[0] + 0.0 * torch.as_tensor(constants[0])
        result = values[0] + values[1]
        if not any(self._adds_up(before) for before in node.all_input_nodes):
            both = ((values[0] > 0) & (values[1] > 0)).double().flatten(1).sum(1)
            each_step, once = {"additions": float(both[_REAL])}, {"additions": float(both[_CONSTANT])}
            if both[_REAL] or both[_CONSTANT]:
                self._record(node.name, "sum", result, result, once=once, each_step=each_step)
        return result

    def _adds_up(self, node: fx.Node) -> bool:
        """Say whether a node is a layer whose products can be added straight to the other side of a sum."""
        if not self._spiking or node.op != "call_module" or len(node.users) > 1:
            return False
        return isinstance(self.schedule.modules[node], _ADDS_PRODUCTS)

    def _record(
        self,
        name: str,
        kind: str,
        value: Tensor,
        result: Tensor,
        once: Mapping[str, float] | None = None,
        each_step: Mapping[str, float] | None = None,
        events: Mapping[str, Tensor] | None = None,
        parameters: int = 0,
        kernel: int = 0,
    ) -> None:
        sizes = {
            "inputs": value[0].numel(),
            "outputs": result[0].numel(),
            "parameters": parameters,
            "kernel": kernel,
        }
        reached = {quantity: self._reached(number) for quantity, number in (events or {}).items()}
        part = _Part(name, kind, sizes, dict(once or {}), dict(each_step or {}), reached, self._spiking)
        self.parts.append(part)

    def _reached(self, number: Tensor) -> dict[str, Tensor]:
        if not number.requires_grad:
            return {}
        names = list(self._leaves)
        found = torch.autograd.grad(number, list(self._leaves.values()), allow_unused=True, retain_graph=True)
        return {name: places[0] for name, places in zip(names, found, strict=True) if places is not None}


def _is_value(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op != "get_attr"


def _value(events: Tensor | None = None, real: Tensor | None = None, constant: Tensor | None = None) -> Tensor:
    like = next(part for part in (events, real, constant) if part is not None)
    zeros = torch.zeros_like(like)
    return torch.cat([zeros if part is None else part for part in (events, real, constant)])


def _ones(module: Any) -> Callable[[Tensor], Tensor]:
    """Return a layer with ones for weights and no bias; a batch norm leaves each element where it is."""
    if isinstance(module, BATCH_NORMS):
        return lambda value: value
    layer = copy.deepcopy(module).double()
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.fill_(0)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    return layer  # type: ignore[no-any-return]


@torch.no_grad()
def _patterns(module: Any, value: Tensor) -> list[Tensor]:
    """Return which places of the input each place of the output is made of: ``[out, in]`` in each dimension."""
    patterns = []
    for dimension in range(2, value.dim()):
        size = value.shape[dimension]
        planes = torch.zeros(size, 1, *value.shape[2:], dtype=torch.float64, device=value.device)
        planes.transpose(1, dimension)[torch.arange(size), torch.arange(size)] = 1
        found = module(planes).movedim(dimension, 0).flatten(2).ne(0).any(2)
        patterns.append(found.double())
    return patterns


def _spread(patterns: Sequence[Tensor], value: Tensor) -> Tensor:
    """Add up the places that each place of the output is made of, ``[N, C, ...]``."""
    for dimension, pattern in enumerate(patterns, start=2):
        value = torch.tensordot(value, pattern, dims=([dimension], [1])).movedim(-1, dimension)
    return value
