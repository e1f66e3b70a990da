"""The networks that the benchmark runs, and images for them: nothing here needs data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor, fx, nn
from torch.nn import functional

from snn_lowlat.cli.building import ConfigError, accepted_by, build, config_errors
from snn_lowlat.graph import normalise
from snn_lowlat.models import load_weights

__all__ = ["Subject", "make_subject", "smooth_images"]

# Smooth images vary over so many pixels.
_PATCH = 4


@dataclass(frozen=True, eq=False)
class Subject:
    """A network that every contestant runs in its own way.

    Parameters
    ----------
    name : str
        Its name in the results.
    model : Module
        The original network, in evaluation mode.
    graph : GraphModule
        Its normal form: batch norms are folded.
    calibration : list of Tensor
        Batches of images ``[N, C, H, W]`` that thresholds are set by.
    weights : str
        Where its weights are from: a file, or ``"random"``.
    """

    name: str
    model: nn.Module
    graph: fx.GraphModule
    calibration: list[Tensor]
    weights: str


def make_subject(config: DictConfig, name: str) -> Subject:
    """Build one of the networks of a config, the same one whenever it is asked for.

    Weights are drawn from the config's seed, and batch norms measure random images, unless a file has the weights.

    Parameters
    ----------
    config : DictConfig
        The whole config, checked.
    name : str
        A key of ``benchmark.networks``.

    Raises
    ------
    ConfigError
        If the network can't be built, takes other images, or the weights are those of another one.
    ConversionError
        If it can't become a spiking network.
    """
    wanted, place = config.benchmark, f"benchmark.networks.{name}"
    entry, shape = wanted.networks[name], list(wanted.input_shape)
    if not isinstance(entry, DictConfig):
        raise ConfigError(f"{place} must be a mapping of _target_ and options, not {entry!r}.")
    accepted = accepted_by(entry, place)
    offered = {"in_channels": shape[0], "image_size": shape[1]}
    images = smooth_images(config.calibration.images, shape, config.seed)
    batches = list(torch.split(images, config.calibration.batch_size))
    file = wanted.weights.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(entry, place, **{key: offered[key] for key in offered if key in accepted and key not in entry})
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{place}._target_ must be a torch module, not {type(model).__name__}.")
    model.eval()
    if file is not None:
        with config_errors(f"benchmark.weights.{name}"):
            load_weights(model, file)
    else:
        with config_errors(place):
            _measure_batch_norms(model, batches)
    return Subject(name, model, normalise(model, images), batches, "random" if file is None else str(file))


def smooth_images(number: int, shape: Sequence[int], seed: int) -> Tensor:
    """Draw images whose neighbouring pixels are alike, with mean 0 and standard deviation 1.

    Parameters
    ----------
    number : int
        How many.
    shape : sequence of int
        Of one image, ``[C, H, W]``.
    seed : int
        Of the random numbers.
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(number, channels, -(-height // _PATCH), -(-width // _PATCH), generator=generator)
    images = functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (images - images.mean()) / images.std()


@torch.no_grad()
def _measure_batch_norms(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Set the statistics of batch norms to the mean over some batches."""
    with _averaging(model):
        for batch in batches:
            model(batch)


@contextmanager
def _averaging(model: nn.Module) -> Iterator[None]:
    # Only batch norms are put into training mode: dropout would change what they see.
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # a plain mean over the batches
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
