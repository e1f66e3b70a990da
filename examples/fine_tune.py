"""Convert a network to a single time step, then train it on as a spiking network with surrogate gradients.

python examples/fine_tune.py
"""

from __future__ import annotations

import logging
import warnings

import torch
from lightning import LightningModule, Trainer, seed_everything

import snn_lowlat
from snn_lowlat.data import Digits
from snn_lowlat.models import SmallCNN
from snn_lowlat.training import Classifier, FineTuning


def fit(module: LightningModule, data: Digits, epochs: int) -> None:
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **options).fit(module, datamodule=data)


def main() -> tuple[float, float, float]:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    data = Digits(batch_size=64)
    model = SmallCNN()
    fit(Classifier(model, data.num_classes, optimizer="adamw", learning_rate=1e-2), data, epochs=5)

    calibration = data.calibration_dataloader(500)
    snn = snn_lowlat.convert(model.eval(), calibration, timesteps=1, refinements=["bias_correction"])
    tuning = FineTuning(snn, data.num_classes, optimizer="adamw", learning_rate=2e-3, schedule="cosine")
    fit(tuning, data, epochs=5)
    tuned = tuning.to_spiking_model()

    before, after = (snn_lowlat.evaluate(network, data.test_dataloader(), ann=model) for network in (snn, tuned))
    print(f"the network itself        {before.ann_accuracy:.2%}")
    print(f"converted to one step     {before.accuracy:.2%}")
    print(f"trained on as a spiking network  {after.accuracy:.2%}")
    print(f"how it was made: {[step['name'] for step in tuned.provenance.refinements]}")
    return before.ann_accuracy, before.accuracy, after.accuracy


if __name__ == "__main__":
    main()
