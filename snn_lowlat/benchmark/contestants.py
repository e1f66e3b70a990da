"""Who simulates: the original network, and the ways in which each library runs it as a spiking one.

Each library is imported when it is first needed, and what it can't run is left to be reported.
"""

from __future__ import annotations

import contextlib
import copy
import io
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat.benchmark.networks import Subject
from snn_lowlat.convert import Conversion, convert
from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.graph import current_shapes, find_sites, without_ceilings
from snn_lowlat.graph.vocabulary import module_of
from snn_lowlat.int8 import has_integer_kernels
from snn_lowlat.neurons import per_channel
from snn_lowlat.plan import Plan

__all__ = [
    "ANN",
    "OURS",
    "SIMULATION",
    "SNNTORCH_STEPS",
    "SPIKINGJELLY_SEQUENCE",
    "SPIKINGJELLY_STEPS",
    "Contestant",
    "Run",
    "at_percentiles",
    "by_snntorch",
    "by_spikingjelly",
    "multi_step",
    "step_by_step",
    "step_layers",
]

ANN = "ANN"
"""The contestant that the others are compared with."""

OURS = "snn_lowlat, fp32"
"""The contestant that a benchmark's result is about."""

SPIKINGJELLY_STEPS = "SpikingJelly, step by step"
SPIKINGJELLY_SEQUENCE = "SpikingJelly, multi-step"
SNNTORCH_STEPS = "snnTorch, step by step"
"""The hosts' own ways."""

Run = Callable[[Tensor], Tensor]
"""Maps a batch of images ``[N, C, H, W]`` to logits ``[N, classes]``, from rest; fine-tuning leaves gradients."""


@dataclass(frozen=True)
class Contestant:
    """One way of running a network.

    Parameters
    ----------
    name : str
        Its name in the results.
    prepare : callable
        ``prepare(subject, timesteps)`` converts the network and returns its :data:`Run` for so many steps. It raises
        whatever it likes if that can't be done.
    precision : str
        Of the weights.
    """

    name: str
    prepare: Callable[[Subject, int], Run]
    precision: str = "fp32"


def _ann(subject: Subject, timesteps: int) -> Run:
    return subject.graph


def _spikingjelly_steps(subject: Subject, timesteps: int) -> Run:
    return step_by_step(by_spikingjelly(subject), timesteps)


def _spikingjelly_sequence(subject: Subject, timesteps: int) -> Run:
    return multi_step(by_spikingjelly(subject), timesteps)


def step_by_step(network: Any, timesteps: int) -> Run:
    """Step through time as SpikingJelly's tutorial does."""
    from spikingjelly.activation_based import functional

    return _stepped(network, timesteps, lambda: functional.reset_net(network))


def _stepped(network: Any, timesteps: int, reset: Callable[[], object]) -> Run:
    def run(images: Tensor) -> Tensor:
        reset()
        return sum(network(images) for _ in range(timesteps)) / timesteps  # type: ignore[no-any-return]

    return run


def multi_step(network: Any, timesteps: int) -> Run:
    """Give all steps to each layer at once, in SpikingJelly's multi-step mode."""
    from spikingjelly.activation_based import functional

    functional.set_step_mode(network, "m")

    def run(images: Tensor) -> Tensor:
        functional.reset_net(network)
        return network(images.expand(timesteps, *images.shape)).mean(0)  # type: ignore[no-any-return]

    return run


def by_spikingjelly(subject: Subject) -> Any:
    """Convert with SpikingJelly's own recipe, and thresholds at the 99.9th percentile of each layer's activations."""
    from spikingjelly.activation_based.ann2snn import FXConverter, RateCodingRecipe

    # The recipe shows a progress bar, whether one likes it or not.
    with contextlib.redirect_stderr(io.StringIO()):
        recipe = RateCodingRecipe(subject.calibration, mode="99.9%")
        return FXConverter(recipe).convert(_with_concatenated_zeros(subject.graph)).eval()


