"""snnTorch's own idiom: a time loop, its neurons, its surrogates; without what gets in the way of conversion."""

import copy
import gc
import io
import pickle
import weakref

import joblib
import pytest
import snntorch as snn
import torch
from lightning import LightningModule, Trainer
from snntorch import surrogate, utils
from time_loops import window, window_in_a_process
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import snn_lowlat
from snn_lowlat import SnnLowlatError, snntorch
from snn_lowlat.hosts import get_backend
from snn_lowlat.plan import SitePlan


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    ).eval()


@pytest.fixture
def images():
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network(model, images):
    return snntorch.convert(model, images, timesteps=4)


def neurons(network):
    return next(module for module in network.modules() if isinstance(module, snn.Leaky))


def layer(threshold=1.0, initial_potential=0.0, amplitude=1.0, **parameters):
    values = (torch.tensor(value) for value in (threshold, initial_potential, amplitude))
    return snntorch.IntegrateAndFire(SitePlan(*values, parameters=parameters), dimensions=2)


def test_a_time_loop_over_snntorchs_own_neurons(network, images):
    assert isinstance(neurons(network), snn.Leaky)
    assert neurons(network).threshold.shape == (4, 1, 1)
    outputs = window(network, images)
    assert outputs.shape == (4, 16, 3)
    assert not torch.equal(outputs[0], outputs[1])


def test_the_module_alone_is_the_models_network(model, images, network):
    whole = snn_lowlat.convert(model, images, timesteps=4, backend="snntorch")
    assert torch.equal(window(network, images), window(whole.network, images))
    torch.testing.assert_close(window(network, images).mean(0), whole(images))


def test_spikes_at_the_threshold_and_keeps_what_is_above_it():
    neuron = layer(threshold=[1.0, 1.0], initial_potential=[0.0, 0.5], amplitude=[2.0, 4.0])
    currents = torch.tensor([[1.0, 0.25], [2.5, 0.25], [0.0, 0.0], [0.0, 0.0]])
    spikes = torch.stack([neuron(current[None])[0] for current in currents])
    assert spikes.tolist() == [[2.0, 0.0], [2.0, 4.0], [2.0, 0.0], [0.0, 0.0]]


def test_the_leak_acts_on_what_the_reset_has_left():
    neuron = layer(leak=0.5)
    outputs = [neuron(torch.tensor([[current]])).item() for current in (1.5, 0.0, 0.9)]
    assert outputs == [1.0, 0.0, 1.0]  # potentials before the reset: 1.5, 0.25, 1.025


def test_resetting_one_network_leaves_others_alone(network, images):
    other = copy.deepcopy(network)
    expected = window(other, images)
    snntorch.reset(other)
    first = other(images)
    window(network, images)
    snntorch.reset(network)
    utils.reset(network)
    assert torch.equal(first, expected[0])
    assert torch.equal(other(images), expected[1])


def test_nested_and_copied_networks_are_reset(network, images):
    nested = nn.Sequential(nn.ModuleDict({"inside": nn.Sequential(copy.deepcopy(network))})["inside"])
    assert torch.equal(window(nested, images), window(network, images))
    assert torch.equal(window(nested, images), window(network, images))


def test_a_reset_forgets_the_batch_size(network, images):
    expected = window(network, images[:3])
    window(network, images)
    assert torch.equal(window(network, images[:3]), expected)
    network(images)
    assert torch.equal(network(images[:3]), expected[0])


def test_nothing_is_kept_alive(model, images):
    before = list(snn.SpikingNeuron.instances)
    network = snntorch.convert(model, images, timesteps=2)
    window(network, images)
    assert snn.SpikingNeuron.instances == before
    alive = weakref.ref(neurons(network))
    del network
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("spike_grad", ["atan", "fast_sigmoid", snntorch.Surrogate("sigmoid", slope=5)])
def test_pickles(model, images, spike_grad):
    network = snntorch.convert(model, images, timesteps=4, learn_threshold=True, spike_grad=spike_grad)
    expected = window(network, images)
    stored = io.BytesIO()
    torch.save(network, stored)
    stored.seek(0)
    for other in (pickle.loads(pickle.dumps(network)), torch.load(stored, weights_only=False)):
        assert torch.equal(window(other, images), expected)
        assert repr(neurons(other).spike_grad) == repr(neurons(network).spike_grad)


def test_networks_go_to_other_processes(network, images):
    torch.multiprocessing.spawn(window_in_a_process, (network, images, window(network, images)), nprocs=1)


@pytest.mark.slow
def test_networks_go_through_joblib(network, images):
    expected = window(network, images)
    for outputs in joblib.Parallel(n_jobs=2)(joblib.delayed(window)(network, images) for _ in range(2)):
        assert torch.equal(outputs, expected)


