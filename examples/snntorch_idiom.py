"""Convert a network into snnTorch's neurons, step it in a time loop, and fine-tune it as any snnTorch network.

python examples/snntorch_idiom.py
"""

from __future__ import annotations

import torch
from snntorch.functional import probe
from torch import nn
from trained_digits import trained_digits

from snn_lowlat import snntorch
from snn_lowlat.data import Digits

TIMESTEPS = 2


def run(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Reset the network, step it through the window, and sum the outputs."""
    snntorch.reset(network)
    return sum(network(images) for _ in range(TIMESTEPS))


@torch.no_grad()
def accuracy(network: nn.Module, data: Digits) -> float:
    right = [run(network, images).argmax(1) == labels for images, labels in data.test_dataloader()]
    return float(torch.cat(right).float().mean())


def fine_tune(network: nn.Module, data: Digits, epochs: int = 3) -> None:
    """Backpropagation through time with snnTorch's surrogate gradients: weights, thresholds and leaks learn."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(epochs):
        for images, labels in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(network, images), labels).backward()
            optimizer.step()


def main() -> tuple[float, float]:
    model, data = trained_digits()

    network = snntorch.convert(
        model,
        data.calibration_dataloader(500, 100),
        timesteps=TIMESTEPS,
        learn_threshold=True,
        learn_beta=True,
        spike_grad=snntorch.Surrogate("fast_sigmoid", slope=5),
    )
    before = accuracy(network, data)
    fine_tune(network, data)
    after = accuracy(network, data)
    print(f"accuracy after {TIMESTEPS} steps: converted {before:.1%}, fine-tuned {after:.1%}")

    # snnTorch's monitors see the neurons.
    images, _ = next(iter(data.test_dataloader()))
    spikes = probe.OutputMonitor(network, snntorch.IntegrateAndFire)
    with torch.no_grad():
        run(network, images)
    spikes.remove_hooks()
    for layer in spikes.monitored_layers:
        print(f"{layer}: {(torch.stack(spikes[layer]) != 0).float().mean():.3f} spikes per neuron and step")
    return before, after


if __name__ == "__main__":
    main()
