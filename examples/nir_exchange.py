"""Write a converted network as a NIR graph that other tools read, and build it again from the file in either library.

python examples/nir_exchange.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nir
import torch

import snn_lowlat
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


def main(path: Path) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = Digits(batch_size=64)
    data.setup()
    model = SmallCNN(in_channels=1, num_classes=10, image_size=8)
    train(model, data)
    snn = snn_lowlat.convert(model, data.calibration_dataloader(500, 100), timesteps=TIMESTEPS)
    images, labels = next(iter(data.test_dataloader()))

    # Write the graph; what is in the file is compared with the network, spike by spike.
    export = snn_lowlat.to_nir(snn, images, path)
    print(export)

    # What any reader of NIR finds: weights with the amplitudes in them, thresholds, and in the metadata what NIR has no
    # words for. A reader that ignores the metadata computes another network.
    graph = nir.read(path)
    neurons = graph.nodes["features_0_2"]
    print(f"{path}: thresholds {neurons.v_threshold.shape}, reset {neurons.metadata['reset']!r}")
    print(graph.metadata["note"])

    # Build it again, without the network's source code.
    accuracies = {"as it was": float((snn(images).argmax(1) == labels).float().mean())}
    for backend in ("spikingjelly", "snntorch"):
        again = snn_lowlat.from_nir(path, backend=backend)
        accuracies[backend] = float((again(images).argmax(1) == labels).float().mean())
    print("accuracy " + ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in accuracies.items()))
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("digits.nir"), help="the file to write")
    main(parser.parse_args().output)
