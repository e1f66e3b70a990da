"""Normalisation of pixels as part of the network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from snn_lowlat import checks

__all__ = ["InputNormalisation"]


class InputNormalisation(nn.Module):
    r"""Normalise pixels inside the network: :math:`y = (x - \mu) / \sigma` for each channel.

    For a network whose input must be in ``[0, 1]``, such as one whose pictures are coded as Poisson spikes.

    Parameters
    ----------
    mean, std : sequence of float
        For each channel, or one for all, of pixels in ``[0, 1]``.

    Raises
    ------
    ValueError
        If they differ in length or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = checks.values("mean", mean).reshape(-1), checks.values("std", std).reshape(-1)
        if len(means) != len(stds) or not bool((stds > 0).all()):
            raise ValueError(f"mean and std need as many values, std positive ones, not {mean} and {std}.")
        self.register_buffer("mean", means.view(1, -1, 1, 1))
        self.register_buffer("std", stds.view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C, H, W]``."""
        return (images - self.mean) / self.std
