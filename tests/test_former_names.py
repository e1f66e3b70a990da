"""Names by which people import, and by which pickles and config files name, what has since moved."""

import importlib
import pickle

import pytest

FORMER = {
    "snn_lowlat.training.activations": ("snn_lowlat.activations", "CeilingReLU QuantisedReLU ValueRangeReLU"),
    "snn_lowlat.evaluation.events": ("snn_lowlat.simulation.events", "EventRecorder Events"),
    "snn_lowlat.model": ("snn_lowlat.provenance", "Provenance"),
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in FORMER for name in FORMER[module][1].split()]
)
def test_a_former_name_is_what_it_has_become(module, name):
    now = getattr(importlib.import_module(FORMER[module][0]), name)
    assert getattr(importlib.import_module(module), name) is now
    assert pickle.loads(f"c{module}\n{name}\n.".encode()) is now
