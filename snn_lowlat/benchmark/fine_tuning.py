"""Who fine-tunes: a batch forwards, and back to the gradients of all weights, in each library's own way.

All take the arctangent for the spikes' derivative, pass no gradient through the reset, and have thresholds at the
99.9th percentile of each layer's activations. With the same thresholds SpikingJelly's gradients are this package's;
snnTorch measures the distance from the threshold in other units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snn_lowlat.benchmark.contestants import (
    ANN,
    OURS,
    SNNTORCH_STEPS,
    SPIKINGJELLY_SEQUENCE,
    SPIKINGJELLY_STEPS,
    Contestant,
    Run,
    at_percentiles,
    by_snntorch,
    by_spikingjelly,
    multi_step,
    step_by_step,
    step_layers,
)
from snn_lowlat.benchmark.networks import Subject
from snn_lowlat.kernels.surrogate import SpikeOptions, atan
from snn_lowlat.training.spiking_network import TrainableNetwork

__all__ = ["FINE_TUNING"]


def _there_and_back(prepare: Callable[[Subject, int], tuple[nn.Module, Run]]) -> Callable[[Subject, int], Run]:
    """Make each run go back through the network too, from the cross-entropy with some labels to all weights."""

    def prepared(subject: Subject, timesteps: int) -> Run:
        network, run = prepare(subject, timesteps)
        network.train()

        def batch(images: Tensor) -> Tensor:
            network.zero_grad()
            logits = run(images)
            labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
            torch.autograd.backward(nn.functional.cross_entropy(logits, labels))
            return logits.detach()

        return batch

    return prepared


def _ann(subject: Subject, timesteps: int) -> tuple[nn.Module, Run]:
    network = copy.deepcopy(subject.graph).requires_grad_(True)
    return network, network


def _spikingjelly(
    in_steps: Callable[[Any, int], Run],
) -> Callable[[Subject, int], tuple[nn.Module, Run]]:
    def prepare(subject: Subject, timesteps: int) -> tuple[nn.Module, Run]:
        from spikingjelly.activation_based import neuron, surrogate

        network = by_spikingjelly(subject).requires_grad_(True)
        for layer in network.modules():
            if isinstance(layer, neuron.BaseNode):
                layer.surrogate_function, layer.detach_reset = surrogate.ATan(), True
        return network, in_steps(network, timesteps)

    return prepare


def _snntorch(subject: Subject, timesteps: int) -> tuple[nn.Module, Run]:
    # Its neurons' surrogate is the arctangent, and their reset is detached.
    network, layers = by_snntorch(subject, timesteps)
    return network.requires_grad_(True), step_layers(network, layers, timesteps)


def _ours(thresholds: bool) -> Callable[[Subject, int], tuple[nn.Module, Run]]:
    def prepare(subject: Subject, timesteps: int) -> tuple[nn.Module, Run]:
        network, plan = at_percentiles(subject, timesteps)
        options = SpikeOptions(surrogate=atan, detach_reset=True)
        trainable = TrainableNetwork(
            network.requires_grad_(True),
            plan,
            subject.calibration[0].shape[1:],
            timesteps,
            options,
            train_thresholds=thresholds,
            train_leaks=thresholds,
        )
        return trainable, trainable

    return prepare


FINE_TUNING = (
    Contestant(ANN, _there_and_back(_ann)),
    Contestant(SPIKINGJELLY_STEPS, _there_and_back(_spikingjelly(step_by_step))),
    Contestant(SPIKINGJELLY_SEQUENCE, _there_and_back(_spikingjelly(multi_step))),
    Contestant(SNNTORCH_STEPS, _there_and_back(_snntorch)),
    Contestant(OURS, _there_and_back(_ours(thresholds=False))),
    Contestant("snn_lowlat, thresholds too", _there_and_back(_ours(thresholds=True))),
)
"""Who fine-tunes a network, in the order in which they take turns."""
