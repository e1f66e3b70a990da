"""Training a classifier with Lightning."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

__all__ = ["Classifier"]

_OPTIMIZERS = ("adamw", "sgd")
_SCHEDULES = ("constant", "cosine")


class Classifier(LightningModule):
    """Train a network on labelled pictures with cross-entropy.

    Logs ``train_loss``, and ``val_loss``, ``val_accuracy``, ``test_loss`` and ``test_accuracy`` (fractions in
    ``[0, 1]``) once an epoch.

    Parameters
    ----------
    model : nn.Module
        Maps ``[N, C, H, W]`` to logits ``[N, num_classes]``; trained in place.
    num_classes : int
        Number of classes.
    optimizer : {"sgd", "adamw"}
        SGD with Nesterov momentum, or AdamW.
    learning_rate : float
        At the start.
    momentum : float
        For SGD.
    weight_decay : float
        Applied to convolution and linear weights only, not to biases or batch norm.
    schedule : {"cosine", "constant"}
        ``cosine`` lets the learning rate fall to zero over the training, step by step.
    label_smoothing : float
        Probability spread evenly over all classes, in ``[0, 1)``.

    Raises
    ------
    ValueError
        If an option has no such value.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        optimizer: str = "sgd",
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str = "cosine",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(_OPTIMIZERS)}, not {optimizer!r}.")
        if schedule not in _SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}, not {schedule!r}.")
        if learning_rate <= 0 or weight_decay < 0 or not 0 <= momentum < 1 or not 0 <= label_smoothing < 1:
            raise ValueError(
                "learning_rate must be positive, weight_decay not negative, momentum and label_smoothing in [0, 1)."
            )
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.model(images)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits ``[N, num_classes]`` and labels ``[N]``; override to add terms."""
        return functional.cross_entropy(logits, labels, label_smoothing=self.hparams["label_smoothing"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = self.loss(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Count the right answers of a validation batch."""
        self._measure("val", self.val_accuracy, batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Count the right answers of a test batch."""
        self._measure("test", self.test_accuracy, batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, and the schedule if there is one."""
        options = self.hparams
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options["weight_decay"]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if options["optimizer"] == "sgd":
            momentum = options["momentum"]
            optimizer = torch.optim.SGD(groups, lr=options["learning_rate"], momentum=momentum, nesterov=momentum > 0)
        else:
            optimizer = torch.optim.AdamW(groups, lr=options["learning_rate"])
        if options["schedule"] == "constant":
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _measure(self, stage: str, accuracy: MulticlassAccuracy, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        self.log(f"{stage}_loss", functional.cross_entropy(logits, labels), batch_size=len(labels))
        self.log(f"{stage}_accuracy", accuracy, batch_size=len(labels), prog_bar=True)
