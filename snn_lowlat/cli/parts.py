"""What a run works with: data, networks and strategies, built from its config before any work is done."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from snn_lowlat.calibration import inputs_of
from snn_lowlat.cli.building import ConfigError, accepted_by, build, config_errors, make
from snn_lowlat.cli.limits import stage
from snn_lowlat.data import ImageDataModule
from snn_lowlat.graph import find_sites, normalise
from snn_lowlat.model import SpikingModel
from snn_lowlat.models import InputNormalisation, load_weights
from snn_lowlat.persistence import load
from snn_lowlat.refinement import Refinement, make_refinement
from snn_lowlat.strategies import Strategy, make_strategy
from snn_lowlat.training import CeilingReLU, expand_input, replace_activations

__all__ = ["Parts", "make_teacher", "prepare"]


@dataclass(frozen=True, eq=False)
class Parts:
    """What a run works with.

    Parameters
    ----------
    device : device
        Where networks are converted and evaluated.
    strategies : list of Strategy
        The main one, and those to compare with it.
    refinements : list of Refinement
        They follow every strategy.
    data : ImageDataModule
        The images.
    network : Module
        The original network, whose weights are saved.
    ann : Module
        The same as it is trained and converted: where pixels become spikes, behind the data's normalisation.
    unfitted : bool
        Whether its ceilings are still to be fitted to its weights.
    start : SpikingModel or None
        The spiking network that fine-tuning starts from; None if that is the converted one.
    """

    device: torch.device
    strategies: list[Strategy]
    refinements: list[Refinement]
    data: ImageDataModule
    network: nn.Module
    ann: nn.Module
    unfitted: bool
    start: SpikingModel | None

    def calibration(self, config: DictConfig) -> DataLoader[object]:
        """Return the batches that thresholds and ceilings are set by."""
        return self.data.calibration_dataloader(config.calibration.images, config.calibration.batch_size)


def prepare(config: DictConfig) -> Parts:
    """Build all that a run works with, so that what can't be is found before the training and not after it.

    Raises
    ------
    ConfigError
        If a part can't be built, or the network can't be converted with one of the strategies.
    """
    device = _device(config.device)
    strategies = _strategies(config)
    refinements = [make(make_refinement, entry, "refinements") for entry in config.refinements]
    with stage("reading data", lower="data.image_size"):
        data = _data(config)
        with config_errors("data"):
            data.setup()
    network, unfitted = _network(config, data)
    ann = _with_normalisation(network, data) if config.input_coding != "direct" else network
    _check_convertible(ann, data, strategies)
    return Parts(device, strategies, refinements, data, network, ann, unfitted, _start(config, data))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with config_errors("device"):
        device = torch.device(name)
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device={name} is not there: {reason} device=cpu or device=auto will do.") from error
        return device


def _strategies(config: DictConfig) -> list[Strategy]:
    strategies = [make(make_strategy, config.strategy, "strategy")]
    # In a sweep over strategies the main one is sometimes the one to compare with.
    others = [entry for entry in config.compare if entry != config.strategy.name]
    return strategies + [make(make_strategy, entry, "compare") for entry in others]


def _data(config: DictConfig) -> ImageDataModule:
    # Spikes code pixels in [0, 1]: the normalisation then belongs to the network.
    known = {"normalise": False} if config.input_coding != "direct" else {}
    data = build(config.data, "data", **known)
    if not isinstance(data, ImageDataModule):
        raise ConfigError(f"data._target_ must be an ImageDataModule, not {type(data).__name__}.")
    return data


def _network(config: DictConfig, data: ImageDataModule) -> tuple[nn.Module, bool]:
    """Build the network and load its weights; say whether its ceilings are still to be fitted to them."""
    network, unfitted = _built(config.model, data), False
    if config.model.get("initial_weights") is not None:
        # Those of a plain ReLU network will do.
        ceilings = [f"{name}.ceiling" for name, part in network.named_modules() if isinstance(part, CeilingReLU)]
        with config_errors("model.initial_weights"):
            unfitted = bool(load_weights(network, config.model.get("initial_weights"), optional=ceilings))
    if config.model.get("input_spikes") is not None:
        images = next(iter(data.calibration_dataloader(config.calibration.images, config.calibration.images)))
        with config_errors("model.input_spikes"):
            network = expand_input(network, inputs_of(images), config.timesteps, **dict(config.model.input_spikes))
    if config.model.get("weights") is not None:
        with config_errors("model.weights"):
            load_weights(network, config.model.get("weights"))
    return network, unfitted


def _built(model: DictConfig, data: ImageDataModule) -> nn.Module:
    """Build a network with its activations."""
    channels, size, _ = data.input_shape
    offered = {"num_classes": data.num_classes, "in_channels": channels, "image_size": size}
    accepted = accepted_by(model, "model")
    foreign = {"name", "weights", "initial_weights", "input_spikes"} | ({"activation"} - accepted)
    options = OmegaConf.masked_copy(model, [str(key) for key in model if key not in foreign])
    offered = {name: value for name, value in offered.items() if name in accepted and name not in options}
    network = build(options, "model", **offered)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model._target_ must be a torch module, not {type(network).__name__}.")
    if "activation" in model and "activation" not in accepted:
        with config_errors("model.activation"):
            activation = hydra.utils.instantiate({"made": model.activation}, _convert_="all")["made"]
            network = replace_activations(network, activation, torch.zeros(2, *data.input_shape))
    return network


def _with_normalisation(network: nn.Module, data: ImageDataModule) -> nn.Module:
    if data.mean is None or data.std is None:
        return network
    return nn.Sequential(OrderedDict(normalisation=InputNormalisation(data.mean, data.std), network=network))


def make_teacher(config: DictConfig, data: ImageDataModule) -> nn.Module:
    """Return the ReLU network that the training starts from."""
    if config.model.get("initial_weights") is None:
        raise ConfigError("training.distillation learns from the ReLU network of model.initial_weights: give its file.")
    model = config.model.copy()
    if "activation" in model:
        model.activation = "relu"
    network = _built(model, data)
    with config_errors("model.initial_weights"):
        load_weights(network, model.initial_weights)
    return _with_normalisation(network, data) if config.input_coding != "direct" else network


def _check_convertible(network: nn.Module, data: ImageDataModule, strategies: list[Strategy]) -> None:
    """Find out before the training what would only be found out after it."""
    with config_errors("model"):
        graph = normalise(network, torch.zeros(2, *data.input_shape))
    for strategy in strategies:
        if getattr(strategy, "threshold", None) != "ceiling":
            continue
        for name, site in find_sites(graph).items():
            if site.ceiling is None:
                raise ConfigError(
                    f"strategy {strategy.name}: threshold=ceiling needs an activation with a trained ceiling in every "
                    f"layer, and layer {name} has none: train with model.activation=ceiling or channel_ceiling, or "
                    "choose strategy.threshold=mmse."
                )


def _start(config: DictConfig, data: ImageDataModule) -> SpikingModel | None:
    """Load the spiking network that fine-tuning starts from; None if that is the converted one."""
    if config.fine_tuning.get("start") is None:
        return None
    with config_errors("fine_tuning.start"):
        snn = load(config.fine_tuning.start, backend=config.backend.name)
        wanted, found = tuple(data.input_shape), tuple(snn.provenance.input_shape)
        if wanted != found:
            raise ValueError(f"it is of a network for images {list(found)}, the data's are {list(wanted)}.")
        if snn.encoder != config.input_coding:
            raise ValueError(f"it is of a network with input_coding={snn.encoder}, not {config.input_coding}.")
        if snn.provenance.precision != "fp32":
            raise ValueError(f"it is of a network with precision={snn.provenance.precision}; only fp32 is trained.")
        classes = snn(torch.zeros(1, *wanted)).shape[-1]
        if classes != data.num_classes:
            raise ValueError(f"it is of a network for {classes} classes, the data have {data.num_classes}.")
        return snn
