"""VGG-16 for pictures of 32 x 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from snn_lowlat import checks
from snn_lowlat.activations import Activation, make_activation

__all__ = ["VGG16"]

# Convolutions of each stage, and their channels in units of the first stage's (Simonyan & Zisserman, table 1, D).
_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class VGG16(nn.Module):
    """VGG-16 (Simonyan & Zisserman, ICLR 2015, configuration D) for small pictures.

    Thirteen convolutions of 3 x 3 pixels in five stages, each followed by pooling, then the linear layers. Without
    hidden layers, the usual form for 32 x 32 pixels, it has 14.7 million parameters.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the pictures.
    image_size : int
        Edge of the pictures in pixels, at least 32.
    width : int
        Channels of the first stage.
    batch_norm : bool
        Batch norm after each convolution; without it, convolutions have a bias.
    pooling : {"max", "avg"}
        How 2 x 2 pixels become one.
    pool_activation : bool
        An activation behind each average pooling too: with one that rounds, pooled values are sent as spikes and not
        as fractions of them (quantised average pooling; Yan, Zhou & Wong, AAAI 2021).
    hidden : sequence of int
        Units of the hidden linear layers, such as ``[4096, 4096]``; none by default.
    dropout, hidden_dropout : float
        Share of the activations left out in training, after each convolution and each hidden layer, in ``[0, 1)``.
    activation : str or callable
        See :func:`snn_lowlat.training.make_activation`.

    Raises
    ------
    ValueError
        If the pictures are too small, or an option has no such value.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        width: int = 64,
        *,
        batch_norm: bool = True,
        pooling: str = "max",
        pool_activation: bool = False,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        image_size = checks.count("image_size", image_size, 32)
        width = checks.count("width", width)
        in_channels = checks.count("in_channels", in_channels)
        num_classes = checks.count("num_classes", num_classes)
        hidden = [checks.count("each of the hidden units", units) for units in hidden]
        checks.one_of("pooling", pooling, ("avg", "max"))
        dropout = checks.share("dropout", dropout)
        hidden_dropout = checks.share("hidden_dropout", hidden_dropout)
        if pool_activation and pooling != "avg":
            raise ValueError("pool_activation belongs to pooling='avg': the largest of several spikes is a spike.")
        layers: list[nn.Module] = []
        for convolutions, factor in _STAGES:
            for _ in range(convolutions):
                layers.append(nn.Conv2d(in_channels, factor * width, 3, padding=1, bias=not batch_norm))
                in_channels = factor * width
                if batch_norm:
                    layers.append(nn.BatchNorm2d(in_channels))
                layers.append(make_activation(activation, in_channels))
                if dropout:
                    layers.append(nn.Dropout(dropout))
            layers.append(nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2))
            if pool_activation:
                layers.append(make_activation(activation, in_channels))
        self.features = nn.Sequential(*layers)
        layers, inputs = [], in_channels * (image_size // 32) ** 2
        for units in hidden:
            layers += [nn.Linear(inputs, units), make_activation(activation, units)]
            if hidden_dropout:
                layers.append(nn.Dropout(hidden_dropout))
            inputs = units
        self.classifier = nn.Sequential(*layers, nn.Linear(inputs, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, in_channels, image_size, image_size]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
