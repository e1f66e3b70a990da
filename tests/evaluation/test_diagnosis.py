from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from snn_lowlat.convert import convert
from snn_lowlat.evaluation import Diagnosis, SiteErrors, analyse, diagnose
from snn_lowlat.evaluation.measuring.diagnosis import ERRORS, remedies
from snn_lowlat.model import SpikingModel
from snn_lowlat.models import SmallCNN
from snn_lowlat.neurons import MAX_POOLINGS
from snn_lowlat.refinement import make_refinement
from snn_lowlat.strategies import make_strategy, strategies
from snn_lowlat.training import CeilingReLU


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def ann() -> nn.Module:
    torch.manual_seed(0)
    return SmallCNN(width=8).eval()


def with_plan(snn: SpikingModel, site: str, **changes: Any) -> SpikingModel:
    graph, plan = snn.normal_form()
    return snn.rebuilt(graph, {**plan, site: replace(plan[site], **changes)})


@pytest.mark.parametrize(("factor", "error"), [(0.15, "clipping"), (8.0, "quantisation")])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_wrong_threshold_planted_in_one_layer_is_found(
    ann: nn.Module, images: Tensor, layer: int, factor: float, error: str
) -> None:
    snn = convert(ann, images, timesteps=8)
    site = list(snn.plan)[layer]
    right = snn.plan[site]
    planted = with_plan(
        snn,
        site,
        threshold=factor * right.threshold,
        initial_potential=factor * right.initial_potential,
        amplitude=factor * right.amplitude,
    )
    advice = diagnose(planted, ann, [images]).advice
    assert (advice.site, advice.error) == (site, error)
    assert f"{error} error of layer {site}" in str(advice)
    healthy = diagnose(snn, ann, [images]).advice
    assert (healthy.site, healthy.error) != (site, error) or healthy.size < advice.size / 2


def test_spikes_that_come_at_the_wrong_time_are_unevenness() -> None:
    """Two neurons fire as often, one early and one late; the difference of the two is zero only on average."""
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[0.5], [0.5]]))
        network[0].bias.zero_()
        network[2].weight.copy_(torch.tensor([[2.0, -2.0], [0.0, 0.0]]))
        network[2].bias.copy_(torch.tensor([0.0, 0.5]))
    images = torch.ones(2, 1)
    snn = convert(network, images, timesteps=4, granularity="layer")
    first, second = snn.plan
    one = torch.ones(2)
    snn = with_plan(snn, first, threshold=one, initial_potential=torch.tensor([0.9, 0.0]), amplitude=one)
    snn = with_plan(snn, second, threshold=one, initial_potential=0 * one, amplitude=one)
    diagnosis = diagnose(snn, network, [images])
    assert (diagnosis.advice.site, diagnosis.advice.error) == (second, "unevenness")
    errors = diagnosis.sites[1]
    # It fires at the first and third of four steps where it should be silent, beside an activation of one half.
    assert errors.parts == pytest.approx(dict.fromkeys(ERRORS, 0) | {"unevenness": 1})
    assert errors.relative_error == pytest.approx(1)
    assert errors.cosine == pytest.approx(0.5**0.5)
    assert errors.firing_rates == (0.5, 0.5)


def test_a_layer_with_a_constant_current_by_hand() -> None:
    network = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[0.6], [1.5], [-1.0], [0.1]]))
        network[0].bias.zero_()
    images = torch.ones(3, 1)
    snn = convert(network, images, timesteps=2)
    (site,) = snn.plan
    one = torch.ones(())
    snn = with_plan(snn, site, threshold=one, initial_potential=0 * one, amplitude=one)
    (errors,) = diagnose(snn, network, [images]).sites
    norm = (0.6**2 + 1.5**2 + 0.1**2) ** 0.5
    assert errors.parts == pytest.approx(
        {
            "inherited": 0.0,
            "pooling": 0.0,
            "clipping": 0.5 / norm,  # 1.5 becomes 1
            "quantisation": (0.1**2 + 0.1**2) ** 0.5 / norm,  # 0.6 becomes 1/2, and 0.1 becomes 0
            "unevenness": 0.0,
        },
        abs=1e-6,
    )
    assert errors.relative_error == pytest.approx((0.1**2 + 0.5**2 + 0.1**2) ** 0.5 / norm)
    assert errors.firing_rates == (0.5, 1.0, 0.0, 0.0)
    assert (errors.dead, errors.saturated, errors.firing_rate) == (0.5, 0.25, 0.375)


