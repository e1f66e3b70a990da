"""What the contract is kept for: strategies with their options, neurons, networks, hosts and refinements.

A new strategy, neuron or refinement is one more row here; networks are in :mod:`networks`, hosts those there are.
"""

from dataclasses import replace

from networks import make_images, make_network

import snn_lowlat
from snn_lowlat.hosts import BACKENDS

TIMESTEPS = 4

STRATEGIES = {
    "distribution_aware": [
        {},
        {"objective": "mse", "percentile_source": "all", "granularity": "layer"},
        {"ceiling": "max", "initial_potential": "half"},
    ],
    "optimized_potential": [
        {},
        {"threshold": "mmse", "initial_potential": "calibrated"},
        {"threshold": "percentile", "percentile": 99.0, "granularity": "layer"},
        {"threshold": "max", "initial_potential": "zero"},
        {"initial_potential": 0.3},
    ],
    "value_range": [{}, {"threshold": "percentile", "granularity": "layer", "initial_potential": "zero"}],
    "temporal_switch": [
        {},
        {"output": "pipelined", "threshold": "percentile"},
        {"output": "online", "hysteresis": 2.0},
    ],
    "threshold_balancing": [{}, {"threshold": "percentile", "granularity": "channel"}],
}
ROWS = {
    "-".join([name, *(str(value) for value in options.values())]): (name, options)
    for name, variants in STRATEGIES.items()
    for options in variants
}
"""Every strategy with every variant of its options, by a label."""

COUNTED = [label for label in ROWS if label.startswith("value_range") or label == "temporal_switch"]
"""The rows whose neurons see their whole window before they fire."""

NEURONS = {
    "integrate_and_fire": ["optimized_potential", "distribution_aware-mse-all-layer"],
    "leaky_integrate_and_fire": ["optimized_potential"],
    "accumulate_then_fire": ["value_range-percentile-layer-zero"],
    "temporal_switch": ["temporal_switch"],
    "temporal_switch_pipelined": ["temporal_switch-pipelined-percentile"],
    "temporal_switch_online": ["temporal_switch-online-2.0"],
}
"""Every neuron model with rows of strategies that give it thresholds, per channel and per layer."""

HOSTS = list(BACKENDS)

REFINEMENTS = {"bias_correction": list(ROWS), "channel_thresholds": COUNTED}
"""Every refinement with the rows that it follows; it refuses the others."""


def convert(label, kind, batches=None, **options):
    """Convert one of the networks by one of the rows, with a bias correction unless told otherwise."""
    strategy, chosen = ROWS[label]
    options = {"timesteps": TIMESTEPS, "refinements": ["bias_correction"]} | chosen | options
    return snn_lowlat.convert(make_network(kind), batches or [make_images()], strategy=strategy, **options)


def convert_to(neuron, label, kind, backend):
    """Convert one of the networks to this neuron, whether a strategy plans it or a plan is written by hand.

    The leak is a multiple of a power of two: a host may keep it in single precision.
    """
    snn = convert(label, kind, backend=backend)
    graph, plan = snn.normal_form()
    if neuron == "leaky_integrate_and_fire":
        plan = {name: replace(site, neuron=neuron, parameters={"leak": 0.875}) for name, site in plan.items()}
        return snn.rebuilt(graph, plan)
    return snn
