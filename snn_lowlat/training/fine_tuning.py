"""Training a converted network on as a spiking network, with surrogate gradients."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from snn_lowlat import checks
from snn_lowlat.calibration import inputs_of
from snn_lowlat.encoding import make_encoder
from snn_lowlat.model import SpikingModel
from snn_lowlat.neurons.surrogate import SpikeOptions, Surrogate
from snn_lowlat.training.classifier import Classifier
from snn_lowlat.training.spiking_network import TrainableNetwork
from snn_lowlat.training.surrogates import make_surrogate

__all__ = ["FineTuning"]

_LOGGER = logging.getLogger(__name__)

_OPTIMIZERS = ("adam", "adamw", "sgd")
_NOT_OPTIONS = ("model", "snn", "teacher")


class FineTuning(Classifier):
    r"""Train a converted network on as a spiking network: surrogate-gradient learning (SGL).

    Backpropagation through all layers and steps, in which each spike has the derivative of a surrogate (Datta & Beerel,
    "Can deep neural networks be converted to ultra low-latency spiking neural networks?", DATE 2022, arXiv 2112.12133).
    It needs no host library; :meth:`to_spiking_model` returns the result in the host that the network came from::

        snn = snn_lowlat.convert(model, calibration, timesteps=2, refinements=["bias_correction"])
        tuning = FineTuning(snn, num_classes=10, optimizer="adamw", learning_rate=4e-4, schedule="cosine")
        Trainer(max_epochs=10).fit(tuning, datamodule=data)
        snn = tuning.to_spiking_model()

    Weights, thresholds and leaks are trained. The initial potential and what a spike is worth keep their ratio to the
    threshold; thresholds stay positive and leaks in ``[0, 1]``; neither decays. The defaults are the paper's but for
    the batch norm, which its networks do not have, and the logits, which it sums over the steps (``logit_scale`` equal
    to the number of steps); its neurons start at zero, these where the conversion put them.

    Memory grows in proportion to the number of steps; ``segments`` trades it for time. A checkpoint holds what is
    trained; going on from one, or ``FineTuning.load_from_checkpoint(path, snn=snn)``, needs the converted network too.

    Logs what :class:`Classifier` does, and ``train_accuracy``.

    Parameters
    ----------
    snn : SpikingModel
        The converted network, from either host; it is not changed.
    num_classes : int or None
        Number of classes, 1 or 2 for one logit; None if outputs are no classes: see :class:`Classifier`.
    timesteps : int, optional
        The number of steps to train for; by default the one it was converted for.
    surrogate : str or callable
        What stands for the derivative of a spike; see :func:`snn_lowlat.training.surrogates.make_surrogate`.
    surrogate_options : mapping, optional
        The named surrogate's options.
    detach_reset : bool
        Let no gradient pass from the reset to the spike that caused it.
    threshold_gradient : {"proper", "paper_code"}
        See :class:`snn_lowlat.neurons.surrogate.SpikeOptions`.
    train_thresholds, train_leaks : bool
        Whether thresholds and leaks are trained beside the weights. Without, a step of training takes less time.
    dropout : float
        Probability with which a neuron is silent for a picture, in all steps; in ``[0, 1)``.
    batch_norm : bool
        Train with a batch norm behind each layer that feeds neurons, over the pictures and steps of a batch. It is put
        in without changing what the network computes, and folded into the layer at the end.
    measuring_batches : int
        Batches of training pictures whose statistics the batch norms start with.
    segments : int
        In how many parts the network is computed; with more than one, each is computed twice in a step of training and
        only what passes between them is kept (gradient checkpointing).
    logit_scale : float
        A factor on the readout, which is the mean over the steps, before the loss.
    optimizer : {"adam", "adamw", "sgd"}
        Adam with AMSGrad, AdamW, or SGD with momentum.
    learning_rate : float
        At the start.
    neuron_learning_rate_factor : float
        A factor on it for thresholds and leaks.
    weight_decay : float
        Applied to convolution and linear weights.
    momentum, nesterov, schedule, milestones, gamma, label_smoothing, mixup, teacher, distillation, temperature
        As in :class:`Classifier`; a teacher is often the original network.
    channels_last, seed
        As in :class:`Classifier`. On a CPU pictures always have their channels last.

    Raises
    ------
    ValueError
        If an option has no such value.
    SnnLowlatError
        If the network has neurons that are not trained in this way.
    """

    def __init__(
        self,
        snn: SpikingModel,
        num_classes: int | None,
        *,
        timesteps: int | None = None,
        surrogate: str | Surrogate = "rectangular",
        surrogate_options: Mapping[str, Any] | None = None,
        detach_reset: bool = False,
        threshold_gradient: str = "proper",
        train_thresholds: bool = True,
        train_leaks: bool = True,
        dropout: float = 0.0,
        batch_norm: bool = True,
        measuring_batches: int = 10,
        segments: int = 1,
        logit_scale: float = 1.0,
        teacher: nn.Module | None = None,
        distillation: float = 0.0,
        temperature: float = 1.0,
        optimizer: str = "adam",
        learning_rate: float = 1e-4,
        neuron_learning_rate_factor: float = 1.0,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        schedule: str = "step",
        milestones: Sequence[float] = (0.6, 0.8, 0.9),
        gamma: float = 0.2,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        snn = checks.spiking_model("snn", snn)
        if num_classes is not None:
            num_classes = checks.count("num_classes", num_classes)
        checks.one_of("optimizer", optimizer, _OPTIMIZERS)
        measuring_batches = checks.count("measuring_batches", measuring_batches)
        segments = checks.count("segments", segments)
        # None stays None among the options that are kept.
        steps = checks.count("timesteps", snn.timesteps if timesteps is None else timesteps)
        logit_scale = checks.positive("logit_scale", logit_scale)
        neuron_learning_rate_factor = checks.number("neuron_learning_rate_factor", neuron_learning_rate_factor, 0)
        dropout = checks.share("dropout", dropout)
        network = TrainableNetwork(
            *snn.normal_form(),
            snn.provenance.input_shape,
            steps,
            SpikeOptions(make_surrogate(surrogate, **surrogate_options or {}), detach_reset, threshold_gradient),
            train_thresholds=train_thresholds,
            train_leaks=train_leaks,
            dropout=dropout,
            batch_norm=batch_norm,
            segments=segments,
        )
        super().__init__(
            network,
            num_classes,
            optimizer="sgd" if optimizer == "sgd" else "adamw",
            learning_rate=learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            schedule=schedule,
            milestones=milestones,
            gamma=gamma,
            label_smoothing=label_smoothing,
            mixup=mixup,
            teacher=teacher,
            distillation=distillation,
            temperature=temperature,
            channels_last=channels_last,
            seed=seed,
        )
        self.train_accuracy = self.accuracy_metric()
        # In a tuple, as the teacher.
        self._source = (snn,)

    @property
    def network(self) -> TrainableNetwork:
        """The network that is trained."""
        return cast(TrainableNetwork, self.model)

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures ``[N, ...]`` to outputs, as logits ``[N, num_classes]``: the readout times ``logit_scale``."""
        if self.hparams["channels_last"] and images.dim() == 4:
            images = images.to(memory_format=torch.channels_last)
        (snn,) = self._source
        constant = snn.encoder == "direct"
        if not constant:
            # New random spikes in each step of training, those of the converted network otherwise.
            seed = snn.seed + (1 + int(self.network.updates) if self.training else 0)
            images = make_encoder(snn.encoder)(images, self.network.timesteps, seed)
        return self.network(images, constant) * self.hparams["logit_scale"]  # type: ignore[no-any-return]

    def to_spiking_model(self) -> SpikingModel:
        """Return the network as it is now, in the host that it came from, with its training in the provenance.

        Its logits are those of this module in evaluation mode, ``logit_scale`` aside. A network in whole numbers
        (``precision="int8"``) is in floating point after training, as :attr:`SpikingModel.precision` and a warning say:
        weights are not rounded again.
        """
        (snn,) = self._source
        tuned = snn.rebuilt(*self.network.folded())
        tuned.timesteps = self.network.timesteps
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in self.hparams.items()}
        options["surrogate"] = str(options["surrogate"])
        step = {"name": "surrogate_gradient_learning", "updates": int(self.network.updates), **options}
        tuned.provenance = replace(snn.provenance, refinements=[*snn.provenance.refinements, step])
        before, after = snn.precision, tuned.precision
        if before == "int8" and after != before:
            _LOGGER.warning(
                "training has made a network in whole numbers (int8) one in floating point (%s): for whole numbers, "
                "train the original network instead and convert it with precision='int8'.",
                after,
            )
        return tuned

    def on_train_start(self) -> None:
        """Give the batch norms their first statistics, unless a checkpoint has them."""
        if self.network.measured:
            return
        (snn,) = self._source
        loader = self.trainer.train_dataloader
        assert loader is not None  # a training begins
        images = (inputs_of(batch).to(self.device) for batch in islice(loader, self.hparams["measuring_batches"]))
        constant = snn.encoder == "direct"
        encode = make_encoder(snn.encoder)
        self.network.measure(
            (batch if constant else encode(batch, self.network.timesteps, snn.seed) for batch in images), constant
        )
        # Where several processes train, all go on with the first one's.
        self.network.load_state_dict(self.trainer.strategy.broadcast(self.network.state_dict()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = self.taught(*batch)
        logits = self.answers(self(images))
        loss = self.learnt(images, logits, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        if self.train_accuracy is not None:
            self.train_accuracy(logits, labels if labels.dim() == 1 else labels.argmax(1))
            self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Let the optimizer take a step, then keep thresholds and leaks in their ranges."""
        super().optimizer_step(*args, **kwargs)
        self.network.updates += 1
        for neurons in self.network.neurons().values():
            neurons.keep_valid()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, and the schedule if there is one; see :meth:`Classifier.configure_optimizers`."""
        options = self.hparams
        rate: float = options["learning_rate"]
        of_neurons = {parameter for layer in self.network.neurons().values() for parameter in layer.parameters()}
        groups: list[dict[str, Any]] = [
            {"params": [], "weight_decay": options["weight_decay"]},
            {"params": [], "weight_decay": 0.0},
            {"params": [], "weight_decay": 0.0, "lr": rate * options["neuron_learning_rate_factor"]},
        ]
        for parameter in self.parameters():
            if parameter.requires_grad:
                group = 2 if parameter in of_neurons else 0 if parameter.dim() > 1 else 1
                groups[group]["params"].append(parameter)
        optimizer: torch.optim.Optimizer
        if options["optimizer"] == "sgd":
            momentum, nesterov = options["momentum"], options["nesterov"] and options["momentum"] > 0
            optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov)
        elif options["optimizer"] == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=rate)
        else:
            optimizer = torch.optim.Adam(groups, lr=rate, amsgrad=True)
        if options["schedule"] == "constant":
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"}}

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """Keep the options, without the networks among the arguments."""
        frame = inspect.currentframe()
        kwargs |= {"ignore": _NOT_OPTIONS, "frame": frame.f_back if frame else None}
        super().save_hyperparameters(*args, **kwargs)
