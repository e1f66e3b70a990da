"""How far a NIR graph is from the network that it was written from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snn_lowlat.devices import device_of
from snn_lowlat.model import SpikingModel
from snn_lowlat.simulation import micro_batches

__all__ = ["Drift", "LayerDrift", "measure"]


@dataclass(frozen=True)
class LayerDrift:
    """How one layer's spikes differ between a network and its NIR graph.

    Attributes
    ----------
    layer : str
        The layer's name.
    spikes : int
        Spikes that the network's neurons fired.
    differing : int
        Spikes that only one of the two fired, as :func:`~snn_lowlat.nir.from_nir` runs the graph.
    differing_folded : int
        The same when the weights are used as they stand, with the amplitudes in them.
    """

    layer: str
    spikes: int
    differing: int
    differing_folded: int


@dataclass(frozen=True)
class Drift:
    """How far a NIR graph is from the network that it was written from, on some images.

    Weights that hold the amplitudes are rounded at another place than weights and amplitudes apart, so a potential that
    comes within a rounding error of its threshold may fire in one network and not in the other; other spikes follow
    from that one. The graph says how its weights were rounded, and ``from_nir`` computes just what the network does.
    Readers that do not look for this see the drift that is called ``folded``.

    Attributes
    ----------
    images, timesteps : int
        What was run.
    layers : tuple of LayerDrift
        The layers of neurons, in order.
    logits, logits_folded : float
        The largest difference of the readouts after the last step.
    """

    images: int
    timesteps: int
    layers: tuple[LayerDrift, ...]
    logits: float
    logits_folded: float

    @property
    def differing(self) -> int:
        """Spikes that differ, in all layers."""
        return sum(layer.differing for layer in self.layers)

    @property
    def differing_folded(self) -> int:
        """Spikes that differ in all layers when the weights are used as they stand."""
        return sum(layer.differing_folded for layer in self.layers)

    def __str__(self) -> str:
        rows = [("layer", "spikes", "differing", "folded")]
        rows += [(n.layer, str(n.spikes), str(n.differing), str(n.differing_folded)) for n in self.layers]
        rows.append(("logits", "", f"{self.logits:.1e}", f"{self.logits_folded:.1e}"))
        width = max(len(name) for name, *_ in rows)
        table = "".join(f"\n  {name:<{width}} {a:>12} {b:>12} {c:>12}" for name, a, b, c in rows)
        return f"drift on {self.images} images in {self.timesteps} steps:{table}"


@torch.no_grad()
def measure(snn: SpikingModel, read: SpikingModel, folded: SpikingModel, images: Tensor) -> Drift:
    """Compare a network with two readings of its graph, spike by spike.

    Parameters
    ----------
    snn : SpikingModel
        The network.
    read, folded : SpikingModel
        Its graph as it is read, and with the weights as they stand; in the same host.
    images : Tensor
        A batch ``[N, ...]``.
    """
    device = device_of(snn)
    others = [read.to(device), folded.to(device)]
    spikes: Counter[str] = Counter()
    differing: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    largest = [0.0, 0.0]
    for part in micro_batches(images.to(device), snn.timesteps, snn.micro_batch):
        expected, logits = _run(snn, part)
        spikes.update({layer: int(fired.sum()) for layer, fired in expected.items()})
        for which, other in enumerate(others):
            found, other_logits = _run(other, part)
            differing[which].update({layer: int((expected[layer] != found[layer]).sum()) for layer in expected})
            largest[which] = max(largest[which], float((logits - other_logits).abs().max()))
    layers = tuple(LayerDrift(name, spikes[name], differing[0][name], differing[1][name]) for name in snn.plan)
    return Drift(len(images), snn.timesteps, layers, *largest)


def _run(snn: SpikingModel, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return which neurons fired in which steps, layer by layer, and the readout after the last step."""
    fired: dict[str, Tensor] = {}

    def watch(name: str) -> object:
        def hook(module: object, inputs: Sequence[Tensor], output: Tensor) -> None:
            fired[name] = output.flatten() != 0

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in snn.spiking_layers().items()]  # type: ignore[arg-type]
    try:
        logits = snn.readout(images)[-1]
    finally:
        for handle in handles:
            handle.remove()
    return fired, logits
