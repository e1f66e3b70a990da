"""Networks whose input is spikes: each pixel in several copies, rounded to slightly different grids."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from snn_lowlat import checks
from snn_lowlat.activations import ValueRangeReLU
from snn_lowlat.devices import device_of
from snn_lowlat.errors import ConversionError
from snn_lowlat.graph.vocabulary import by_dimensions, modules
from snn_lowlat.modes import eval_mode

__all__ = ["InputSpikes", "expand_input"]

_LAYERS = modules("convolution", "linear")
_PAPERS_GRIDS = (0, 1, -1, 0, 1, -1)


class InputSpikes(nn.Module):
    r"""Pixels, rounded to what the spikes of a window can say, in copies with different grids.

    Rounded to the few levels of a short window, a picture loses more than any activation does. Input channel expansion
    (Yan, Zhou & Wong, "Low latency conversion of artificial neural network models to rate-encoded spiking neural
    networks", 2022, arXiv 2211.08410) gives the first layer several copies of each channel, rounded to the grids
    :math:`N`, :math:`N + 1` and :math:`N - 1`, each cut after :math:`T` levels, all three twice: six times the
    channels. With the range :math:`r` of a channel's pixels, the copy with the grid :math:`G` is

    .. math:: y = \frac{1}{N} \min\left(\left\lfloor \frac{G x}{r} + \varphi + \epsilon \right\rfloor, T\right)

    with the shift :math:`\varphi`, zero in the paper. That is a 1 x 1 convolution with fixed weights and bias, and a
    :class:`ValueRangeReLU`: converted, its neurons are the input's, and send :math:`T` spikes at most for each pixel
    and copy.

    Pixels may be negative, as normalised ones are, if ``signed``: then the negative part has channels of its own.

    Parameters
    ----------
    channels : int
        Channels of the pictures.
    timesteps : int
        The window :math:`T`, in steps.
    resolution : float
        :math:`N`, the levels up to the range of a channel; at least 2 with the paper's grids.
    grids : sequence of int
        What is added to the resolution in each copy; ``(0,)`` for no expansion.
    pixel_range : float or sequence of float
        :math:`r`, the largest magnitude of the pixels, of all or of each channel; positive.
    signed : bool
        Whether pixels can be negative.
    shift : float
        :math:`\varphi`, in levels, in ``[0, 1)``: half a level for a network that is not trained with such pixels.
    dimensions : int
        Of a picture, beside the channels: 0 for vectors, 2 for pictures.

    Raises
    ------
    ValueError
        If an option has no meaning.
    """

    weight: Tensor

    def __init__(
        self,
        channels: int,
        timesteps: int,
        resolution: float,
        *,
        grids: tuple[int, ...] = _PAPERS_GRIDS,
        pixel_range: float | list[float] = 1.0,
        signed: bool = False,
        shift: float = 0.0,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        channels = checks.count("channels", channels)
        timesteps = checks.count("timesteps", timesteps)
        resolution = checks.positive("resolution", resolution)
        dimensions = checks.count("dimensions", dimensions, 0, 3)
        shift = checks.share("shift", shift)
        ranges = checks.values("pixel_range", pixel_range).float()
        if ranges.numel() not in (1, channels):
            raise ValueError(f"pixel_range has {ranges.numel()} values for {channels} channels.")
        ranges = ranges.expand(channels)
        if not bool((ranges > 0).all()):
            raise ValueError(f"the range of the pixels must be positive, not {pixel_range}.")
        if not grids or not resolution + min(grids) > 0:
            raise ValueError(f"every grid must have levels: {resolution} + {min(grids, default=0)} is not positive.")
        factors = torch.tensor([(resolution + grid) / resolution for grid in grids])
        if signed:
            factors = torch.cat([factors, -factors])
        # Copies of a channel lie side by side.
        weight = (factors / ranges[:, None]).reshape(-1, 1, *[1] * dimensions)
        self.layer: Any
        if dimensions == 0:
            self.layer = nn.Linear(channels, len(weight))
            weight = torch.block_diag(*weight.reshape(channels, -1, 1))  # type: ignore[no-untyped-call]
        else:
            self.layer = by_dimensions("convolution")[dimensions](channels, len(weight), 1, groups=channels)
        self.layer.weight = nn.Parameter(weight, requires_grad=False)
        self.layer.bias = nn.Parameter(torch.full((len(self.layer.bias),), shift / resolution), requires_grad=False)
        self.neurons = ValueRangeReLU(timesteps, resolution)
        self.copies = len(factors)
        # By how much each copy has to be multiplied so that their sum is the picture.
        self.register_buffer("decoding", (ranges[:, None] / factors / len(grids)).reshape(-1))

    decoding: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures ``[N, C, ...]`` to spikes' worth of them, ``[N, copies * C, ...]``."""
        values: Tensor = self.neurons(self.layer(images))
        return values


def expand_input(
    model: nn.Module,
    images: Tensor,
    timesteps: int,
    *,
    resolution: float | None = None,
    grids: tuple[int, ...] = _PAPERS_GRIDS,
    shift: float = 0.5,
) -> nn.Module:
    """Return a copy of a network whose input is spikes, to be trained further or converted.

    :class:`InputSpikes` is put before it, and each layer that reads the pictures gets as many more input channels, with
    such weights that the copies' mean takes the place of the picture: but for the rounding, the network computes what
    it did. What is rounded is the better approximated the more grids there are.

    Parameters
    ----------
    model : Module
        Its first layers are convolutions or linear layers; it is not changed.
    images : Tensor
        Training pictures ``[N, C, ...]``: their largest magnitudes are the range of the pixels.
    timesteps : int
        The window, in steps.
    resolution : float, optional
        Levels up to the range of the pixels; as many as steps by default, but no fewer than 2.
    grids : sequence of int
        What is added to the resolution in each copy; ``(0,)`` for one copy.
    shift : float
        In levels, in ``[0, 1)``; half a level keeps the pixels' mean.

    Raises
    ------
    ConversionError
        If something else than convolutions and linear layers reads the pictures; put such work outside the network.
    ValueError
        If an option has no meaning.
    """
    model = checks.network("model", model, rewritten=True)
    images = checks.images("images", images).to(device_of(model))
    timesteps = checks.count("timesteps", timesteps)
    expanded = copy.deepcopy(model)
    magnitudes = images.transpose(0, 1).flatten(1).abs().amax(1)
    front = InputSpikes(
        images.shape[1],
        timesteps,
        max(timesteps, 2) if resolution is None else resolution,
        grids=grids,
        pixel_range=magnitudes.clamp(min=1e-6).tolist(),
        signed=bool((images < 0).any()),
        shift=shift,
        dimensions=images.dim() - 2,
    ).to(images)
    with torch.no_grad():
        for layer in _readers(expanded, images[:2]):
            _read_copies(layer, front)
        network = nn.Sequential(front, expanded).train(model.training)
        _check(network, model, images[:2])
    return network


def _readers(model: nn.Module, images: Tensor) -> list[Any]:
    """Return the layers that read the pictures themselves."""
    found: list[nn.Module] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and inputs[0] is images:
            found.append(layer)

    handles = [layer.register_forward_pre_hook(note) for layer in model.modules() if isinstance(layer, _LAYERS)]
    _in_evaluation(model, images)
    for handle in handles:
        handle.remove()
    if not found or any(getattr(layer, "groups", 1) != 1 for layer in found):
        raise ConversionError(
            "no ungrouped convolution or linear layer reads the pictures: let one be the network's first layer."
        )
    return list(dict.fromkeys(found))


def _read_copies(layer: Any, front: InputSpikes) -> None:
    """Let a layer read the copies of each channel in the place of the channel."""
    weight = layer.weight.repeat_interleave(front.copies, 1)
    decoding = front.decoding.to(weight)
    # The copies of the negative part were made with negative weights, and are subtracted in the same way.
    layer.weight = nn.Parameter(weight * decoding.view(1, -1, *[1] * (weight.dim() - 2)))
    if isinstance(layer, nn.Linear):
        layer.in_features = weight.shape[1]
    else:
        layer.in_channels = weight.shape[1]


def _check(network: nn.Module, model: nn.Module, images: Tensor) -> None:
    """See that the expanded network computes what the model does where nothing is rounded or cut."""
    front: Any = network[0]  # type: ignore[index]
    try:
        exact = torch.relu(front.layer(images) - front.layer.bias.view(-1, *[1] * (images.dim() - 2)))
        found = _in_evaluation(network[1], exact)  # type: ignore[index]
        same = torch.allclose(found, _in_evaluation(model, images), rtol=1e-2, atol=1e-3)
    except RuntimeError as error:
        raise ConversionError(f"something else than its first layers reads the pictures: {error}") from error
    if not same:
        raise ConversionError(
            "something else than the network's first layers reads the pictures: put a convolution or a linear layer "
            "before everything else."
        )


def _in_evaluation(model: nn.Module, images: Tensor) -> Tensor:
    with eval_mode(model):
        output: Tensor = model(images)
        return output
