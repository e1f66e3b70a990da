"""Measure what calibration costs beside a plain forward pass over the same images.

python examples/calibration_cost.py --data DIR [--weights resnet20.th] [--rounds 7] [--threads 1]

The forward pass, this package's calibration with 99.9 % quantiles, and SpikingJelly's conversion at 99.9 % alternate in
one process; printed are medians of the process's CPU time and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from compare_with_spikingjelly import MEAN, STD, for_stock_converter
from spikingjelly.activation_based.ann2snn import FXConverter
from spikingjelly.activation_based.ann2snn.recipes import RateCodingRecipe

from snn_lowlat.calibration import calibrate
from snn_lowlat.data import CIFAR10
from snn_lowlat.graph import normalise
from snn_lowlat.models import ResNet20, load_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with cifar10.npz, or torchvision's CIFAR-10 files")
    parser.add_argument("--weights", help="checkpoint of a CIFAR-10 ResNet-20; random weights without it")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    data = CIFAR10(root=options.data, mean=MEAN, std=STD, augment=False)
    data.setup()
    batches = list(data.calibration_dataloader(options.images, options.batch_size))
    images = [batch[0] for batch in batches]
    model = ResNet20().eval()
    if options.weights:
        load_weights(model, options.weights)
    graph, stock_model = normalise(model, images[0]), for_stock_converter(model)

    def forward() -> None:
        with torch.no_grad():
            for batch in images:
                graph(batch)

    def ours() -> None:
        for site in calibrate(graph, images).values():
            site.histogram.quantile(0.999)

    def stock() -> None:
        FXConverter(RateCodingRecipe(batches, mode="99.9%")).convert(stock_model)

    contestants: dict[str, Callable[[], None]] = {
        "forward pass": forward,
        "snn_lowlat, 99.9 %": ours,
        "SpikingJelly RateCodingRecipe, 99.9 %": stock,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    plain = statistics.median(times["forward pass"])
    print(f"{options.images} images, {options.threads} thread(s), {options.rounds} rounds, torch {torch.__version__}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name}: {median:.3f} s, {median / plain:.2f} x (from {min(values):.3f} to {max(values):.3f} s)")


if __name__ == "__main__":
    main()
