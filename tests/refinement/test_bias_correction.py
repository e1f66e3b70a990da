import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snn_lowlat
from snn_lowlat import CalibrationError, Refinement, register_refinement
from snn_lowlat.convert import Conversion
from snn_lowlat.graph import find_sites, normalise
from snn_lowlat.refinement import BiasCorrection, make_refinement
from snn_lowlat.simulation import simulate

TIMESTEPS = 4


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = F.relu6(self.body(x) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def conversion():
    torch.manual_seed(0)
    images = torch.rand(64, 1, 8, 8)
    conversion = Conversion.of("optimized_potential", [images], TIMESTEPS)
    graph = conversion.normalise(Residual())
    conversion.calibrate(graph)
    return (*conversion.plan(graph), images)


def mean_errors(graph, plan, images, reference):
    """By how much each layer's channel means differ from the original network's, relative to the largest."""
    expected = {}
    handles = [
        reference.get_submodule(name).register_forward_hook(lambda m, i, o, n=name: expected.update({n: o}))
        for name in plan
    ]
    with torch.no_grad():
        logits = reference(images)
    for handle in handles:
        handle.remove()
    outputs, spikes = simulate(graph, plan, images.expand(TIMESTEPS, *images.shape))
    errors = {}
    for name, values in expected.items():
        ceiling = find_sites(reference)[name].ceiling
        target = (values if ceiling is None else values.clamp(max=float(ceiling))).mean((0, 2, 3))
        found = spikes[name].mean((0, 1, 3, 4)) * plan[name].amplitude
        errors[name] = float((found - target).abs().max() / target.max())
    errors["output"] = float((outputs.mean((0, 1)) - logits.mean(0)).abs().max())
    return errors


def test_means_become_those_of_the_network(conversion):
    graph, plan, images = conversion
    before = mean_errors(graph, plan, images, graph)
    corrected, same_plan = BiasCorrection(iterations=20).refine(graph, plan, [images], TIMESTEPS)
    after = mean_errors(corrected, plan, images, graph)
    assert same_plan == plan
    assert max(before.values()) > 0.02
    for name in before:
        assert after[name] < max(0.2 * before[name], 2e-3), name


def test_the_network_given_is_not_changed(conversion):
    graph, plan, images = conversion
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    BiasCorrection().refine(graph, plan, [images], TIMESTEPS)
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())


def test_only_so_many_images_are_read(conversion):
    graph, plan, images = conversion
    drawn = []

    def batches():
        for part in images.split(16):
            drawn.append(part)
            yield part

    few, _ = BiasCorrection(images=24).refine(graph, plan, batches(), TIMESTEPS)
    same, _ = BiasCorrection(images=24).refine(graph, plan, [images[:24]], TIMESTEPS)
    assert len(drawn) == 2
    for key, value in few.state_dict().items():
        torch.testing.assert_close(value, same.state_dict()[key])


def test_layers_without_a_bias_of_their_own_are_named(caplog):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            x = self.conv(x)
            return F.relu(x).mean((2, 3)) - F.relu(-x).mean((2, 3))

    images = torch.rand(8, 1, 8, 8) - 0.5
    with caplog.at_level(logging.WARNING):
        snn = snn_lowlat.convert(Shared(), images, timesteps=2, refinements=["bias_correction"])
    assert snn(images).shape == (8, 2)
    messages = " ".join(record.message for record in caplog.records)
    assert "layer relu" in messages
    assert "readout" in messages


def test_no_data(conversion):
    graph, plan, _ = conversion
    with pytest.raises(CalibrationError, match="bias_correction: there are no calibration data"):
        BiasCorrection().refine(graph, plan, [], TIMESTEPS)


@pytest.mark.parametrize("options", [{"images": 0}, {"iterations": 0}, {"images": 1.5}, {"iterations": True}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=f"bias_correction: {next(iter(options))} must be a whole number"):
        make_refinement("bias_correction", **options)


def test_refinements_are_registered_like_strategies():
    assert "bias_correction" in snn_lowlat.refinements("bias*")
    assert make_refinement("bias_correction", images=3) == BiasCorrection(images=3)
    with pytest.raises(ValueError, match="unknown refinement"):
        make_refinement("bias_corection")
    with pytest.raises(TypeError, match="subclass of Refinement"):
        register_refinement("nothing")(dict)
    assert issubclass(BiasCorrection, Refinement)


def test_the_walk_sees_what_the_simulation_sees(conversion):
    graph, plan, images = conversion
    _, spikes = simulate(graph, plan, images.expand(TIMESTEPS, *images.shape))
    first = next(iter(plan))
    reference = normalise(Residual(), images)
    reference.load_state_dict(graph.state_dict())
    corrected, _ = BiasCorrection(iterations=1).refine(graph, plan, [images], TIMESTEPS)
    seen = {}
    handle = graph.get_submodule(first).register_forward_hook(lambda m, i, o: seen.update(value=o))
    graph(images)
    handle.remove()
    shift = seen["value"].mean((0, 2, 3)) - spikes[first].mean((0, 1, 3, 4)) * plan[first].amplitude
    difference = corrected.get_parameter("stem.bias") - graph.get_parameter("stem.bias")
    torch.testing.assert_close(difference, shift, rtol=1e-4, atol=1e-6)
