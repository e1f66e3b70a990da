"""Convert a network in two lines without leaving SpikingJelly: its converter, step modes, monitors and neurons.

python examples/spikingjelly_idiom.py
"""

from __future__ import annotations

import torch
from spikingjelly.activation_based import functional, monitor, neuron
from spikingjelly.activation_based.ann2snn import FXConverter

from snn_lowlat.adapters.spikingjelly import OptimizedPotentialRecipe
from snn_lowlat.data import Digits
from snn_lowlat.models import SmallCNN

TIMESTEPS = 8


def train(model: torch.nn.Module, data: Digits, epochs: int = 5) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(epochs):
        for images, labels in data.train_dataloader():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    model.eval()


def main() -> float:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = Digits(batch_size=64)
    data.setup()
    model = SmallCNN(in_channels=1, num_classes=10, image_size=8)
    train(model, data)

    # The two lines:
    recipe = OptimizedPotentialRecipe(calibration=data.calibration_dataloader(500, 100), timesteps=TIMESTEPS)
    network = FXConverter(recipe).convert(model)

    # A time loop in single-step mode, as everywhere in SpikingJelly.
    images, labels = next(iter(data.test_dataloader()))
    with torch.no_grad(), monitor.OutputMonitor(network, neuron.ActivationAwareIFNode) as spikes:
        functional.reset_net(network)
        logits = sum(network(images) for _ in range(TIMESTEPS))
        accuracy = float((logits.argmax(1) == labels).float().mean())
        ann_accuracy = float((model(images).argmax(1) == labels).float().mean())
    print(f"accuracy after {TIMESTEPS} steps {accuracy:.1%}, the network's own {ann_accuracy:.1%}")
    for layer in spikes.monitored_layers:
        print(f"{layer}: {torch.stack(spikes[layer]).mean():.3f} spikes per neuron and step")

    # The same in multi-step mode: [T, N, ...] in, [T, N, classes] out.
    functional.set_step_mode(network, "m")
    functional.reset_net(network)
    with torch.no_grad():
        sequence = network(images.expand(TIMESTEPS, *images.shape))
    print(f"largest difference between the step modes: {(sequence.sum(0) - logits).abs().max():.1e}")
    return accuracy


if __name__ == "__main__":
    main()
