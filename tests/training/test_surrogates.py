from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from snn_lowlat.kernels.surrogate import SURROGATES
from snn_lowlat.training.surrogates import HostSurrogate, make_surrogate

DISTANCES = torch.linspace(-1.7, 1.7, 8)


def scaled(distance: Tensor, factor: float = 1.0) -> Tensor:
    return factor * torch.ones_like(distance)


@pytest.mark.parametrize("name", SURROGATES)
def test_own_surrogates_have_names(name: str) -> None:
    assert torch.equal(make_surrogate(name)(DISTANCES), SURROGATES[name](DISTANCES))


@pytest.mark.parametrize(
    ("host", "options", "own", "own_options"),
    [
        ("spikingjelly.ATan", {"alpha": 3.0}, "atan", {"alpha": 3.0}),
        ("spikingjelly.Sigmoid", {"alpha": 4.0}, "sigmoid", {"slope": 4.0}),
        ("spikingjelly.PiecewiseQuadratic", {"alpha": 1.0}, "triangle", {"height": 1.0}),
        ("snntorch.atan", {"alpha": 2.0}, "atan", {"alpha": 2.0}),
        ("snntorch.fast_sigmoid", {"slope": 10.0}, "fast_sigmoid", {"slope": 10.0}),
        ("snntorch.sigmoid", {"slope": 3.0}, "sigmoid", {"slope": 3.0}),
    ],
)
def test_hosts_surrogates_have_names(host: str, options: dict, own: str, own_options: dict) -> None:
    found = make_surrogate(host, **options)(DISTANCES)
    # snnTorch's sigmoid divides by the square of 1 + exp(-slope u), without the slope in front of it.
    torch.testing.assert_close(found, make_surrogate(own, **own_options)(DISTANCES), rtol=1e-4, atol=1e-6)


def test_functions_are_surrogates() -> None:
    assert make_surrogate(scaled)(DISTANCES).unique().tolist() == [1.0]
    assert make_surrogate(scaled, factor=0.5)(DISTANCES).unique().tolist() == [0.5]


@pytest.mark.parametrize("name", ["rectangular", "spikingjelly.ATan", "snntorch.atan"])
def test_surrogates_can_be_pickled(name: str) -> None:
    surrogate = make_surrogate(name)
    assert torch.equal(pickle.loads(pickle.dumps(surrogate))(DISTANCES), surrogate(DISTANCES))


def test_host_surrogates_show_what_they_are() -> None:
    assert repr(HostSurrogate("snntorch", "atan", alpha=2.0)) == "HostSurrogate('snntorch', 'atan', alpha=2.0)"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rectangle", {}, "Did you mean 'rectangular'"),
        ("norse.atan", {}, "host of surrogates"),
        ("spikingjelly.atan", {}, "surrogate of spikingjelly 'atan'.*ATan"),
        ("snntorch.atan", {"width": 1}, "does not take the options"),
        ("rectangular", {"slope": 1}, "'rectangular' with options .*slope"),
        (lambda distance: distance.sum(), {}, "same shape"),
        (scaled, {"factor": torch.inf}, "finite"),
    ],
)
def test_bad_surrogates_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_surrogate(name, **options)
