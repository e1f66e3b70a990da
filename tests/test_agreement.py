"""Whatever a user does to a network, all ways to run it agree: its call, its simulation, its evaluation and its host.

All numbers are multiples of powers of two, so that sums are exact in any order and a single other spike would show.
"""

import copy
import io
import pickle
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn
from torch.nn.utils import parametrize

import snn_lowlat
from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.evaluation import evaluate
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.training import FineTuning

TIMESTEPS = 4
EDITS = ("in place", "data", "numpy", "one number", "parameter", "other data")
KINDS = {
    "online": ("optimized_potential", {}),
    "leaky": ("optimized_potential", {}),
    "windowed": ("value_range", {}),
    "switching": ("temporal_switch", {}),
}
LABELS = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Linear(12, 3),
        )

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        return self.last(nn.functional.avg_pool2d(x, 2).flatten(1))


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (4,)),
    "residual": (Residual, (1, 4, 4)),
}


@lru_cache
def images_of(network, count=3):
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 9, (count, *NETWORKS[network][1]), generator=generator) / 8


@lru_cache
def converted(network, backend, precision, kind):
    torch.manual_seed(3)
    model = NETWORKS[network][0]().eval()
    strategy, options = KINDS[kind]
    snn = snn_lowlat.convert(
        model,
        images_of(network, 32),
        strategy=strategy,
        timesteps=TIMESTEPS,
        backend=backend,
        precision=precision,
        **options,
    )
    if kind == "leaky":
        graph, plan = snn.normal_form()
        leaky = {"neuron": "leaky_integrate_and_fire", "parameters": {"leak": 0.5}}
        plan = {name: replace(site, **leaky) for name, site in plan.items()}
        snn = snn.rebuilt(graph, plan)
    if precision == "fp32":
        snap(snn)
    return snn


@torch.no_grad()
def snap(snn):
    """Round all numbers to multiples of 1/8; those of neurons but for initial potentials stay positive."""
    for name, value in snn.network.state_dict().items():
        if name.endswith(("threshold", "scale", "graded_spikes_factor")):
            value.copy_((value * 8).round().clamp(min=1) / 8)
        elif not name.endswith(("beta", "reset_mechanism_val")):
            value.copy_((value * 8).round() / 8)


def own_time_loop(snn, images):
    """Step the host's modules as its users do; windowed neurons give their last window."""
    snn.reset()
    steps = snn.latency_steps
    outputs = torch.stack([snn.network(images.to(next(snn.network.parameters()).dtype)) for _ in range(steps)])
    snn.reset()
    return outputs[-TIMESTEPS:].mean(0)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


class HalvedLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