def test_parts_bound_the_whole_and_the_first_layer_inherits_nothing(ann: nn.Module, images: Tensor) -> None:
    snn = convert(ann, images, timesteps=3, strategy="distribution_aware")
    diagnosis = diagnose(snn, ann, [images])
    assert [site.name for site in diagnosis.sites] == list(snn.plan)
    assert diagnosis.sites[0].parts["inherited"] == pytest.approx(0, abs=1e-6)
    for site in diagnosis.sites:
        assert set(site.parts) == set(ERRORS)
        assert site.relative_error <= sum(site.parts.values()) + 1e-9
        assert 0 <= site.cosine <= 1
        assert all(0 <= rate <= 1 for rate in site.firing_rates)
    assert (diagnosis.timesteps, diagnosis.images) == (3, 16)


def test_trained_ceilings_and_corrected_weights_are_compared_with_the_original(images: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), CeilingReLU(0.05), nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 3)
    ).eval()
    snn = convert(network, images, timesteps=64, refinements=["bias_correction"])
    first = diagnose(snn, network, [images]).sites[0]
    # The ceiling is the activation's own and no error.
    assert first.relative_error < 0.05


def test_batches_do_not_matter(ann: nn.Module, images: Tensor) -> None:
    snn = convert(ann, images, timesteps=3)
    whole = diagnose(snn, ann, [images[:10]])
    snn.micro_batch = 3
    parts = diagnose(snn, ann, [(images[:6], None), (images[6:], None)], images=10)
    assert parts.images == 10
    for one, other in zip(whole.sites, parts.sites, strict=True):
        assert one.relative_error == pytest.approx(other.relative_error)
        assert one.firing_rates == pytest.approx(other.firing_rates)


def test_another_network_and_no_images_are_refused(ann: nn.Module, images: Tensor) -> None:
    snn = convert(ann, images, timesteps=2)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with pytest.raises(ValueError, match="other layers"):
        diagnose(snn, other, [images])
    with pytest.raises(ValueError, match="no images"):
        diagnose(snn, ann, [])


def test_without_the_original_network_there_is_no_diagnosis(ann: nn.Module, images: Tensor) -> None:
    snn = convert(ann, images, timesteps=2)
    found = analyse(snn, [images])
    assert found.diagnosis is None
    assert list(found.operations) == [1, 2]
    assert len(found.example.outputs[0]) == 2


@pytest.mark.parametrize("error", ERRORS[1:])
@pytest.mark.parametrize("strategy", strategies())
def test_advice_names_options_that_exist(strategy: str, error: str) -> None:
    options = make_strategy(strategy).options()
    found = remedies(error, 4, strategy, options, ())
    assert found
    for remedy in found:
        key, value = remedy.split("=")
        if key.startswith("strategy."):
            name = key.removeprefix("strategy.")
            changed = make_strategy(strategy, **{name: yaml.safe_load(value)})
            assert changed.options()[name] != options[name]
        elif key == "strategy":
            assert make_strategy(value).name != strategy
        elif key == "refinements":
            make_refinement(value.strip("[]"))
        elif key == "max_pool":
            assert (error, value) == ("pooling", MAX_POOLINGS[0])
        else:
            assert (key, value) == ("timesteps", "8")


def test_advice_leaves_out_what_is_in_use() -> None:
    options = make_strategy("optimized_potential", threshold="mmse").options()
    found = remedies("quantisation", 4, "optimized_potential", options, [{"name": "bias_correction"}])
    assert found == ("timesteps=8",)


def test_plain_values_and_back(ann: nn.Module, images: Tensor) -> None:
    diagnosis = diagnose(convert(ann, images, timesteps=2), ann, [images])
    assert Diagnosis.from_dict(json.loads(json.dumps(diagnosis.to_dict()))) == diagnosis
    assert isinstance(diagnosis.sites[0], SiteErrors)
