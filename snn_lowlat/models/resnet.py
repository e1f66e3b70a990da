r"""ResNet-20 for pictures of 32 x 32 pixels.

A residual block computes :math:`y = \mathrm{relu}(F(x) + x)`. Where a stage halves the resolution and doubles the
channels, the identity is taken at every second pixel and the new channels are zero (He et al., "Deep residual learning
for image recognition", CVPR 2016, section 4.2, option A): the shortcut has no parameters.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ResNet", "ResNet20", "ResidualBlock", "Subsample"]


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
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        same = stride == 1 and in_channels == channels
        self.shortcut: nn.Module = nn.Identity() if same else Subsample(channels - in_channels, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, channels, H / stride, W / stride]``."""
        hidden = self.relu1(self.bn1(self.conv1(images)))
        answer: Tensor = self.relu2(self.bn2(self.conv2(hidden)) + self.shortcut(images))
        return answer


class ResNet(nn.Module):
    """The residual network of He et al. (2016, section 4.2) for small pictures: ``6 * blocks + 2`` layers.

    Three stages of 16, 32 and 64 channels, global average pooling, one linear layer. Parameters carry the names that
    are common for this network (``conv1``, ``bn1``, ``layer1.0.conv1`` ... ``linear``), so published checkpoints load.

    Parameters
    ----------
    blocks : int
        Residual blocks in each stage.
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the pictures.
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``."""
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(self.pool(hidden).flatten(1))
        return logits


class ResNet20(ResNet):
    """ResNet-20: three blocks in each stage, 0.27 million parameters; parameters as in :class:`ResNet`."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(3, num_classes=num_classes, in_channels=in_channels)


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(ResidualBlock(channels, channels) for _ in range(blocks - 1)))
