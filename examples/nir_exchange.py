"""Write a converted network as a NIR graph that other tools read, and build it again from the file in either library.

python examples/nir_exchange.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nir
from trained_digits import trained_digits

import snn_lowlat

TIMESTEPS = 8


def main(path: Path) -> dict[str, float]:
    model, data = trained_digits()
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
