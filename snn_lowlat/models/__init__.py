"""Networks to train and convert, and the reading of trained weights."""

from __future__ import annotations

from snn_lowlat.models.checkpoints import load_weights
from snn_lowlat.models.normalisation import InputNormalisation
from snn_lowlat.models.resnet import ResNet, ResNet18, ResNet20
from snn_lowlat.models.small_cnn import SmallCNN
from snn_lowlat.models.vgg import VGG16

__all__ = ["VGG16", "InputNormalisation", "ResNet", "ResNet18", "ResNet20", "SmallCNN", "load_weights"]
