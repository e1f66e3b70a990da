"""Count what two events a neuron save, and compare the rules by which neurons switch: the tables of the README.

python examples/temporal_switch_operations.py --weights resnet20.th --data DIR

The same trained ResNet-20, 1,000 calibration images, direct input and ``bias_correction`` throughout. The first table
compares temporal-switch neurons with rate-coded ones: those of ``value_range``, which are exactly as accurate with as
many steps, and online integrate-and-fire neurons. The second compares the rules by which neurons switch. Additions are
those that events cause, on average over the synapses that events can reach; each reads its weight once. Rows appear as
they are computed, and go to the output file at once.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from compare_with_spikingjelly import CHOSEN, MEAN, STD
from torch import Tensor, nn

import snn_lowlat
from snn_lowlat.data import CIFAR10
from snn_lowlat.evaluation.measuring.operations import EventCounter, ann_operations
from snn_lowlat.models import ResNet20, load_weights
from snn_lowlat.simulation import micro_batches, transmissions

RATE_CODED = {
    "value_range": {},
    "optimized_potential": CHOSEN,
}
RULES = {
    "windowed": {},
    "pipelined, 3/4": {"output": "pipelined"},
    "pipelined, 1/2": {"output": "pipelined"},
    "pipelined, 1/4": {"output": "pipelined"},
    "online, hysteresis 1": {"output": "online"},
    "online, hysteresis 2": {"output": "online", "hysteresis": 2.0},
}


@dataclass(frozen=True)
class Measured:
    """One network: its accuracy; the most events that a neuron sent for an image; additions, in all and a synapse."""

    accuracy: float
    latency: int
    most: int
    additions: float
    per_synapse: float

    def row(self, *first: object) -> str:
        """Return a line of a table."""
        cells = (f"{self.accuracy:.2%}", self.latency, self.most, f"{self.additions / 1e6:.1f} M")
        return f"| {' | '.join(map(str, (*first, *cells)))} | {self.per_synapse:.2f} |"


def measure(
    strategy: str, timesteps: int, model: nn.Module, data: CIFAR10, counted: int, **options: object
) -> Measured:
    """Convert, evaluate on the data's test images, and count the events of the first ``counted`` one by one."""
    calibration = data.calibration_dataloader(1000, 100)
    options["refinements"] = ["bias_correction"]
    snn = snn_lowlat.convert(model, calibration, strategy=strategy, timesteps=timesteps, **options)
    accuracy = snn_lowlat.evaluate(snn, data.test_dataloader(), timesteps=[timesteps]).accuracy
    graph, plan = snn.normal_form()
    counter = EventCounter(graph, plan, snn.encoder, [timesteps])
    most = 0

    def watch(name: str, currents: Tensor, spikes: Tensor) -> None:
        nonlocal most
        most = max(most, int(transmissions(spikes, plan[name]).abs().sum(0).max()))

    images = torch.cat([pictures for pictures, _ in data.test_dataloader()])[:counted]
    for part in micro_batches(images, timesteps):
        counter.run(part, 0, watch)
    layers = counter.compute()[timesteps].layers
    additions = sum(layer.synaptic_operations for layer in layers)
    fed_by_events = {layer.name for layer in layers if layer.kind == "weights" and not layer.macs}
    dense = ann_operations(graph, snn.provenance.input_shape).layers
    synapses = sum(layer.macs for layer in dense if layer.name in fed_by_events)
    return Measured(accuracy, snn.latency_steps, most, additions, additions / synapses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="checkpoint of a CIFAR-10 ResNet-20 with option-A shortcuts")
    parser.add_argument("--data", required=True, help="folder with cifar10.npz, or torchvision's CIFAR-10 files")
    parser.add_argument("--images", type=int, help="test images for the accuracy; all by default")
    parser.add_argument("--counted", type=int, default=1000, help="test images whose events are counted")
    parser.add_argument("--timesteps", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    parser.add_argument("--rate-coded", nargs="*", choices=RATE_CODED, default=list(RATE_CODED))
    parser.add_argument("--rules", type=int, nargs="*", default=[16, 64], help="windows to compare the rules at")
    parser.add_argument("--output", type=Path, default=Path("temporal_switch.md"))
    options = parser.parse_args()

    data = CIFAR10(root=options.data, mean=MEAN, std=STD, augment=False, batch_size=100, limit_test=options.images)
    data.setup()
    model = ResNet20().eval()
    load_weights(model, options.weights)
    heads = ("steps", "accuracy", "latency", "most events", "additions", "a synapse")
    rows: list[str] = []

    def add(*lines: str, start: float | None = None) -> None:
        rows.extend(lines)
        print(*lines, "" if start is None else f"{time.perf_counter() - start:.0f} s", flush=True)
        options.output.write_text("\n".join(rows) + "\n")

    for title, windows, contestants in (
        (
            "network",
            options.timesteps,
            {"temporal_switch": {}, **{name: RATE_CODED[name] for name in options.rate_coded}},
        ),
        ("rule", options.rules, RULES),
    ):
        if windows:
            add(f"\n| {title} | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
        for timesteps in windows:
            for name, given in contestants.items():
                chosen = dict(given)
                if name.startswith("pipelined"):
                    share = name.partition(", ")[2].split("/")
                    chosen["gap"] = timesteps * int(share[0]) // int(share[1])
                strategy = "temporal_switch" if title == "rule" else name
                start = time.perf_counter()
                found = measure(strategy, timesteps, model, data, options.counted, **chosen)
                add(found.row(name, timesteps), start=start)


if __name__ == "__main__":
    main()
