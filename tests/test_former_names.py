"""Names by which people import, and by which pickles and config files name, what has since moved."""

import importlib
import pickle

import pytest

FORMER = [
    ("snn_lowlat.training.activations", "snn_lowlat.activations", "CeilingReLU QuantisedReLU ValueRangeReLU"),
    ("snn_lowlat.adapters", "snn_lowlat.hosts", "BACKENDS Backend get_backend register_host"),
    ("snn_lowlat.adapters.nir", "snn_lowlat.nir", "NIRExport from_nir to_nir"),
    ("snn_lowlat.adapters.snntorch", "snn_lowlat.hosts.snntorch", "ChargeMaxPool IntegrateAndFire Spiking _surrogate"),
    ("snn_lowlat.adapters.spikingjelly", "snn_lowlat.hosts.spikingjelly", "IntegrateAndFireNode SpikingNode build"),
    ("snn_lowlat.adapters.spikingjelly", "snn_lowlat.spikingjelly", "LowLatencyRecipe OptimizedPotentialRecipe"),
    ("snn_lowlat.adapters.watch", "snn_lowlat.hosts.watch", "Sight Watch"),
    ("snn_lowlat.evaluation.operations", "snn_lowlat.evaluation.measuring.operations", "EventCounter Operations"),
    ("snn_lowlat.evaluation.report", "snn_lowlat.evaluation.measuring.report", "Report table"),
    ("snn_lowlat.evaluation.events", "snn_lowlat.simulation.events", "EventRecorder Events"),
    ("snn_lowlat.model", "snn_lowlat.provenance", "Provenance"),
]


@pytest.mark.parametrize(
    ("former", "present", "name"), [(former, now, name) for former, now, names in FORMER for name in names.split()]
)
def test_a_former_name_is_what_it_has_become(former, present, name):
    now = getattr(importlib.import_module(present), name)
    assert getattr(importlib.import_module(former), name) is now
    assert pickle.loads(f"c{former}\n{name}\n.".encode()) is now
