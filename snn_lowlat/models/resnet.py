r"""ResNet-20 and ResNet-18 for pictures of 32 x 32 pixels.

A residual block computes :math:`y = f(F(x) + S(x))` with the activation :math:`f`. Where a stage halves the resolution
and doubles the channels, the shortcut :math:`S` is either without parameters (every second pixel, new channels zero:
He et al., "Deep residual learning for image recognition", CVPR 2016, option A in section 3.3) or a convolution of 1 x 1
pixels (option B).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from snn_lowlat import checks
from snn_lowlat.activations import Activation, make_activation

__all__ = ["ResNet", "ResNet18", "ResNet20", "ResidualBlock", "Subsample"]

_SHORTCUTS = ("convolution", "subsample")


class Subsample(nn.Module):
    """The shortcut without parameters: every ``stride``-th pixel, with zero channels added on both sides.

    Parameters
    ----------
    added : int
        Channels to add, half of them before and the rest after the input's own.
    stride : int
        Distance of the pixels kept.
    """

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.before = added // 2
        self.after = added - self.before
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C + added, ceil(H / stride), ceil(W / stride)]``."""
        kept = images[:, :, :: self.stride, :: self.stride]
        return functional.pad(kept, (0, 0, 0, 0, self.before, self.after))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a shortcut around them.

    Parameters
    ----------
    in_channels, channels : int
        Channels that come in and go out.
    stride : int
        Of the first convolution and of the shortcut.
    shortcut : {"subsample", "convolution"}
        What the shortcut does where the shape changes; elsewhere it is the identity.
    activation : str or callable
        See :func:`snn_lowlat.training.make_activation`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        shortcut: str = "subsample",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = make_activation(activation, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = make_activation(activation, channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == channels:
            self.shortcut = nn.Identity()
        elif shortcut == "subsample":
            self.shortcut = Subsample(channels - in_channels, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, channels, H / stride, W / stride]``."""
        hidden = self.relu1(self.bn1(self.conv1(images)))
        answer: Tensor = self.relu2(self.bn2(self.conv2(hidden)) + self.shortcut(images))
        return answer


class ResNet(nn.Module):
    """A residual network for small pictures: ``2 * stages * blocks + 2`` layers.

    A convolution of 3 x 3 pixels, stages that each halve the resolution except for the first, global average pooling,
    one linear layer. Parameters carry the names that are common for these networks (``conv1``, ``bn1``,
    ``layer1.0.conv1`` ... ``linear``), so published checkpoints load.

    Parameters
    ----------
    blocks : int
        Residual blocks in each stage.
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the pictures.
    channels : sequence of int
        Channels of each stage.
    shortcut : {"subsample", "convolution"}
        How a block's input is brought to the shape of its output where that differs.
    pool_activation : bool
        An activation behind the global average pooling too: with one that rounds, pooled values are sent as spikes and
        not as fractions of them (quantised average pooling; Yan, Zhou & Wong, AAAI 2021).
    activation : str or callable
        See :func:`snn_lowlat.training.make_activation`.

    Raises
    ------
    ValueError
        If there is no such shortcut or activation.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        channels: Sequence[int] = (16, 32, 64),
        shortcut: str = "subsample",
        pool_activation: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        checks.one_of("shortcut", shortcut, _SHORTCUTS)
        blocks = checks.count("blocks", blocks)
        in_channels = checks.count("in_channels", in_channels)
        num_classes = checks.count("num_classes", num_classes)
        channels = [checks.count("channels of a stage", width) for width in channels]
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = make_activation(activation, channels[0])
        self.stages = [f"layer{number}" for number in range(1, len(channels) + 1)]
        for name, before, after in zip(self.stages, [channels[0], *channels], channels, strict=False):
            stride = 1 if name == "layer1" else 2
            self.add_module(name, _stage(before, after, blocks, stride, shortcut=shortcut, activation=activation))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1))
        if pool_activation:
            self.pool.append(make_activation(activation, channels[-1]))
        self.linear = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``."""
        hidden = self.relu(self.bn1(self.conv1(images)))
        for name in self.stages:
            hidden = self.get_submodule(name)(hidden)
        logits: Tensor = self.linear(self.pool(hidden).flatten(1))
        return logits


class ResNet20(ResNet):
    """ResNet-20 (He et al. 2016, section 4.2): three stages of three blocks, 0.27 million parameters.

    Parameters
    ----------
    num_classes, in_channels, pool_activation, activation
        As in :class:`ResNet`.
    width : int
        Channels of the first stage; each further one has twice as many.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
        pool_activation: bool = False,
        activation: Activation = "relu",
    ) -> None:
        width = checks.count("width", width)
        options: dict[str, Any] = {"pool_activation": pool_activation, "activation": activation}
        super().__init__(3, num_classes, in_channels, channels=(width, 2 * width, 4 * width), **options)


class ResNet18(ResNet):
    """ResNet-18 as it is used for 32 x 32 pixels: four stages of two blocks, 11.2 million parameters.

    It keeps the resolution where the original (He et al. 2016, section 4.1) begins with a stride and a max-pooling.

    Parameters
    ----------
    num_classes, in_channels, pool_activation, activation
        As in :class:`ResNet`.
    width : int
        Channels of the first stage; each further one has twice as many.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        pool_activation: bool = False,
        activation: Activation = "relu",
    ) -> None:
        options: dict[str, Any] = {"pool_activation": pool_activation, "activation": activation}
        width = checks.count("width", width)
        channels = (width, 2 * width, 4 * width, 8 * width)
        super().__init__(2, num_classes, in_channels, channels=channels, shortcut="convolution", **options)


def _stage(in_channels: int, channels: int, blocks: int, stride: int, **options: Any) -> nn.Sequential:
    first = ResidualBlock(in_channels, channels, stride, **options)
    return nn.Sequential(first, *(ResidualBlock(channels, channels, **options) for _ in range(blocks - 1)))
