"""Data modules for Lightning that also know how to calibrate: digits, MNIST, CIFAR and a user's own pictures."""

from __future__ import annotations

from snn_lowlat.data.arrays import ArchivedImages
from snn_lowlat.data.cifar import CIFAR10, CIFAR100
from snn_lowlat.data.digits import Digits
from snn_lowlat.data.image_folder import ImageFolder
from snn_lowlat.data.mnist import MNIST
from snn_lowlat.data.module import ImageDataModule

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "ArchivedImages", "Digits", "ImageDataModule", "ImageFolder"]
