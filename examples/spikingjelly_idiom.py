"""Convert a network in two lines without leaving SpikingJelly: its converter, step modes, monitors and neurons.

python examples/spikingjelly_idiom.py
"""

from __future__ import annotations

import torch
from spikingjelly.activation_based import functional, monitor, neuron
from spikingjelly.activation_based.ann2snn import FXConverter
from trained_digits import trained_digits

from snn_lowlat.spikingjelly import OptimizedPotentialRecipe

TIMESTEPS = 8


def main() -> float:
    model, data = trained_digits()

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
