"""Training that clips activations first and rounds them later."""

from __future__ import annotations

import logging

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from snn_lowlat import checks
from snn_lowlat.activations import QuantisedReLU, ValueRangeReLU

__all__ = ["RoundLater"]

_LOGGER = logging.getLogger(__name__)


class RoundLater(Callback):
    """Let activations that round clip only at first, and round from some epoch on.

    They are :class:`~snn_lowlat.training.QuantisedReLU` and :class:`~snn_lowlat.training.ValueRangeReLU`.

    Networks find good weights sooner while their activations are only clipped, and then adapt to the rounding: clamp
    and quantise, the schedule of Yan, Zhou & Wong ("Near lossless transfer learning for spiking neural networks", AAAI
    2021). At the end all of them round, as the spiking network does.

    Parameters
    ----------
    after : float
        The share of the epochs that only clip, in ``[0, 1)``.

    Raises
    ------
    ValueError
        If it is not in ``[0, 1)``.
    """

    def __init__(self, after: float = 0.5) -> None:
        self.after = checks.share("after", after)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where no activation rounds."""
        if not any(isinstance(module, QuantisedReLU | ValueRangeReLU) for module in pl_module.modules()):
            _LOGGER.warning(
                "RoundLater has no effect: no activation of the network rounds. Those that do are QuantisedReLU and "
                "ValueRangeReLU of snn_lowlat.training."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set what the activations do in this epoch."""
        epochs = trainer.max_epochs or 0
        _set_rounding(pl_module, trainer.current_epoch >= round(self.after * epochs))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let all of them round."""
        _set_rounding(pl_module, True)


def _set_rounding(network: LightningModule, rounds: bool) -> None:
    for module in network.modules():
        if isinstance(module, QuantisedReLU | ValueRangeReLU):
            module.rounds = rounds
