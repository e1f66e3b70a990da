"""What is given where something else belongs: every entry point says what to give instead."""

import copy
import sys
from functools import partial
from itertools import repeat

import numpy as np
import pytest
import torch
from snn_lowlat.evaluation.events import EventRecorder
from spikingjelly.activation_based.ann2snn import FXConverter
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import snn_lowlat
from snn_lowlat import CalibrationError, SitePlan
from snn_lowlat.calibration import calibrate
from snn_lowlat.encoding import ENCODERS
from snn_lowlat.evaluation import analyse, evaluate, measure_operations
from snn_lowlat.graph import normalise
from snn_lowlat.hosts import BACKENDS, get_backend
from snn_lowlat.models import VGG16, ResNet20, SmallCNN
from snn_lowlat.refinement import make_refinement
from snn_lowlat.spikingjelly import LowLatencyRecipe
from snn_lowlat.strategies import OptimizedPotential, make_strategy
from snn_lowlat.training import (
    CeilingReLU,
    Classifier,
    FineTuning,
    InputSpikes,
    QuantisedReLU,
    RoundLater,
    ValueRangeReLU,
    expand_input,
    fit_ceilings,
    replace_activations,
)


class Net(nn.Sequential):
    """A small convolutional network."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)),
        )


torch.manual_seed(0)
MODEL = Net().eval()
X = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 3
SNN = snn_lowlat.convert(MODEL, X, timesteps=4)
COUNTED = snn_lowlat.convert(MODEL, X, strategy="value_range", timesteps=4)


class Stream(IterableDataset):
    """Single images, one after the other."""

    def __iter__(self):
        return iter(X)


def quantised():
    model = torch.ao.quantization.QuantWrapper(Net()).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("onednn")
    prepared = torch.ao.quantization.prepare(model)
    prepared(X)
    return torch.ao.quantization.convert(prepared)


def part(wrap):
    model = copy.deepcopy(MODEL)
    model[4] = wrap(model[4])
    return model


NO_NETWORKS = {
    "nothing": (lambda: None, "must be a torch.nn.Module, not None"),
    "class": (lambda: Net, r"not the class Net: create it first, Net\(\)"),
    "state_dict": (MODEL.state_dict, "load it into the network first"),
    "path": (lambda: "model.pt", "not the text 'model.pt': create the network and load"),
    "function": (lambda: torch.relu, "must be a torch.nn.Module, not"),
    "loader": (lambda: DataLoader(TensorDataset(X, Y)), "the network comes before the data"),
    "SpikingModel": (lambda: SNN, "this one is spiking: give the trained ReLU network"),
    "host's module": (lambda: SNN.network, "this one is spiking"),
}
NOT_TRACED = {
    "script": (lambda: torch.jit.script(MODEL), "compiled by torch.jit"),
    "trace": (lambda: torch.jit.trace(MODEL, X), "compiled by torch.jit"),
    "script inside": (lambda: part(torch.jit.script), "compiled by torch.jit"),
    "exported": (lambda: torch.export.export(MODEL, (X,)), "give the network that was exported"),
    "exported module": (lambda: torch.export.export(MODEL, (X,)).module(), "made by torch.export"),
    "quantised": (quantised, "is quantised, or prepared for it"),
    "meta": (lambda: copy.deepcopy(MODEL).to("meta"), "'0.weight' lies on the device 'meta'"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten()), "has lazy layers: '0.weight'"),
}
NETWORK_PLACES = {
    "convert": lambda model: snn_lowlat.convert(model, X),
    "check_convertible": lambda model: snn_lowlat.check_convertible(model, X),
    "recipe": lambda model: LowLatencyRecipe("value_range", calibration=X, timesteps=2).before_trace(None, model),
    "analyse": lambda model: analyse(SNN, [X], model),
    "replace_activations": replace_activations,
    "expand_input": lambda model: expand_input(model, X, 4),
}


# A network is optional in an analysis.
PLACED = [(place, given) for place in NETWORK_PLACES for given in NO_NETWORKS | NOT_TRACED]
PLACED.remove(("analyse", "nothing"))


@pytest.mark.parametrize(("place", "given"), PLACED)
def test_what_is_no_network_to_rewrite_is_named(place, given):
    make, words = (NO_NETWORKS | NOT_TRACED)[given]
    with pytest.raises(ValueError, match=words):
        NETWORK_PLACES[place](make())


@pytest.mark.parametrize("given", NO_NETWORKS)
def test_what_is_no_network_to_run_is_named(given):
    make, words = NO_NETWORKS[given]
    places = [lambda model: fit_ceilings(model, [X])]
    if given != "nothing":
        places.append(lambda model: evaluate(SNN, [(X, Y)], model))
    if given not in ("SpikingModel", "host's module"):
        places.append(lambda model: Classifier(model, 3))
    for place in places:
        with pytest.raises(ValueError, match=words):
            place(make())


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
    "average": torch.optim.swa_utils.AveragedModel,
    "DataParallel inside": lambda model: part(nn.DataParallel),
    "compile inside": lambda model: part(torch.compile),
    "both inside": lambda model: nn.DataParallel(part(lambda layer: torch.compile(nn.DataParallel(layer)))),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_networks_convert_to_what_the_bare_ones_do(wrapper):
    wrapped = WRAPPERS[wrapper](MODEL)
    kinds = [type(module) for module in wrapped.modules()]
    assert torch.equal(snn_lowlat.convert(wrapped, X, timesteps=4)(X), SNN(X))
    assert snn_lowlat.check_convertible(wrapped, X)
    assert [type(module) for module in wrapped.modules()] == kinds


def test_swapped_arguments_are_named():
    for data in (X, [X], DataLoader(TensorDataset(X, Y))):
        with pytest.raises(ValueError, match=r"swapped: give convert\(model, calibration\)"):
            snn_lowlat.convert(data, MODEL)
    with pytest.raises(ValueError, match="the network comes before the data"):
        evaluate([(X, Y)], SNN)
    with pytest.raises(ValueError, match="batches of images, not the network SpikingModel"):
        evaluate(SNN, SNN)


NO_SPIKING_MODELS = {
    "nothing": (lambda: None, "must be a SpikingModel, not None"),
    "original": (lambda: MODEL, r"not a Net: convert it first, snn_lowlat.convert\(model, calibration\)"),
    "host's module": (lambda: SNN.network, r"give what snn_lowlat.convert\(\) returned"),
    "path": (lambda: "snn.pt", r"load it first, snn_lowlat.load\('snn.pt'\)"),
    "loader": (lambda: [X], "the network comes before the data"),
}
SPIKING_PLACES = {
    "evaluate": lambda snn, path: evaluate(snn, [(X, Y)]),
    "analyse": lambda snn, path: analyse(snn, [X]),
    "measure_operations": lambda snn, path: measure_operations(snn, [X]),
    "to_nir": lambda snn, path: snn_lowlat.to_nir(snn, X),
    "save": lambda snn, path: snn_lowlat.persistence.save(snn, path / "snn.pt"),
    "FineTuning": lambda snn, path: FineTuning(snn, 3),
    "EventRecorder": lambda snn, path: EventRecorder(snn),
}


@pytest.mark.parametrize("given", NO_SPIKING_MODELS)
@pytest.mark.parametrize("place", SPIKING_PLACES)
def test_what_is_no_spiking_model_is_named(place, given, tmp_path):
    make, words = NO_SPIKING_MODELS[given]
    with pytest.raises(ValueError, match=words):
        SPIKING_PLACES[place](make(), tmp_path)


NO_BATCHES = {
    "nothing": (None, "must be batches of images, such as a DataLoader .* not None"),
    "number": (3, "not 3"),
    "text": ("train", "not the text 'train'"),
    "class": (DataLoader, "not the class DataLoader"),
    "function": (lambda: [X], "not a function"),
    "network": (MODEL, "not the network Net"),
    "dataset": (TensorDataset(X, Y), r"yields single images: give DataLoader\(dataset, batch_size=128\)"),
    "stream": (Stream(), "the Dataset Stream yields single images"),
    "array": (X.numpy(), "not a NumPy array"),
    "one pair": ((X, Y), r"this is one batch: put it into a list, \[batch\]"),
    "one dict": ({"image": X, "label": Y}, "this is one batch"),
    "meta": (X.to("meta"), "device 'meta'"),
    "sparse": (X.to_sparse(), r"images.to_dense\(\)"),
}
BATCH_PLACES = {
    "convert": lambda batches: snn_lowlat.convert(MODEL, batches),
    "recipe": lambda batches: LowLatencyRecipe("value_range", calibration=batches, timesteps=4),
    "calibrate": lambda batches: calibrate(normalise(MODEL, X), batches),
    "evaluate": lambda batches: evaluate(SNN, batches),
    "analyse": lambda batches: analyse(SNN, batches),
    "measure_operations": lambda batches: measure_operations(SNN, batches),
    "fit_ceilings": lambda batches: fit_ceilings(replace_activations(MODEL), batches),
}


@pytest.mark.parametrize("given", NO_BATCHES)
@pytest.mark.parametrize("place", BATCH_PLACES)
def test_what_yields_no_batches_is_named(place, given):
    batches, words = NO_BATCHES[given]
    with pytest.raises(ValueError, match=words):
        BATCH_PLACES[place](batches)


BAD_CALIBRATION = {
    "none": ([], "no calibration data"),
    "none with images": ([X[:0], X[:0]], "no calibration data"),
    "arrays": ([X.numpy()], r"not ndarray: give torch.from_numpy\(images\)"),
    "one image": (X[0], r"shape \[1, 8, 8\].*one image, it needs a batch dimension: images.unsqueeze\(0\)"),
    "single images": (list(X), r"one image, it needs a batch dimension"),
    "labels first": ([(Y.float(), X)], r"must be a batch of shape \[N, ...\], not \[16\]"),
    "bytes": ([(255 * X).byte()], r"images.float\(\) / 255"),
    "sizes": ([X, X[..., 1:]], r"have the shape \[1, 8, 7\], the first had \[1, 8, 8\]"),
    "number": ([torch.tensor(1.0)], "not the single number"),
    "zeros": ([torch.zeros(8, 1, 8, 8)], "the calibration images are constant"),
    "ones": (torch.ones(8, 1, 8, 8), "constant: there is nothing in them but the value 1"),
}


@pytest.mark.parametrize("given", BAD_CALIBRATION)
def test_calibration_data_that_can_not_be_used_are_named(given):
    batches, words = BAD_CALIBRATION[given]
    with pytest.raises(CalibrationError, match=words):
        snn_lowlat.convert(MODEL, batches)


def test_one_constant_image_among_others_is_none_to_complain_of(caplog):
    snn_lowlat.convert(MODEL, [torch.zeros(1, 1, 8, 8), X])
    snn_lowlat.convert(MODEL, X[:1])
    # A single number is always constant.
    snn_lowlat.convert(nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(4, 1))
    assert not caplog.text


def test_images_that_are_all_the_same_are_said(caplog):
    snn_lowlat.convert(MODEL, [X[:1].expand(4, -1, -1, -1), X[:1]])
    assert "the 5 calibration images are all the same" in caplog.text
    caplog.clear()
    snn_lowlat.convert(MODEL, [torch.full((2, 1, 8, 8), level) for level in (0.2, 0.5, 1.0)])
    assert "each of the 6 calibration images is one value all over" in caplog.text


def test_empty_batches_are_left_out():
    empty, labels = X[:0], Y[:0]
    assert snn_lowlat.convert(MODEL, [empty, X, empty], timesteps=4).plan == SNN.plan
    assert snn_lowlat.convert(MODEL, iter([(empty, labels), (X, Y)]), timesteps=4).plan == SNN.plan
    whole = evaluate(SNN, [(X, Y)])
    assert evaluate(SNN, [(empty, labels), (X, Y), (empty, labels)]).accuracies == whole.accuracies
    assert measure_operations(SNN, [empty, X])[4].spikes == measure_operations(SNN, [X])[4].spikes
    assert analyse(SNN, [empty, X], MODEL).operations[4].images == 16
    for measure in (analyse, partial(evaluate, timesteps=2)):
        with pytest.raises(ValueError, match="no images"):
            measure(SNN, [(empty, labels)])


def test_generators_that_never_end_are_told_from_long_ones(monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["snn_lowlat.convert"], "_MOST_KEPT_BATCHES", 50)
    with pytest.raises(CalibrationError, match=r"after 51 batches .* give calibration_batches"):
        snn_lowlat.convert(MODEL, repeat(X))
    monkeypatch.setattr(sys.modules["snn_lowlat.convert"], "_MOST_KEPT_BYTES", 3 * X.nbytes)
    with pytest.raises(CalibrationError, match="after 4 batches"):
        snn_lowlat.convert(MODEL, repeat((X, Y)))
    assert snn_lowlat.convert(MODEL, repeat(X), calibration_batches=2, timesteps=4).backend == "spikingjelly"
    assert snn_lowlat.convert(MODEL, iter(X.split(8)), timesteps=4).plan.keys() == SNN.plan.keys()
    monkeypatch.setattr("snn_lowlat.progress._MANY", 5)
    evaluate(SNN, ((X, Y) for _ in range(7)))
    assert "evaluating: 5 batches so far" in caplog.text
    caplog.clear()
    evaluate(SNN, [(X, Y)] * 7)
    assert "so far" not in caplog.text


NO_IMAGES = {
    "nothing": (None, "must be a batch of images"),
    "array": (X.numpy(), "not a NumPy array: give torch.from_numpy"),
    "list": (list(X), "give torch.stack"),
    "one image": (X[0], r"one image needs a batch dimension, \w+.unsqueeze\(0\)"),
    "no image": (X[:0], "hold no image"),
    "another size": (X[..., 1:], r"converted for inputs \[N, 1, 8, 8\]"),
    "meta": (X.to("meta"), "device 'meta'"),
    "sparse": (X.to_sparse(), r"to_dense\(\)"),
}
IMAGE_PLACES = {
    "call": lambda images: SNN(images),
    "call of counts": lambda images: COUNTED(images),
    "readout": lambda images: SNN.readout(images),
    "simulate": lambda images: COUNTED.simulate(images),
    "count": lambda images: COUNTED.count(images),
    "events": lambda images: SNN.simulate(images, record_events=True),
    "to_nir": lambda images: snn_lowlat.to_nir(SNN, images),
}


@pytest.mark.parametrize("given", NO_IMAGES)
@pytest.mark.parametrize("place", IMAGE_PLACES)
def test_what_are_no_images_is_named(place, given):
    images, words = NO_IMAGES[given]
    with pytest.raises(ValueError, match=words):
        IMAGE_PLACES[place](images)


NO_COUNTS = (0, -1, 1.5, "8", True, float("nan"), [4], 8j)
COUNT_PLACES = {
    "convert": lambda n: snn_lowlat.convert(MODEL, X, timesteps=n).timesteps,
    "recipe": lambda n: LowLatencyRecipe("value_range", calibration=X, timesteps=n).conversion.timesteps,
    "readout": lambda n: len(SNN.readout(X, n)),
    "count": lambda n: COUNTED.count(X, n) is not None and n,
    "latency": lambda n: SNN.latency_steps_at(n),
    "FineTuning": lambda n: FineTuning(SNN, 3, timesteps=n).network.timesteps,
    "segments": lambda n: FineTuning(SNN, 3, segments=n).network.segments,
    "measuring_batches": lambda n: FineTuning(SNN, 3, measuring_batches=n).hparams["measuring_batches"],
    "from_nir": lambda n: snn_lowlat.from_nir(snn_lowlat.to_nir(SNN, X).graph, timesteps=n).timesteps,
    "expand_input": lambda n: expand_input(MODEL, X, n)[0].neurons.timesteps,
    "InputSpikes": lambda n: InputSpikes(1, n, 4).neurons.timesteps,
    "QuantisedReLU": lambda n: QuantisedReLU(n, None).timesteps,
    "ValueRangeReLU": lambda n: ValueRangeReLU(n, 4).timesteps,
    "ceiling's channels": lambda n: CeilingReLU(channels=n).ceiling.numel(),
    **{name: lambda n, encode=encode: len(encode(X, n, 0)) for name, encode in ENCODERS.items()},
    "analyse": lambda n: analyse(SNN, [X], images=n) is not None and n,
    "measure_operations": lambda n: measure_operations(SNN, [X], images=n)[1].images,
    "bias_correction": lambda n: make_refinement("bias_correction", images=n).images,
    "channel_thresholds": lambda n: make_refinement("channel_thresholds", iterations=n).iterations,
    "calibration_batches": lambda n: snn_lowlat.convert(MODEL, [X], calibration_batches=n) is not None and n,
    "width": lambda n: SmallCNN(width=n).classifier.in_features // 8,
}


@pytest.mark.parametrize("place", COUNT_PLACES)
def test_whole_numbers_of_at_least_one(place):
    for value in NO_COUNTS:
        with pytest.raises(ValueError, match=r"must be a whole number of at least 1, not "):
            COUNT_PLACES[place](value)
    for value in (4, np.int64(4), torch.tensor(4)):
        assert COUNT_PLACES[place](value) == 4


@pytest.mark.parametrize("value", [None, "deep", 0])
def test_networks_of_no_size(value):
    for make in (lambda: ResNet20(width=value), lambda: VGG16(width=value), lambda: SmallCNN(num_classes=value)):
        with pytest.raises(ValueError, match="must be a whole number"):
            make()


@pytest.mark.parametrize("listed", [0, 5, -1, 1.5, "8", "24", True, [], [0], [1, 5], [1.5], ["2"], [True], {"T": 2}])
def test_listed_steps_are_those_that_the_network_runs(listed):
    for measure in (lambda t: evaluate(SNN, [(X, Y)], timesteps=t), lambda t: analyse(SNN, [X], timesteps=t)):
        with pytest.raises(ValueError, match=r"timesteps must .* from 1 to|from 1 to the network's 4"):
            measure(listed)


@pytest.mark.parametrize("listed", [[4, 1], (1, 4), np.array([1, 4]), torch.tensor([1, 4]), range(1, 5, 3), {1, 4}])
def test_steps_are_listed_in_any_form(listed):
    assert list(evaluate(SNN, [(X, Y)], timesteps=listed).accuracies) == [1, 4]
    assert list(evaluate(SNN, [(X, Y)], timesteps=np.int64(2)).accuracies) == [1, 2]


NAN, INF = float("nan"), float("inf")
NUMBERS = {
    "num_classes": (partial(Classifier, Net()), (0, 2.5, "3", True)),
    "learning_rate": (partial(Classifier, Net(), 3), (NAN, INF, 0, -1, "1e-3", None, True)),
    "weight_decay": (partial(Classifier, Net(), 3), (NAN, INF, -1e-4, "0")),
    "momentum": (partial(Classifier, Net(), 3), (NAN, 1, -0.1)),
    "label_smoothing": (partial(Classifier, Net(), 3), (NAN, 1, -0.1)),
    "gamma": (partial(Classifier, Net(), 3), (NAN, 0, 1.5)),
    "milestones": (partial(Classifier, Net(), 3), (0.5, "0.5", [NAN], [0], [1], [None])),
    "mixup": (partial(Classifier, Net(), 3), (NAN, INF, -1)),
    "temperature": (partial(Classifier, Net(), 3), (NAN, 0, INF)),
    "distillation": (partial(Classifier, Net(), 3, teacher=MODEL), (NAN, 1.5, -1)),
    "logit_scale": (partial(FineTuning, SNN, 3), (NAN, INF, 0, -1, "2")),
    "neuron_learning_rate_factor": (partial(FineTuning, SNN, 3), (NAN, INF, -1)),
    "dropout": (partial(FineTuning, SNN, 3), (NAN, 1, -0.1, "0")),
    "rate": (partial(make_refinement, "channel_thresholds"), (NAN, INF, 0, -1, "1", True)),
    "percentile": (partial(make_strategy, "threshold_balancing"), (NAN, INF, 0, 1e-9, 0.999, 101, "99", True)),
    "threshold_scale": (partial(make_strategy, "optimized_potential"), (NAN, INF, 0, 1e-9, 1e9, -1, "1")),
    "gain": (partial(make_strategy, "distribution_aware"), (NAN, INF, 0, 1e30, 1e-9, "1")),
    "hysteresis": (partial(make_strategy, "temporal_switch", output="online"), (NAN, INF, 0, 0.5, "2")),
    "gap": (partial(make_strategy, "temporal_switch", output="pipelined"), (-1, 1.5, "2", NAN, True)),
    "initial_potential": (partial(make_strategy, "optimized_potential"), (NAN, INF, 1e30, 2, True, None, 1j)),
    "dt": (partial(snn_lowlat.from_nir, None), (0, -1, NAN, "1", True)),
    "initial": (CeilingReLU, (NAN, INF, 0, -1, "4")),
    "shift": (partial(QuantisedReLU, 4, None), (NAN, 1, -0.1, "0")),
    "resolution": (partial(ValueRangeReLU, 4), (NAN, INF, 0, -1, "4")),
    "after": (RoundLater, (NAN, 1, -0.1, "0.5")),
    "seed": (partial(snn_lowlat.convert, MODEL, X), (-1, 1.5, "abc", None, True, 1e20, 2**64)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_without_meaning(name):
    make, bad = NUMBERS[name]
    for value in bad:
        with pytest.raises(ValueError, match=f"{name} must be|{name}, for"):
            make(**{name: value})


def test_percentiles_that_look_like_shares():
    with pytest.raises(ValueError, match=r"percentile must be .* from|percentile .*in percent, as 99.9"):
        snn_lowlat.convert(MODEL, X, threshold="percentile", percentile=0.999)


def test_a_hysteresis_that_no_neuron_reaches_in_its_window():
    options = {"strategy": "temporal_switch", "output": "online"}
    with pytest.raises(ValueError, match=r"hysteresis, for 4 steps, must be .* of at most 8, not"):
        snn_lowlat.convert(MODEL, X, timesteps=4, hysteresis=1e9, **options)
    assert snn_lowlat.convert(MODEL, X, timesteps=1, hysteresis=2, **options)(X).isfinite().all()


def test_numbers_of_numpy_are_options_that_can_be_saved(tmp_path):
    options = {"threshold": "percentile", "percentile": np.float64(99), "threshold_scale": np.float32(0.5)}
    snn = snn_lowlat.convert(
        MODEL, X, **options, initial_potential=np.float64(0.25), timesteps=np.int64(4), seed=np.int64(3)
    )
    snn.save(tmp_path / "snn.pt")
    assert torch.equal(snn_lowlat.load(tmp_path / "snn.pt")(X), snn(X))
    assert {type(value) for value in snn.provenance.options.values()} <= {str, float}


ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)
BAD_PLANS = {
    "complex": (lambda: SitePlan(torch.tensor(1j), ZERO, ONE), "threshold must be real numbers"),
    "bool": (lambda: SitePlan(ONE, ZERO, torch.tensor(True)), "amplitude must be real numbers"),
    "text": (lambda: SitePlan("high", ZERO, ONE), "threshold must be numbers, .* not the text 'high'"),
    "nothing": (lambda: SitePlan(ONE, None, ONE), "initial_potential must be numbers, .* not None"),
    "potential": (lambda: SitePlan(ONE, torch.tensor(1e30), ONE), "initial_potential must be .* thresholds at most"),
    "NaN leak": (lambda: SitePlan(ONE, ZERO, ONE, "leaky_integrate_and_fire", {"leak": NAN}), "'leak' must be"),
    "text gap": (lambda: SitePlan(ONE, ZERO, ONE, parameters={"gap": "2"}), "'gap' must be a finite number"),
}


@pytest.mark.parametrize("given", BAD_PLANS)
def test_plans_of_no_neuron_are_named(given):
    make, words = BAD_PLANS[given]
    with pytest.raises(ValueError, match=words):
        make()


PARAMETERS = {
    "leak missing": ("leaky_integrate_and_fire", {}, "of site '1' needs 'leak', but the plan gives it no parameters"),
    "leak of 7": ("leaky_integrate_and_fire", {"leak": 7.0}, "leak of site '1' must be .* at most 1, not 7.0"),
    "leak of -1": ("leaky_integrate_and_fire", {"leak": -1.0}, "leak of site '1' must be"),
    "no window": ("accumulate_then_fire", {}, "needs 'timesteps'"),
    "half a window": ("temporal_switch", {"timesteps": 2.5}, "timesteps of site '1' must be a whole number"),
    "no gap": ("temporal_switch_pipelined", {"timesteps": 4}, "needs 'timesteps' and 'gap', .* gives it 'timesteps'"),
    "negative gap": ("temporal_switch_pipelined", {"timesteps": 4, "gap": -1}, "gap of site '1' must be"),
    "hysteresis": ("temporal_switch_online", {"hysteresis": 0.5}, "hysteresis of site '1' must be"),
    "one too many": ("integrate_and_fire", {"leak": 0.5}, "needs no parameters, but the plan gives it 'leak'"),
    "near name": ("integrate_and_fir", {}, "unknown neuron of site '1': .* Did you mean 'integrate_and_fire'"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", PARAMETERS)
def test_hosts_build_no_neuron_without_its_parameters(given, backend):
    neuron, parameters, words = PARAMETERS[given]
    graph, plan = SNN.normal_form()
    plan["1"] = SitePlan(ONE, ZERO, ONE, neuron, parameters)
    with pytest.raises(ValueError, match=words):
        get_backend(backend).build(graph, plan, (1, 8, 8))
    del plan["1"]
    with pytest.raises(ValueError, match="the plan says nothing of the site '1'"):
        get_backend(backend).build(graph, plan, (1, 8, 8))


NEAR_NAMES = {
    "backend": ({"backend": "spikingjely"}, "'spikingjelly'"),
    "capitals": ({"backend": "SpikingJelly"}, "Did you mean 'spikingjelly'"),
    "all capitals": ({"backend": "SNNTORCH"}, "Did you mean 'snntorch'"),
    "no backend": ({"backend": None}, "unknown backend None"),
    "list of backends": ({"backend": ["snntorch"]}, "unknown backend"),
    "strategy": ({"strategy": "Value-Range"}, "Did you mean 'value_range'"),
    "encoder": ({"encoder": "Poisson"}, "Did you mean 'poisson'"),
    "list of encoders": ({"encoder": ["direct"]}, "unknown input coding"),
    "precision": ({"precision": "INT8"}, "Did you mean 'int8'"),
    "number of bits": ({"precision": 8}, "unknown precision 8"),
    "refinement": ({"refinements": "bias correction"}, "Did you mean 'bias_correction'"),
    "no refinements": ({"refinements": None}, "refinements must be a list"),
    "granularity": ({"granularity": "Channels"}, "Did you mean 'channel'"),
    "rule": ({"threshold": "MMSE"}, "Did you mean 'mmse'"),
    "T": ({"T": 4}, "there is no option 'T': its name here is 'timesteps'"),
    "num_steps": ({"num_steps": 4}, "its name here is 'timesteps'"),
    "loader": ({"loader": 4}, "its name here is 'calibration'"),
}


@pytest.mark.parametrize("given", NEAR_NAMES)
def test_near_names_are_offered_everywhere(given):
    options, words = NEAR_NAMES[given]
    with pytest.raises(ValueError, match=words):
        snn_lowlat.convert(MODEL, X, **options)


def test_other_things_where_a_strategy_belongs():
    with pytest.raises(TypeError, match=r"make one, OptimizedPotential\(\)"):
        snn_lowlat.convert(MODEL, X, strategy=OptimizedPotential)


def test_a_refinement_may_be_given_without_a_list():
    refined = snn_lowlat.convert(MODEL, X, timesteps=4, refinements=make_refinement("bias_correction", images=8))
    assert [step["name"] for step in refined.provenance.refinements] == ["bias_correction"]


def test_recipes_of_the_host_take_wrapped_networks():
    recipe = LowLatencyRecipe("optimized_potential", calibration=[X[:0], X], timesteps=np.int64(4))
    network = FXConverter(recipe).convert(nn.DataParallel(MODEL))
    outputs = get_backend("spikingjelly").run(network, X.expand(4, *X.shape))
    torch.testing.assert_close(outputs.detach().mean(0), SNN.simulate(X))