class FineTuning(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, index):
        snntorch.reset(self.network)
        return sum(self.network(batch[0]) for _ in range(2)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.slow
def test_lightning_trains_them_in_spawned_processes(model, images, tmp_path):
    network = snntorch.convert(model, images, timesteps=2, learn_threshold=True)
    before = neurons(network).threshold.detach().clone()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = Trainer(strategy="ddp_spawn", accelerator="cpu", devices=2, default_root_dir=tmp_path, **quiet)
    trainer.fit(FineTuning(network), DataLoader(TensorDataset(images), batch_size=4))
    assert not torch.equal(neurons(network).threshold, before)


def test_values_become_trainable(model, images):
    network = snntorch.convert(model, images, timesteps=4, learn_threshold=True, learn_beta=True)
    layer = neurons(network)
    assert isinstance(layer.threshold, nn.Parameter)
    assert isinstance(layer.beta, nn.Parameter)
    assert not isinstance(layer.graded_spikes_factor, nn.Parameter)
    snntorch.reset(network)
    sum(network(images) for _ in range(4)).square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad.abs().sum() > 0


def test_gradients_are_those_of_snntorchs_surrogate():
    distance = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
    for kind, own in (("atan", surrogate.atan()), (surrogate.fast_sigmoid(slope=5), surrogate.fast_sigmoid(slope=5))):
        spikes = snntorch.Surrogate(kind)(distance)
        assert spikes.tolist() == [0.0, 1.0, 1.0]
        expected = torch.autograd.grad(own(distance).sum(), distance)[0]
        assert torch.equal(torch.autograd.grad(spikes.sum(), distance)[0], expected)


def test_a_surrogate_that_does_not_exist():
    with pytest.raises(ValueError, match="fast_sigmoid"):
        snntorch.Surrogate("fast_sigmoit")


def test_fine_tuned_networks_are_saved_as_they_are(model, images, tmp_path):
    trained = snn_lowlat.convert(model, images, timesteps=4, backend="snntorch")
    before = trained(images)
    snntorch.make_learnable(trained.network, threshold=True, beta=True, graded_spikes_factor=True)
    neurons(trained.network).beta.data.fill_(0.9)
    optimizer = torch.optim.SGD(trained.network.parameters(), 0.01)
    for _ in range(3):
        snntorch.reset(trained.network)
        optimizer.zero_grad()
        sum(trained.network(images) for _ in range(4)).square().sum().sqrt().backward()
        optimizer.step()
    trained.reset()
    after = trained(images)
    assert not torch.equal(after, before)
    assert not torch.equal(trained.normal_form()[1]["1"].threshold, trained.plan["1"].threshold)
    trained.save(tmp_path / "snn.pt")
    for backend in ("snntorch", "spikingjelly"):
        loaded = snn_lowlat.load(tmp_path / "snn.pt", backend=backend)
        torch.testing.assert_close(loaded(images), after)
        assert loaded.plan["1"].neuron == "leaky_integrate_and_fire"


def test_a_layer_trained_to_nonsense_is_named(model, images, tmp_path):
    trained = snn_lowlat.convert(model, images, timesteps=2, backend="snntorch")
    neurons(trained.network).threshold.neg_()
    with pytest.raises(SnnLowlatError, match=r"layer '1'.*threshold must be positive"):
        trained.save(tmp_path / "snn.pt")


def test_a_neuron_without_counterpart_is_named(model, images):
    graph, plan = snn_lowlat.convert(model, images, timesteps=2).normal_form()
    plan = {
        name: SitePlan(site.threshold, site.initial_potential, site.amplitude, neuron="unheard_of")
        for name, site in plan.items()
    }
    with pytest.raises(ValueError, match=r"neuron of site '1': 'unheard_of'.*integrate_and_fire"):
        get_backend("snntorch").build(graph, plan, images.shape[1:])


def test_running_whole_windows_leaves_the_time_loop_alone(model, images):
    whole = snn_lowlat.convert(model, images, timesteps=4, backend="snntorch")
    expected = window(whole.network, images)
    whole(images)
    assert torch.equal(window(whole.network, images), expected)


def test_an_initial_potential_above_the_threshold_is_no_spike_to_reset():
    neurons, currents = layer(threshold=0.5, initial_potential=1.2), torch.zeros(5, 1, 1)
    loop = torch.stack([neurons(current) for current in currents]).flatten()
    assert loop.tolist() == [1, 1, 0, 0, 0]
    neurons.reset_mem()
    neurons.folded_steps = 5
    assert torch.equal(neurons(currents.flatten(0, 1)).flatten(), loop)