class Sequences(RuleBasedStateMachine):
    """What a user may do, in any order."""

    @initialize(
        network=st.sampled_from(list(NETWORKS)),
        backend=st.sampled_from(list(BACKENDS)),
        precision=st.sampled_from(["fp32", "int8"]),
        kind=st.sampled_from(list(KINDS)),
    )
    def convert(self, network, backend, precision, kind):
        if kind == "leaky":
            precision = "fp32"
        self.name, self.kind = network, kind
        self.snn = copy.deepcopy(converted(network, backend, precision, kind))
        self.untouched = precision == "int8"
        self.foreign = self.bound = False
        self.hook = None

    def parameters(self):
        return [value for value in self.snn.network.parameters() if value.numel()]

    def layers(self):
        return {n: m for n, m in self.snn.network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    def thresholds(self):
        return [v for n, v in self.snn.network.named_buffers() if n.endswith("threshold")]

    @rule(which=st.integers(0, 9), how=st.sampled_from(EDITS))
    def edit_a_weight(self, which, how):
        parameters = self.parameters()
        value = parameters[which % len(parameters)]
        self.untouched = False
        if how == "in place":
            with torch.no_grad():
                value.mul_(-1)
        elif how == "data":
            value.data.neg_()
        elif how == "numpy" and value.dtype != torch.bfloat16:
            shared = value.detach().numpy()
            shared *= 0.5
        elif how == "one number":
            value.data.view(-1)[which % value.numel()] += 1
        elif how == "other data":
            value.data = value.data.flip(0)
        elif how == "parameter" and not self.foreign:
            name = next(n for n, v in self.snn.network.named_parameters() if v is value)
            owner, _, attribute = name.rpartition(".")
            setattr(self.snn.network.get_submodule(owner), attribute, nn.Parameter(value.detach() * 0.5))

    @rule(which=st.integers(0, 9), factor=st.sampled_from([0.5, 2.0]), hidden=st.booleans())
    def edit_a_threshold(self, which, factor, hidden):
        thresholds = self.thresholds()
        value = thresholds[which % len(thresholds)]
        self.untouched = False
        with torch.no_grad():
            (value.data if hidden else value).mul_(factor)

    @rule(factor=st.sampled_from([0.5, 2.0]))
    def load_a_state(self, factor):
        state = self.snn.network.state_dict()
        changed = {n: v * factor if n.endswith(("weight", "threshold", "original")) else v for n, v in state.items()}
        self.snn.network.load_state_dict(changed)
        self.untouched = False

    @rule(dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    def change_the_type(self, dtype):
        self.snn.to(dtype)
        self.untouched = self.untouched and dtype != torch.bfloat16

    @precondition(lambda self: not self.bound)
    @rule(how=st.sampled_from(["deepcopy", "pickle", "torch.save"]))
    def copy(self, how):
        if self.hook is not None:
            self.hook.remove()
            self.hook = None
        if how == "deepcopy":
            self.snn = copy.deepcopy(self.snn)
        elif parametrized(self.snn):
            return
        elif how == "pickle":
            self.snn = pickle.loads(pickle.dumps(self.snn))
        else:
            file = io.BytesIO()
            torch.save(self.snn, file)
            file.seek(0)
            self.snn = torch.load(file, weights_only=False)

    @precondition(lambda self: next(self.snn.network.parameters()).dtype == torch.float32)
    @rule(backend=st.sampled_from(list(BACKENDS)))
    def save_and_load(self, backend):
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            if self.foreign:
                with pytest.raises(SnnLowlatError, match="not what was built"):
                    self.snn.save(f"{folder}/snn.pt")
                return
            self.snn.save(f"{folder}/snn.pt")
            self.snn = snn_lowlat.load(f"{folder}/snn.pt", backend=backend)
            self.hook = None

    @precondition(lambda self: self.kind in ("online", "leaky") and not self.foreign)
    @precondition(lambda self: next(self.snn.network.parameters()).dtype == torch.float32)
    @rule()
    def train(self):
        was = self.snn.precision
        tuning = FineTuning(self.snn, num_classes=3)
        tuning(images_of(self.name)).logsumexp(1).sum().backward()
        with torch.no_grad():
            for parameter in tuning.network.parameters():
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-0.125)
        for neurons in tuning.network.neurons().values():
            neurons.keep_valid()
        self.snn = tuning.to_spiking_model()
        self.hook, self.untouched = None, False
        assert self.snn.provenance.precision in ("fp32", was) or was != "int8"
        snap(self.snn)

    @rule(on_host=st.booleans(), size=st.sampled_from([None, 1, 2]), training=st.booleans())
    def choose_how_it_runs(self, on_host, size, training):
        self.snn.run_on_host, self.snn.micro_batch = on_host, size
        self.snn.train(training)

    @precondition(lambda self: self.hook is None)
    @rule(which=st.integers(0, 9))
    def hook_an_output(self, which):
        layers = list(self.layers().values())
        self.hook = layers[which % len(layers)].register_forward_hook(lambda _, __, output: output * 2)

    @precondition(lambda self: self.hook is not None)
    @rule()
    def unhook(self):
        self.hook.remove()
        self.hook = None

    @rule(which=st.integers(0, 9), how=st.sampled_from(["another", "class", "parametrization", "forward", "option"]))
    def replace_a_layer(self, which, how):
        layers = self.layers()
        name = list(layers)[which % len(layers)]
        layer = layers[name]
        self.untouched = False
        if how == "another" and not self.foreign and self.hook is None:
            other = copy.deepcopy(layer)
            other.weight.data.mul_(0.5)
            owner, _, attribute = name.rpartition(".")
            setattr(self.snn.network.get_submodule(owner), attribute, other)
        elif how == "parametrization" and not parametrize.is_parametrized(layer):
            parametrize.register_parametrization(layer, "weight", Halved())
            self.foreign = True
        elif how == "forward" and not self.bound:
            kind = type(layer)
            layer.forward = lambda x, *rest: kind.forward(layer, x, *rest) / 2
            self.foreign = self.bound = True
        elif how == "option" and self.kind in ("online", "leaky"):
            neurons = next(iter(self.snn.spiking_layers().values()))
            if self.snn.backend == "spikingjelly":
                self.foreign = self.foreign or neurons.leak != 0.25
                neurons.leak = 0.25
            else:
                neurons.beta.fill_(0.25)

    @invariant()
    @torch.no_grad()
    def all_agree(self):
        if not hasattr(self, "snn"):
            return
        snn, images = self.snn, images_of(self.name)
        dtype = next(snn.network.parameters()).dtype
        exact = dtype != torch.bfloat16
        found, simulated, readout = snn(images), snn.simulate(images), snn.readout(images)
        before, snn.run_on_host = snn.run_on_host, True
        hosts = snn.readout(images)
        snn.run_on_host = before
        assert found.dtype == dtype
        near(readout, hosts)
        near(simulated, hosts[-1])
        if exact:
            near(found, simulated)
            modes = [(module, module.training) for module in snn.modules()]
            snn.eval()
            near(own_time_loop(snn, images), simulated)
            for module, training in modes:
                module.training = training
            right = evaluate(snn, [(images, found.argmax(1))])
            assert right.accuracies[TIMESTEPS] == 1
            assert right.precision == snn.precision
        self.precision_is_true(dtype)

    def precision_is_true(self, dtype):
        precision = self.snn.precision
        assert precision in ("int8", LABELS[dtype])
        if self.untouched and self.hook is None:
            assert precision == "int8"
        if precision == "int8":
            graph, plan = self.snn.normal_form()
            for layer in graph.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    assert torch.equal(layer.weight, layer.weight.round())
                    assert torch.equal(layer.bias, layer.bias.round())
                    assert layer.weight.abs().max() <= 127
            for site in plan.values():
                assert torch.equal(site.threshold, site.threshold.round())
                assert torch.equal(site.initial_potential, site.initial_potential.round())
                assert bool((site.amplitude == 1).all())


def parametrized(snn):
    return any(parametrize.is_parametrized(module) for module in snn.modules())


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


GENERATED = (Phase.explicit, Phase.reuse, Phase.generate)
QUIET = {"phases": GENERATED, "deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


class TestSequences(Sequences.TestCase):
    settings = settings(max_examples=16, stateful_step_count=6, derandomize=True, **QUIET)


@pytest.mark.slow
class TestManySequences(Sequences.TestCase):
    settings = settings(max_examples=1000, stateful_step_count=10, **QUIET)
