"""Networks in whole numbers, from conversion to file."""

import pytest
import torch

import snn_lowlat
from snn_lowlat.evaluation import evaluate
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.int8 import original_of
from snn_lowlat.models import SmallCNN

STRATEGIES = ["optimized_potential", "distribution_aware", "value_range", "temporal_switch"]


def converted(strategy="optimized_potential", backend="spikingjelly", **options):
    torch.manual_seed(0)
    model, images = SmallCNN(width=4).eval(), torch.rand(40, 1, 8, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    options = {"timesteps": 4, "precision": "int8", **options}
    return snn_lowlat.convert(model, [images], strategy=strategy, backend=backend, **options), images, model


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_hosts_fire_the_same_spikes_in_any_batch(strategy):
    """In whole numbers logits are equal to the last bit, whatever sums them up."""
    readouts = []
    for backend in BACKENDS:
        snn, images, _ = converted(strategy, backend)
        readouts.append(snn.readout(images))
        snn.micro_batch = 3
        readouts.append(snn.readout(images))
        readouts.append(torch.cat([snn.readout(part) for part in images.split(7)], 1))
    assert all(torch.equal(other, readouts[0]) for other in readouts)
    assert readouts[0].std(1).min() > 0


@pytest.mark.parametrize("strategy", ["value_range", "temporal_switch"])
def test_counts_are_those_of_the_spikes(strategy):
    snn, images, _ = converted(strategy)
    torch.testing.assert_close(snn(images), snn.simulate(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_little_differs_from_single_precision(strategy):
    whole, images, _ = converted(strategy, timesteps=32)
    single, _, _ = converted(strategy, timesteps=32, precision="fp32")
    difference = (whole(images) - single(images)).abs().mean()
    assert 0 < difference < 0.05 * single(images).abs().mean()


def test_files_keep_the_precision(tmp_path):
    snn, images, model = converted()
    snn.save(tmp_path / "snn.pt")
    for loaded in (
        snn_lowlat.load(tmp_path / "snn.pt"),
        snn_lowlat.load(tmp_path / "snn.pt", model=model),
        snn_lowlat.load(tmp_path / "snn.pt", backend="snntorch"),
    ):
        assert loaded.provenance.precision == "int8"
        assert torch.equal(loaded(images), snn(images))


def test_it_is_evaluated_as_any_other():
    snn, images, model = converted()
    report = evaluate(snn, [(images, torch.zeros(40, dtype=torch.long))], ann=model)
    assert report.images == 40


def test_unknown_precisions():
    with pytest.raises(ValueError, match=r"unknown precision 'int4'.*fp32"):
        converted(precision="int4")


def test_corrections_see_the_rounded_weights():
    """The channel means that bias correction matches are those of the network in whole numbers."""
    seen = []

    class Notes(snn_lowlat.Refinement):
        name = "notes"

        def refine(self, graph, plan, batches, timesteps):
            seen.append(graph)
            return graph, plan

    converted(refinements=[Notes()])
    converted(refinements=[Notes()], precision="fp32")
    assert original_of(seen[1]) is seen[1]
    before = dict(original_of(seen[0]).named_parameters())
    assert all(torch.equal(before[name], value) for name, value in seen[1].named_parameters())
    whole, single = (dict(graph.named_parameters()) for graph in seen)
    assert all(torch.equal(whole[name], single[name]) == name.endswith("bias") for name in single)


def test_bias_correction_mends_what_rounding_shifts():
    """Channel means come near to those of the original network, as near as in single precision."""
    errors = {}
    for precision in ("fp32", "int8"):
        snn, images, model = converted(timesteps=64, refinements=["bias_correction"], precision=precision)
        errors[precision] = float((snn(images).mean(0) - model(images).mean(0)).abs().max())
    plain, images, model = converted(timesteps=64)
    uncorrected = float((plain(images).mean(0) - model(images).mean(0)).abs().max())
    assert errors["int8"] < 0.5 * uncorrected
    assert errors["int8"] < errors["fp32"] + 0.01
