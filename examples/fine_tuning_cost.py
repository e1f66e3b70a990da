"""How long a batch of fine-tuning takes here and in SpikingJelly's multi-step mode, forwards and backwards.

python examples/fine_tuning_cost.py --images 32 64 128

A ResNet-20 with random weights and images, without batch norms, two steps, one thread; thresholds and leaks are trained
here, and can't be there. The networks take turns in one process; figures are medians of the process's CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

import snn_lowlat
from snn_lowlat.models import ResNet20
from snn_lowlat.neurons.surrogate import SpikeOptions
from snn_lowlat.training.spiking_network import TrainableNetwork


def measure(size: int, rounds: int, timesteps: int = 2) -> dict[str, float]:
    """Return the median seconds of a batch of so many images: the original network, SpikingJelly, this package."""
    torch.manual_seed(0)
    images, labels = torch.randn(size, 3, 32, 32), torch.randint(10, (size,))
    snn = snn_lowlat.convert(ResNet20().eval(), [torch.randn(64, 3, 32, 32)], timesteps=timesteps)
    graph, plan = snn.normal_form()
    ours = TrainableNetwork(graph, plan, images.shape[1:], timesteps, SpikeOptions())
    for name in snn.spiking_layers():
        options = {"v_threshold": float(plan[name].threshold.mean()), "v_reset": None, "detach_reset": True}
        setattr(snn.network, name, neuron.IFNode(surrogate_function=surrogate.ATan(), **options))
    functional.set_step_mode(snn.network, "m")
    steps = images.expand(timesteps, *images.shape).contiguous()

    def theirs(_: torch.Tensor) -> torch.Tensor:
        functional.reset_net(snn.network)
        return snn.network(steps).mean(0)

    networks = {"ANN": (graph, graph), "SpikingJelly": (snn.network, theirs), "snn_lowlat": (ours, ours)}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for network, _ in networks.values():
        network.requires_grad_(True).train()
    for _ in range(rounds + 1):  # the first is not measured
        for name, (network, run) in networks.items():
            network.zero_grad()
            start = time.process_time()
            nn.functional.cross_entropy(run(images), labels).backward()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[32, 128], help="images in a batch")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in options.images:
        seconds = measure(size, options.rounds)
        shown = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
        ratio = seconds["snn_lowlat"] / seconds["SpikingJelly"]
        print(f"{size} images: {shown}; {ratio:.2f} times SpikingJelly's time", flush=True)


if __name__ == "__main__":
    main()
