"""Compare this package's strategies with SpikingJelly's stock recipes: the table of the README.

python examples/compare_with_spikingjelly.py --weights resnet20.th --data DIR

Every method gets the same trained ResNet-20, the same 1,000 calibration images from CIFAR-10's training split, direct
input and online integrate-and-fire neurons; those of ``value_range`` see their whole window before they fire, so that T
steps of a layer are 20 T from the first input to the last output. Rows appear as they are computed, and go to the
output file at once.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.ann2snn import FXConverter
from spikingjelly.activation_based.ann2snn.recipes import LocalThresholdBalancingRecipe, RateCodingRecipe
from torch import Tensor, nn

import snn_lowlat
from snn_lowlat.data import CIFAR10
from snn_lowlat.models import ResNet20, load_weights
from snn_lowlat.models.resnet import Subsample

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHOSEN = {"threshold_scale": 0.85, "initial_potential": 0.3}  # on training images that calibration does not see

STOCK = {
    "SpikingJelly RateCoding, max": lambda loader: RateCodingRecipe(loader, mode="max"),
    "SpikingJelly RateCoding, 99.9 %": lambda loader: RateCodingRecipe(loader, mode="99.9%"),
    "SpikingJelly RateCoding, 99.9 %, channel-wise, half threshold": lambda loader: RateCodingRecipe(
        loader, mode="99.9%", channel_wise=True, half_threshold=True
    ),
    "SpikingJelly RateCoding, 99 %, channel-wise, half threshold": lambda loader: RateCodingRecipe(
        loader, mode="99%", channel_wise=True, half_threshold=True
    ),
    # Its thresholds grow a little with each batch: its authors use 1,000 batches and more.
    "SpikingJelly LocalThresholdBalancing": lambda loader: LocalThresholdBalancingRecipe(list(loader) * 100),
}
OURS = {
    "threshold_balancing": ("threshold_balancing", (), {}),
    "optimized_potential": ("optimized_potential", (), {}),
    "optimized_potential + bias_correction": ("optimized_potential", ("bias_correction",), {}),
    "optimized_potential (scale 0.85, v0 0.3) + bias_correction": ("optimized_potential", ("bias_correction",), CHOSEN),
    "value_range": ("value_range", (), {}),
    "value_range + bias_correction": ("value_range", ("bias_correction",), {}),
}


class ConcatenatedShortcut(nn.Module):
    """ResNet-20's shortcut in words that SpikingJelly's stock converter knows: it refuses ``F.pad``."""

    def __init__(self, shortcut: Subsample) -> None:
        super().__init__()
        self.before, self.after, self.stride = shortcut.before, shortcut.after, shortcut.stride

    def forward(self, images: Tensor) -> Tensor:
        kept = images[:, :, :: self.stride, :: self.stride]
        return torch.cat([kept[:, : self.before] * 0.0, kept, kept[:, : self.after] * 0.0], 1)


def for_stock_converter(model: nn.Module) -> nn.Module:
    """Copy the network with its padded shortcuts rewritten; it computes the same."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, Subsample):
                setattr(module, name, ConcatenatedShortcut(child))
    return model


def stock_accuracies(recipe: object, model: nn.Module, test: Iterable[tuple[Tensor, Tensor]], steps: list[int]) -> list:
    """Run SpikingJelly's network step by step, as its tutorial does; accuracies at ``steps`` from one pass."""
    network = FXConverter(recipe).convert(for_stock_converter(model)).eval()
    correct, total = dict.fromkeys(steps, 0), 0
    with torch.no_grad():
        for images, labels in test:
            functional.reset_net(network)
            output = 0
            for t in range(1, max(steps) + 1):
                output = output + network(images)
                if t in correct:
                    correct[t] += int((output.argmax(1) == labels).sum())
            total += len(labels)
    return [correct[t] / total for t in steps]


def our_accuracies(
    name: str, refinements: tuple, options: dict, model: nn.Module, data: CIFAR10, steps: list[int]
) -> list:
    """Convert for each number of steps, and take the accuracy after the last one.

    The largest activation does not depend on the number of steps, so one conversion serves the baseline.
    """
    if name == "threshold_balancing":
        snn = snn_lowlat.convert(model, data.calibration_dataloader(1000, 100), strategy=name, timesteps=max(steps))
        return list(snn_lowlat.evaluate(snn, data.test_dataloader(), timesteps=steps).accuracies.values())
    accuracies = []
    for t in steps:
        calibration = data.calibration_dataloader(1000, 100)
        snn = snn_lowlat.convert(model, calibration, strategy=name, timesteps=t, refinements=refinements, **options)
        accuracies.append(snn_lowlat.evaluate(snn, data.test_dataloader(), timesteps=[t]).accuracy)
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="checkpoint of a CIFAR-10 ResNet-20 with option-A shortcuts")
    parser.add_argument("--data", required=True, help="folder with cifar10.npz, or torchvision's CIFAR-10 files")
    parser.add_argument("--images", type=int, help="test images; all by default")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--methods", nargs="+", choices=[*STOCK, *OURS], default=[*STOCK, *OURS])
    parser.add_argument("--output", type=Path, default=Path("comparison.md"))
    options = parser.parse_args()

    data = CIFAR10(root=options.data, mean=MEAN, std=STD, augment=False, batch_size=100, limit_test=options.images)
    data.setup()
    model = ResNet20().eval()
    load_weights(model, options.weights)
    columns = len(options.timesteps) + 1
    rows = [f"| method | {' | '.join(f'T = {t}' for t in options.timesteps)} |", "|---" * columns + "|"]
    print(*rows, sep="\n")
    for name in options.methods:
        start = time.perf_counter()
        if name in STOCK:
            recipe = STOCK[name](data.calibration_dataloader(1000, 100))
            accuracies = stock_accuracies(recipe, model, data.test_dataloader(), options.timesteps)
        else:
            accuracies = our_accuracies(*OURS[name], model, data, options.timesteps)
        rows.append(f"| {name} | {' | '.join(f'{accuracy:.2%}' for accuracy in accuracies)} |")
        print(f"{rows[-1]} {time.perf_counter() - start:.0f} s", flush=True)
        options.output.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
