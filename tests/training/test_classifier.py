from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything

from snn_lowlat.data import Digits
from snn_lowlat.models import SmallCNN
from snn_lowlat.training import Classifier


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"learning_rate": 0.1}, {"optimizer": "adamw", "learning_rate": 0.01}])
def test_three_epochs_learn_digits(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    classifier = Classifier(SmallCNN(width=8), num_classes=10, **options)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(classifier, datamodule=Digits(batch_size=64))
    metrics = trainer.callback_metrics
    assert metrics["val_accuracy"] > 0.9
    assert {"train_loss", "val_loss"} <= metrics.keys()
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)
    assert trainer.test(classifier, datamodule=Digits(), verbose=False)[0]["test_accuracy"] > 0.9


def test_only_weights_decay() -> None:
    classifier = Classifier(SmallCNN(), num_classes=10, schedule="constant", weight_decay=0.1)
    optimizer: Any = classifier.configure_optimizers()
    decaying, others = optimizer.param_groups
    assert decaying["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert all(parameter.dim() > 1 for parameter in decaying["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(list(classifier.parameters()))


@pytest.mark.parametrize(
    "options", [{"optimizer": "x"}, {"schedule": "x"}, {"learning_rate": 0}, {"label_smoothing": 1}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Classifier(SmallCNN(), num_classes=10, **options)