def _with_concatenated_zeros(graph: fx.GraphModule) -> fx.GraphModule:
    """Copy a network with zero channels concatenated: SpikingJelly's converter (2.0.0) refuses to pad."""
    graph = copy.deepcopy(graph)
    for node in list(graph.graph.nodes):
        layer = module_of(graph, node)
        if not isinstance(layer, nn.ConstantPad3d) or any(layer.padding[:4]) or layer.value != 0:
            continue
        kept = node.args[0]
        with graph.graph.inserting_before(node):
            before, after = (_zeros(graph.graph, kept, channels) for channels in layer.padding[4:])
            node.replace_all_uses_with(graph.graph.call_function(torch.cat, ([*before, kept, *after], 1)))
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return graph


def _zeros(graph: fx.Graph, like: fx.Node, channels: int) -> list[fx.Node]:
    if not channels:
        return []
    some = graph.call_function(operator.getitem, (like, (slice(None), slice(channels))))
    return [graph.call_function(operator.mul, (some, 0.0))]


def _snntorch_steps(subject: Subject, timesteps: int) -> Run:
    network, layers = by_snntorch(subject, timesteps)
    return step_layers(network, layers, timesteps)


def by_snntorch(subject: Subject, timesteps: int) -> tuple[fx.GraphModule, list[Any]]:
    """Put ``snn.Leaky`` neurons without a leak in the places of the ReLUs; return them too.

    snnTorch has no converter: thresholds are at the 99.9th percentile of each layer's activations here too.
    """
    import snntorch

    network, plan = at_percentiles(subject, timesteps)
    shapes = current_shapes(network, subject.calibration[0].shape[1:])
    layers = []
    for site in find_sites(network).values():
        currents = torch.zeros(1, *shapes[site.name])
        layer = snntorch.Leaky(
            beta=1.0,
            threshold=per_channel(plan[site.name].threshold, currents),
            graded_spikes_factor=per_channel(plan[site.name].amplitude, currents),
            reset_mechanism="subtract",
            init_hidden=True,
        )
        # snnTorch (1.0.0) keeps every neuron for good in this list, and with it the potentials of a whole batch.
        snntorch.SpikingNeuron.instances.remove(layer)
        setattr(network, site.name, layer)
        layers.append(layer)
    return network.eval(), layers


def at_percentiles(subject: Subject, timesteps: int) -> tuple[fx.GraphModule, Plan]:
    """Return a copy of a network, and neurons with the 99.9th percentile of each layer's activations as thresholds."""
    conversion = Conversion.of("threshold_balancing", subject.calibration, timesteps, threshold="percentile")
    network = without_ceilings(subject.graph)
    conversion.calibrate(network)
    _, plan = conversion.plan(network)
    return network, plan


def step_layers(network: fx.GraphModule, layers: Sequence[Any], timesteps: int) -> Run:
    """Step through time, with these layers of snnTorch's neurons at rest before."""
    return _stepped(network, timesteps, lambda: [layer.reset_mem() for layer in layers])


def _by_this_package(precision: str) -> Callable[[Subject, int], Run]:
    def prepare(subject: Subject, timesteps: int) -> Run:
        if precision == "int8" and not has_integer_kernels():
            raise SnnLowlatError("this processor, or build of PyTorch, has no exact convolutions of 8 bits")
        options: dict[str, Any] = {"strategy": "optimized_potential", "timesteps": timesteps, "precision": precision}
        return convert(subject.model, subject.calibration, **options).simulate

    return prepare


SIMULATION = (
    Contestant(ANN, _ann),
    Contestant(SPIKINGJELLY_STEPS, _spikingjelly_steps),
    Contestant(SPIKINGJELLY_SEQUENCE, _spikingjelly_sequence),
    Contestant(SNNTORCH_STEPS, _snntorch_steps),
    Contestant(OURS, _by_this_package("fp32")),
    Contestant("snn_lowlat, int8", _by_this_package("int8"), "int8"),
)
"""Who simulates a network, in the order in which they take turns."""
