"""A small convolutional network for digits."""

from __future__ import annotations

from torch import Tensor, nn

from snn_lowlat import checks
from snn_lowlat.activations import Activation, make_activation

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Three blocks of convolution, batch norm and activation with two poolings between, then one linear layer.

    Parameters
    ----------
    in_channels : int
        Channels of the pictures.
    num_classes : int
        Outputs.
    image_size : int
        Edge of the pictures in pixels, at least 4.
    width : int
        Channels of the first block; the other two have twice as many.
    pooling : {"avg", "max"}
        How 2 x 2 pixels become one.
    pool_activation : bool
        An activation behind each average pooling too: with one that rounds, pooled values are sent as spikes and not
        as fractions of them (quantised average pooling; Yan, Zhou & Wong, AAAI 2021).
    activation : str or callable
        See :func:`snn_lowlat.training.make_activation`.

    Raises
    ------
    ValueError
        If the pictures are too small or the pooling or the activation is not known.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 8,
        width: int = 16,
        pooling: str = "avg",
        pool_activation: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        image_size = checks.count("image_size", image_size, 4)
        width = checks.count("width", width)
        in_channels = checks.count("in_channels", in_channels)
        num_classes = checks.count("num_classes", num_classes)
        checks.one_of("pooling", pooling, ("avg", "max"))
        if pool_activation and pooling != "avg":
            raise ValueError("pool_activation belongs to pooling='avg': the largest of several spikes is a spike.")
        layers: list[nn.Module] = []
        for channels in (width, 2 * width):
            layers.append(_block(in_channels, channels, activation))
            layers.append(nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2))
            if pool_activation:
                layers.append(make_activation(activation, channels))
            in_channels = channels
        self.features = nn.Sequential(*layers, _block(in_channels, 2 * width, activation))
        self.classifier = nn.Linear(2 * width * (image_size // 4) ** 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, in_channels, image_size, image_size]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _block(in_channels: int, channels: int, activation: Activation) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        make_activation(activation, channels),
    )
