"""Which of torchvision's classification networks can be converted: the table of the README."""

import pytest
import torch
import torchvision

from snn_lowlat import check_convertible, convert
from snn_lowlat.evaluation import FiringRates
from snn_lowlat.graph import find_sites, normalise

CONVERTIBLE = {
    "resnet18": 17,
    "vgg11": 10,
    "vgg11_bn": 10,
    "alexnet": 7,
    "squeezenet1_1": 26,
    "mobilenet_v2": 35,
    "densenet121": 121,
    "googlenet": 90,
    "inception_v3": 102,
    "mnasnet0_5": 35,
    "shufflenet_v2_x0_5": 37,
}
# More than a hundred million weights each, or near it, or more than a hundred sites.
SLOW = ("vgg11_bn", "vgg11", "alexnet", "densenet121", "inception_v3")
REFUSED = {"efficientnet_b0": "SiLU", "regnet_y_400mf": "Sigmoid", "convnext_tiny": "GELU"}


def network(name):
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = 96 if name == "inception_v3" else 64
    return getattr(torchvision.models, name)(weights=None, num_classes=10, **options), torch.randn(2, 3, size, size)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CONVERTIBLE])
def test_relu_networks_convert_and_run(name):
    model, images = network(name)
    snn = convert(model.eval(), images, timesteps=2)
    assert len(snn.plan) == len(snn.spiking_layers()) == CONVERTIBLE[name]
    rates = FiringRates()
    curve = snn.readout(images, observe=rates)
    assert curve.shape == (2, 2, 10)
    assert curve.isfinite().all()
    # Every neuron answers in every step, and most layers spike (with random weights, not all of them do).
    assert rates.compute().keys() == snn.plan.keys()
    assert sum(rate > 0 for rate in rates.compute().values()) > 0.8 * len(snn.plan)


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_with_the_operation_and_its_node(name):
    model, images = network(name)
    report = check_convertible(model, images)
    assert not report.convertible
    named = [obstacle for obstacle in report.obstacles if obstacle.operation.startswith(REFUSED[name])]
    assert named
    assert all(obstacle.node and obstacle.advice for obstacle in named)


def test_convnext_layer_norm_is_named_too():
    model, images = network("convnext_tiny")
    assert "layer_norm" in str(check_convertible(model, images))


def test_the_normal_form_of_a_large_network_computes_the_same():
    model, images = network("densenet121")
    model(images)
    model.eval()
    with torch.no_grad():
        graph = normalise(model, images)
        torch.testing.assert_close(graph(images), model(images), rtol=1e-3, atol=1e-3)
    assert len(find_sites(graph)) == CONVERTIBLE["densenet121"]
