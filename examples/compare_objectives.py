"""Compare what the search of ``distribution_aware`` can make small, beside ``optimized_potential``.

python examples/compare_objectives.py --weights resnet20.th --data DIR

Every row is one strategy, converted anew for each number of steps, without and with bias correction, from the same
calibration images of CIFAR-10's training split. Rows appear as they are computed, and go to the output file at once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from compare_with_spikingjelly import MEAN, STD
from torch import nn

import snn_lowlat
from snn_lowlat.data import CIFAR10
from snn_lowlat.evaluation import Report
from snn_lowlat.models import ResNet20, load_weights

PAPER = {"objective": "signed", "percentile_source": "all", "granularity": "layer"}

METHODS = {
    "optimized_potential, max": ("optimized_potential", {"threshold": "max"}),
    "optimized_potential, mmse": ("optimized_potential", {"threshold": "mmse"}),
    "distribution_aware, signed": ("distribution_aware", {"objective": "signed"}),
    "distribution_aware, mse": ("distribution_aware", {"objective": "mse"}),
    "distribution_aware, signed_then_mse": ("distribution_aware", {"objective": "signed_then_mse"}),
    "distribution_aware, signed_then_mse, percentiles of all": ("distribution_aware", {"percentile_source": "all"}),
    "distribution_aware, signed_then_mse, by layer": ("distribution_aware", {"granularity": "layer"}),
    "distribution_aware, as in the paper (signed, percentiles of all, by layer)": ("distribution_aware", PAPER),
}


def measure(
    method: str,
    refinements: tuple[str, ...],
    model: nn.Module,
    data: CIFAR10,
    timesteps: int,
    calibration_images: int,
    ann: nn.Module | None = None,
) -> Report:
    """Convert for one number of steps, and measure after the last one."""
    strategy, options = METHODS[method]
    calibration = data.calibration_dataloader(calibration_images, 100)
    snn = snn_lowlat.convert(
        model, calibration, strategy=strategy, timesteps=timesteps, refinements=refinements, **options
    )
    return snn_lowlat.evaluate(snn, data.test_dataloader(), ann=ann, timesteps=[timesteps])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="checkpoint of a CIFAR-10 ResNet-20 with option-A shortcuts")
    parser.add_argument("--data", required=True, help="folder with cifar10.npz, or torchvision's CIFAR-10 files")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=int, help="test images; all by default")
    parser.add_argument("--calibration-images", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("objectives.md"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    data = CIFAR10(root=options.data, mean=MEAN, std=STD, augment=False, batch_size=100, limit_test=options.images)
    data.setup()
    model = ResNet20().eval()
    load_weights(model, options.weights)
    columns = [(refinements, t) for refinements in ((), ("bias_correction",)) for t in options.timesteps]
    titles = [" + ".join([f"T = {t}", *refinements]) for refinements, t in columns]
    rows = [f"| accuracy in % | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    print(*rows, sep="\n")
    ann = model
    for method in options.methods:
        start = time.perf_counter()
        cells = []
        for refinements, t in columns:
            report = measure(method, refinements, model, data, t, options.calibration_images, ann)
            if ann is not None:  # its accuracy is the same in every cell
                rows.append(f"| ANN |{f' {report.ann_accuracy:.2%} |' * len(columns)}".replace("%", ""))
                print(rows[-1], flush=True)
                ann = None
            cells.append(f"{100 * report.accuracy:.2f}")
        rows.append(f"| {method} | {' | '.join(cells)} |")
        print(f"{rows[-1]} {time.perf_counter() - start:.0f} s", flush=True)
        options.output.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
