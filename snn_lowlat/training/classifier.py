"""Training a classifier with Lightning."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms.v2 import MixUp

from snn_lowlat import checks
from snn_lowlat.activations import CeilingReLU
from snn_lowlat.answers import class_indices, class_logits
from snn_lowlat.training.layout import lay_channels_last
from snn_lowlat.training.resuming import TRAINER_KEY, trainer_options

__all__ = ["Classifier"]

_OPTIMIZERS = ("adamw", "sgd")
_SCHEDULES = ("constant", "cosine", "step")


class Classifier(LightningModule):
    """Train a network on labelled pictures with cross-entropy.

    The network's outputs are one value for each class, or one logit for two classes, whose cross-entropy is the binary
    one; there may be several places, ``[N, num_classes, ...]``, each with a label of its own. Without classes
    (``num_classes=None``), labels are what the outputs should be, as the clean pictures for a denoiser, and the loss is
    the mean squared difference.

    Logs ``train_loss``, and ``val_loss``, ``val_accuracy``, ``test_loss`` and ``test_accuracy`` (fractions in
    ``[0, 1]``; none without classes) once an epoch. Trainable ceilings are kept positive after each step of the
    optimizer.

    Parameters
    ----------
    model : nn.Module
        Maps pictures ``[N, ...]`` to outputs; trained in place.
    num_classes : int or None
        Number of classes, 1 or 2 for one logit; None if outputs are no classes.
    optimizer : {"sgd", "adamw"}
        SGD with momentum, or AdamW.
    learning_rate : float
        At the start.
    momentum : float
        For SGD.
    nesterov : bool
        Nesterov's momentum, for SGD.
    weight_decay : float
        Applied to convolution and linear weights and to trainable ceilings, not to biases or batch norm.
    decay_ceilings : bool
        Whether the weight decay applies to trainable ceilings too, which pulls them down.
    schedule : {"cosine", "step", "constant"}
        ``cosine`` lets the learning rate fall to zero over the training, step by step; ``step`` multiplies it by
        ``gamma`` at each of the ``milestones``.
    milestones : sequence of float
        Fractions of the training, in ``(0, 1)``, for the step schedule.
    gamma : float
        Factor of the step schedule, in ``(0, 1]``.
    label_smoothing : float
        Probability spread evenly over all classes, in ``[0, 1)``.
    mixup : float
        If positive, pictures and labels are mixed in pairs, with weights from the distribution Beta(mixup, mixup)
        (Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018).
    teacher : Module, optional
        A network whose logits are learnt too, such as the one that the weights come from; a copy is kept, its weights
        are not trained.
    distillation : float
        Weight of the teacher, in ``[0, 1]``: the loss is ``(1 - w) * cross-entropy + w * temperature^2 * divergence``
        (Hinton et al., "Distilling the knowledge in a neural network", arXiv 1503.02531); without classes the mean
        squared difference to its outputs takes the divergence's place.
    temperature : float
        Divides both networks' logits in the divergence.
    channels_last : bool
        Lay pictures and weights out with the channels last, which is faster on some processors.
    seed : int
        The random numbers of an epoch (dropout, mixup) depend on it and on the epoch alone, so that a training that
        goes on from a checkpoint goes on as if it had not been interrupted.

    Raises
    ------
    ValueError
        If an option has no such value.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None,
        *,
        optimizer: str = "sgd",
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        decay_ceilings: bool = True,
        schedule: str = "cosine",
        milestones: Sequence[float] = (0.6, 0.8, 0.9),
        gamma: float = 0.2,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        teacher: nn.Module | None = None,
        distillation: float = 0.0,
        temperature: float = 1.0,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        checks.network("model", model, spiking=True)
        if teacher is not None:
            checks.network("teacher", teacher, spiking=True)
        if num_classes is not None:
            num_classes = checks.count("num_classes", num_classes)
        checks.one_of("optimizer", optimizer, _OPTIMIZERS)
        checks.one_of("schedule", schedule, _SCHEDULES)
        learning_rate = checks.positive("learning_rate", learning_rate)
        weight_decay = checks.number("weight_decay", weight_decay, 0)
        momentum = checks.share("momentum", momentum)
        label_smoothing = checks.share("label_smoothing", label_smoothing)
        if isinstance(milestones, str) or not isinstance(milestones, Iterable):
            raise ValueError(f"milestones must be a list of fractions of the training, not {milestones!r}.")
        milestones = [checks.number("each of the milestones", share, above=0, below=1) for share in milestones]
        gamma = checks.number("gamma", gamma, above=0, maximum=1)
        mixup = checks.number("mixup", mixup, 0)
        seed = checks.seed("seed", seed)
        distillation = checks.fraction("distillation", distillation)
        temperature = checks.positive("temperature", temperature)
        if (teacher is None) != (distillation == 0):
            raise ValueError("a teacher and a distillation above 0 belong together: give both or neither.")
        if num_classes is None and (mixup or label_smoothing):
            raise ValueError("mixup and label_smoothing are for classes: leave them out without num_classes.")
        self.save_hyperparameters(ignore=["model", "teacher"])
        self.model = lay_channels_last(model) if channels_last else model
        # In a tuple, so that it is no part of this module: it is not trained and belongs into no checkpoint.
        self._teachers = () if teacher is None else (copy.deepcopy(teacher).eval().requires_grad_(False),)
        # One logit counts as two.
        self._classes = None if num_classes is None else max(num_classes, 2)
        self.mixup = MixUp(alpha=mixup, num_classes=self._classes) if mixup else None
        self.val_accuracy = self.accuracy_metric()
        self.test_accuracy = self.accuracy_metric()

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures ``[N, ...]`` to the network's outputs."""
        if self.hparams["channels_last"] and images.dim() == 4:
            images = images.to(memory_format=torch.channels_last)
        logits: Tensor = self.model(images)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits ``[N, num_classes]``; override to add terms.

        Labels are classes ``[N]``, or probabilities ``[N, num_classes]`` with mixup. One logit arrives as two, those of
        several places as rows of their own. Without classes, both are what :meth:`forward` returns and should return.
        """
        if self._classes is None:
            return functional.mse_loss(logits, labels)
        return functional.cross_entropy(logits, labels, label_smoothing=self.hparams["label_smoothing"])

    def on_fit_start(self) -> None:
        """Bring the teacher to where the network is."""
        for teacher in self._teachers:
            teacher.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how the trainer trains: a training goes on only in the same way."""
        if self._trainer is not None:
            checkpoint[TRAINER_KEY] = {"max_epochs": self.trainer.max_epochs, **trainer_options(self.trainer)}

    def on_train_end(self) -> None:
        """Give every process the first one's network: batch norms have measured each process's own share."""
        if isinstance(self.trainer.strategy, DDPStrategy):
            self.load_state_dict(self.trainer.strategy.broadcast(self.state_dict()))

    def on_train_epoch_start(self) -> None:
        """Seed the epoch's random numbers."""
        sequence = np.random.SeedSequence([self.hparams["seed"], self.current_epoch, self.global_rank])
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = self.taught(*batch)
        loss = self.learnt(images, self.answers(self(images)), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def accuracy_metric(self) -> MulticlassAccuracy | None:
        """Return a new count of right answers; None without classes."""
        return None if self._classes is None else MulticlassAccuracy(self._classes, average="micro")

    def answers(self, outputs: Tensor) -> Tensor:
        """Return the network's outputs as :meth:`loss` takes them: logits, a row for each answer."""
        if self._classes is None:
            return outputs
        return class_logits(outputs, self.hparams["num_classes"])

    def labels(self, labels: Tensor) -> Tensor:
        """Return labels as :meth:`loss` takes them: classes, one for each answer."""
        if self._classes is None:
            return labels
        rows = labels.dim() == 2 and labels.shape[1] == self._classes
        if rows and labels.is_floating_point():
            return labels  # probabilities
        dense = labels.dim() > 1 and labels.shape[1:].numel() != 1
        return class_indices(labels.flatten() if dense and not rows else labels, self._classes)

    def taught(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch's pictures and labels as they are learnt, mixed in pairs with mixup."""
        labels = self.labels(labels)
        if self.mixup is None:
            return images, labels
        if len(labels) != len(images):
            raise ValueError("mixup mixes classes of whole pictures: leave it out where places have labels.")
        # It takes nothing but pictures of channels, rows and columns.
        shaped = images if images.dim() == 4 else images.reshape(len(images), -1, 1, 1)
        mixed, labels = self.mixup(shaped, labels)
        return mixed.reshape(images.shape) if images.dim() != 4 else mixed, labels

    def learnt(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, with the teacher's part in it; logits and labels as :meth:`loss` takes them."""
        self._check_together(logits, labels)
        loss = self.loss(logits, labels)
        weight, temperature = self.hparams["distillation"], self.hparams["temperature"]
        for teacher in self._teachers:
            taught = teacher(images)
            if self._classes is None:
                loss = (1 - weight) * loss + weight * functional.mse_loss(logits, taught)
                continue
            pair = logits, self.answers(taught)
            found, target = (functional.log_softmax(values / temperature, 1) for values in pair)
            divergence = functional.kl_div(found, target, reduction="batchmean", log_target=True)
            loss = (1 - weight) * loss + weight * temperature**2 * divergence
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Let the optimizer take a step, then keep the ceilings positive."""
        super().optimizer_step(*args, **kwargs)
        for activation in self._ceiling_activations():
            activation.keep_positive()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Count the right answers of a validation batch."""
        self._measure("val", self.val_accuracy, batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Count the right answers of a test batch."""
        self._measure("test", self.test_accuracy, batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, and the schedule if there is one.

        Raises
        ------
        ValueError
            If the schedule needs to know when the training ends, and it has no end.
        """
        options = self.hparams
        ceilings = {activation.ceiling for activation in self._ceiling_activations()}
        decaying: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in self.parameters():
            decays = options["decay_ceilings"] if parameter in ceilings else parameter.dim() > 1
            if parameter.requires_grad:
                (decaying if decays else others).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": decaying, "weight_decay": options["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if options["optimizer"] == "sgd":
            momentum, nesterov = options["momentum"], options["nesterov"] and options["momentum"] > 0
            optimizer = torch.optim.SGD(groups, lr=options["learning_rate"], momentum=momentum, nesterov=nesterov)
        else:
            optimizer = torch.optim.AdamW(groups, lr=options["learning_rate"])
        if options["schedule"] == "constant":
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"}}

    def _check_together(self, answers: Tensor, labels: Tensor) -> None:
        if self._classes is None and labels.shape != answers.shape:
            raise ValueError(
                f"labels must be what the outputs should be, of shape {list(answers.shape)}, not {list(labels.shape)}."
            )
        if len(labels) != len(answers):
            raise ValueError(f"there are {len(answers)} answers of the network, and {len(labels)} labels.")

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        options = self.hparams
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError(
                f"the {options['schedule']} schedule needs to know when the training ends: give trainer.max_epochs, or "
                "training.schedule=constant."
            )

        def factor(step: int) -> float:
            if step == 0:
                # To ask for the length makes the loaders, which is too early before a checkpoint is restored.
                return 1.0
            steps = self.trainer.estimated_stepping_batches
            if options["schedule"] == "cosine":
                return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
            passed = sum(round(milestone * steps) <= step for milestone in options["milestones"])
            return float(options["gamma"] ** passed)

        # A function of the step alone: a resumed training may be given more epochs than it began with.
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def _ceiling_activations(self) -> list[CeilingReLU]:
        return [module for module in self.modules() if isinstance(module, CeilingReLU)]

    def _measure(self, stage: str, accuracy: MulticlassAccuracy | None, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch[0], self.labels(batch[1])
        logits = self.answers(self(images))
        self._check_together(logits, labels)
        loss = functional.mse_loss if self._classes is None else functional.cross_entropy
        self.log(f"{stage}_loss", loss(logits, labels), batch_size=len(images))
        if accuracy is not None:
            accuracy(logits, labels)
            self.log(f"{stage}_accuracy", accuracy, batch_size=len(images), prog_bar=True)
