from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from snn_lowlat.calibration import calibrate, inputs_of
from snn_lowlat.errors import CalibrationError


@pytest.fixture
def graph() -> fx.GraphModule:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5), nn.ReLU()
    )
    return fx.symbolic_trace(layers)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_sites_see_their_pre_activations(graph: fx.GraphModule, images: Tensor) -> None:
    statistics = calibrate(graph, images.split(8))
    assert list(statistics) == ["1", "5"]
    with torch.no_grad():
        expected = graph.get_submodule("0")(images).double()
    histogram = statistics["1"].histogram
    assert histogram.count == 40 * 16
    assert torch.allclose(histogram.maximum, expected.amax((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(histogram.minimum, expected.amin((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(histogram.mean, expected.mean((0, 2, 3)), atol=1e-6)
    assert statistics["5"].histogram.channels == 5
    assert statistics["5"].ceiling is None
    assert statistics["1"].name == "1"


def test_batches_in_every_form(graph: fx.GraphModule, images: Tensor) -> None:
    labels = torch.zeros(20)
    first, second = images.split(20)
    forms: list[list[object]] = [
        [first, second],
        [(first, labels), [second, labels]],
        [{"image": first, "label": labels}, {"pixel_values": second}],
        [({"x": first}, labels), (second,)],
    ]
    results = [calibrate(graph, form) for form in forms] + [calibrate(graph, images)]
    for result in results:
        assert torch.equal(result["5"].histogram.counts.sum(1), torch.full((5,), 40))
    assert torch.equal(results[0]["1"].histogram.counts, results[1]["1"].histogram.counts)


def test_limit_draws_no_batch_too_many(graph: fx.GraphModule, images: Tensor) -> None:
    drawn = []

    def batches():  # type: ignore[no-untyped-def]
        for batch in images.split(4):
            drawn.append(len(batch))
            yield batch

    assert calibrate(graph, batches(), limit=3, progress=True)["5"].histogram.count == 12
    assert len(drawn) == 3
    with pytest.raises(ValueError, match="limit must be a whole number of at least 1, not 0"):
        calibrate(graph, [images], limit=0)


def test_flags_and_hooks_are_as_before(graph: fx.GraphModule, images: Tensor) -> None:
    graph.train()
    graph.get_submodule("0").eval()
    before = {name: module.training for name, module in graph.named_modules()}
    first = calibrate(graph, [images])
    second = calibrate(graph, [images])
    assert torch.equal(first["5"].histogram.counts, second["5"].histogram.counts)
    with pytest.raises(CalibrationError):
        calibrate(graph, [images * torch.nan])
    assert {name: module.training for name, module in graph.named_modules()} == before
    assert not any(module._forward_pre_hooks for module in graph.modules())


def test_clear_errors(graph: fx.GraphModule, images: Tensor) -> None:
    with pytest.raises(CalibrationError, match=r"no calibration data reached site '1'"):
        calibrate(graph, [])
    with pytest.raises(CalibrationError, match="no calibration data"):
        calibrate(graph, [images[:0]])
    with pytest.raises(CalibrationError, match="images hold NaN or infinite numbers"):
        calibrate(graph, [torch.full_like(images, torch.nan)])
    with torch.no_grad():
        graph.get_submodule("4").weight[0, 0] = torch.inf
    with pytest.raises(CalibrationError, match=r"site '5'.*1 of 5 channels.*channel 0") as caught:
        calibrate(graph, [images])
    assert "input batch" not in str(caught.value)


def test_a_dead_layer_is_an_error_but_a_dead_channel_is_not(graph: fx.GraphModule, images: Tensor) -> None:
    linear = graph.get_submodule("4")
    with torch.no_grad():
        linear.weight[2] = 0
        linear.bias[2] = -1
    assert float(calibrate(graph, [images])["5"].histogram.maximum[2]) == -1.0
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.fill_(-1)
    with pytest.raises(CalibrationError, match=r"site '5' is dead.*weights are loaded"):
        calibrate(graph, [images])


def test_unreadable_batches() -> None:
    with pytest.raises(CalibrationError, match=r"keys \['picture'\]"):
        inputs_of({"picture": torch.zeros(1)})
    with pytest.raises(CalibrationError, match="first item"):
        inputs_of(("cat", torch.zeros(1)))
    for bad in ("text", 3, None, ()):
        with pytest.raises(CalibrationError, match="a batch must be"):
            inputs_of(bad)
