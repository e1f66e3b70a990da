"""Starting trainable ceilings where the weights of a trained ReLU network want them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from snn_lowlat import checks
from snn_lowlat.activations import CeilingReLU, QuantisedReLU
from snn_lowlat.calibration import SiteStatistics, observe
from snn_lowlat.errors import CalibrationError
from snn_lowlat.strategies.thresholds import find_threshold

__all__ = ["fit_ceilings"]


@torch.no_grad()
def fit_ceilings(model: nn.Module, batches: Iterable[object], *, percentile: float = 99.9) -> None:
    """Set the trainable ceilings of a network, in place, for weights that were trained with plain ReLUs.

    All activations act as plain ReLUs while the pre-activations are measured. A :class:`QuantisedReLU` then gets the
    ceiling with the smallest expected squared error for its levels, any other :class:`CeilingReLU` the percentile of
    its activations; see :func:`snn_lowlat.strategies.find_threshold`.

    Parameters
    ----------
    model : Module
        A network with trained weights and activations of these kinds, as by :func:`replace_activations`.
    batches : iterable
        Training images: batches as :func:`snn_lowlat.convert` takes them.
    percentile : float
        For ceilings without levels, in percent.

    Raises
    ------
    ValueError
        If the network has no such activation.
    CalibrationError
        If there are no images, or no pre-activation of a layer is positive; the message names the layer.
    """
    checks.network("model", model)
    activations = {name: module for name, module in model.named_modules() if isinstance(module, CeilingReLU)}
    if not activations:
        raise ValueError("this network has no trainable ceilings: make its activations with replace_activations().")
    handles = [module.register_forward_hook(_answer_as_relu) for module in activations.values()]
    try:
        histograms = observe(model, activations, batches)
    finally:
        for handle in handles:
            handle.remove()
    for name, activation in activations.items():
        if name not in histograms:
            raise CalibrationError(f"no images reached the activation {name!r}: give at least one batch.")
        statistics = SiteStatistics(name, histograms[name].to("cpu"))
        granularity = "channel" if activation.ceiling.dim() else "layer"
        if isinstance(activation, QuantisedReLU):
            shift = torch.tensor(activation.shift)
            ceiling = find_threshold(statistics, "mmse", activation.timesteps, granularity=granularity, fraction=shift)
        else:
            ceiling = find_threshold(statistics, "percentile", 1, percentile=percentile, granularity=granularity)
        activation.ceiling.copy_(ceiling)


def _answer_as_relu(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return inputs[0].relu()
