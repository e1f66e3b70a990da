import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat import CalibrationError, ConversionError
from snn_lowlat.strategies import OptimizedPotential


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)
    )


@pytest.fixture
def images():
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


FORMS = {
    "a tensor": lambda x: x,
    "a list of tensors": lambda x: [x[:8], x[8:]],
    "pairs": lambda x: [(x, torch.zeros(len(x)))],
    "dicts": lambda x: [{"image": x, "label": torch.zeros(len(x))}],
    "a loader": lambda x: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=16),
    "a generator": lambda x: (part for part in x.split(16)),
}


@pytest.mark.parametrize("form", FORMS)
def test_calibration_data_come_in_many_forms(form, model, images):
    expected = snn_lowlat.convert(model, [images], refinements=["bias_correction"])
    snn = snn_lowlat.convert(model, FORMS[form](images), refinements="bias_correction")
    torch.testing.assert_close(snn(images), expected(images), rtol=1e-4, atol=1e-5)


def test_a_strategy_object_and_its_name_are_the_same(model, images):
    by_name = snn_lowlat.convert(model, images, strategy="optimized_potential", initial_potential="zero")
    by_object = snn_lowlat.convert(model, images, strategy=OptimizedPotential(initial_potential="zero"))
    assert by_name.plan == by_object.plan
    assert by_name.provenance == by_object.provenance


def test_the_number_of_calibration_batches_is_limited(model, images):
    limited = snn_lowlat.convert(model, list(images.split(4)), calibration_batches=1)
    assert limited.plan == snn_lowlat.convert(model, images[:4]).plan


def test_the_network_is_not_changed(model, images):
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    snn_lowlat.convert(model, images, refinements=["bias_correction"])
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


MISTAKES = {
    "strategy": ({"strategy": "optimised_potential"}, "unknown strategy.*optimized_potential"),
    "backend": ({"backend": "spikingjely"}, "unknown backend.*Did you mean 'spikingjelly'"),
    "encoder": ({"encoder": "poison"}, "unknown input coding.*poisson"),
    "refinement": ({"refinements": ["bias"]}, "unknown refinement.*bias_correction"),
    "option": ({"percentil": 99}, "unknown option.*percentile"),
    "zero steps": ({"timesteps": 0}, "timesteps must be"),
    "half steps": ({"timesteps": 2.5}, "timesteps must be"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake, model, images):
    options, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        snn_lowlat.convert(model, images, **options)


def test_no_calibration_data(model):
    with pytest.raises(CalibrationError, match="no calibration data"):
        snn_lowlat.convert(model, [])


def test_a_network_without_activations(images):
    with pytest.raises(ConversionError, match="nothing to convert"):
        snn_lowlat.convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), images)


def test_images_of_another_size_are_refused(model, images):
    snn = snn_lowlat.convert(model, images)
    with pytest.raises(ValueError, match=r"converted for inputs \[N, 1, 8, 8\], not \[2, 1, 9, 9\]"):
        snn(torch.rand(2, 1, 9, 9))
    with pytest.raises(ValueError, match="timesteps must be a whole number of at least 1"):
        snn.readout(images, timesteps=0)


def test_poisson_spikes_are_seeded_and_keep_the_intensity(model, images):
    snn = snn_lowlat.convert(model, images, encoder="poisson", timesteps=64, seed=3)
    assert torch.equal(snn(images), snn(images))
    other = snn_lowlat.convert(model, images, encoder="poisson", timesteps=64, seed=4)
    assert not torch.equal(snn(images), other(images))
    direct = snn_lowlat.convert(model, images, timesteps=64)
    assert (snn(images) - direct(images)).abs().mean() < 0.1 * direct(images).abs().mean()
    with pytest.raises(ValueError, match=r"in \[0, 1\].*InputNormalisation"):
        snn(images - 1)


def test_latency_of_an_online_network_is_its_window(model, images):
    snn = snn_lowlat.convert(model, images, timesteps=6)
    assert (snn.timesteps, snn.latency_steps, snn.latency_steps_at(3), snn.depth) == (6, 6, 3, 2)
    assert "timesteps=6" in repr(snn)


def test_double_precision(model, images):
    snn = snn_lowlat.convert(model, images).double()
    assert snn(images.double()).dtype == torch.float64
    torch.testing.assert_close(snn(images.double()).float(), snn_lowlat.convert(model, images)(images))
