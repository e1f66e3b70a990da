"""Networks as NIR graphs: written, read by this package and by others, refused with a reason."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snn_lowlat
from snn_lowlat import ConversionError, FileFormatError
from snn_lowlat.data import CIFAR10
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.models import InputNormalisation, ResNet, ResNet20, SmallCNN, load_weights
from tests.contract.networks import AveragePoolNetwork, MaxPoolNetwork, ResidualNetwork, make_images, make_network

nir = pytest.importorskip("nir", reason="the package nir is not installed: pip install 'snn_lowlat[nir]'")
h5py, picking = pytest.importorskip("h5py"), pytest.importorskip("snn_lowlat.nir.picking")

AMPLITUDE = np.float32(0.3)


class OddNetwork(nn.Module):
    """What has no NIR node of its own, or more options than one has."""

    def __init__(self):
        super().__init__()
        self.normalisation = InputNormalisation([0.5], [0.3])
        self.wide, self.sparse = nn.Conv2d(1, 6, (1, 3), padding=(0, 1)), nn.Conv2d(1, 6, 3, padding=2, dilation=2)
        self.norm, self.grouped = nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, padding="same", groups=4)
        self.strided, self.last = nn.Conv2d(12, 8, (3, 1), stride=2, padding=(1, 0)), nn.Conv2d(8, 8, 1)
        self.linear, self.classifier = nn.Linear(8 * 4 * 4 + 5, 16), nn.Linear(16 + 8, 10)

    def forward(self, x):
        x = self.normalisation(x)
        x = torch.cat([F.relu(self.wide(x)), F.relu(self.sparse(x))], 1)
        x = F.relu(self.grouped(self.norm(x)) + x - 0.1)
        x = F.relu(self.strided(x) + (x + x)[:, 2:10, ::2, ::2])
        x = F.relu(self.last(x) - x * 0.5)
        flat = x.permute(0, 2, 3, 1).flatten(1)
        hidden = F.relu(self.linear(torch.cat([flat, flat[:, 3:8]], 1)))
        return self.classifier(torch.cat([hidden, x.mean((2, 3))], 1))


class SmallResNet(ResNet):
    """A ResNet with identities around its blocks: spikes enter sums without a layer between."""

    def __init__(self):
        super().__init__(1, in_channels=1)


def converted(kind, backend="spikingjelly", **options):
    return snn_lowlat.convert(make_network(kind), [make_images()], timesteps=6, backend=backend, **options)


def neurons(count=3, **changes):
    """A layer of a foreign graph."""
    values = {"r": np.ones(count), "v_threshold": np.ones(count), "v_reset": np.zeros(count)}
    return nir.IF(**{**values, **changes})


def chain(*nodes, metadata=None, shape=(2,), classes=3):
    """A foreign graph of nodes one after the other."""
    names = ["input", *(f"node{index}" for index in range(len(nodes))), "output"]
    ends = nir.Input({"input": np.array(shape)}), nir.Output({"output": np.array([classes])})
    graph = dict(zip(names, (ends[0], *nodes, ends[1]), strict=True))
    edges = list(pairwise(names))
    return nir.NIRGraph(graph, edges, metadata=metadata or {}, type_check=False)


def foreign(**changes):
    weight = np.array([[0.5, 0.25], [1.0, -1.0], [0.3, 0.9]], np.float32)
    return chain(nir.Affine(weight, np.zeros(3, np.float32)), neurons(**changes))


@pytest.mark.parametrize(("backend", "pooling"), [("spikingjelly", "average"), ("snntorch", "sum")])
@pytest.mark.parametrize("kind", [AveragePoolNetwork, ResidualNetwork, OddNetwork, SmallResNet])
def test_the_graph_fires_the_spikes_of_the_network(kind, backend, pooling, tmp_path):
    snn = converted(kind, backend)
    drift = snn_lowlat.to_nir(snn, make_images(), tmp_path / "snn.nir", pooling=pooling).drift
    assert drift.differing == 0
    assert [layer.layer for layer in drift.layers] == list(snn.plan)
    assert all(layer.spikes for layer in drift.layers)
    # Amplitudes in the weights change the rounding, and nothing else.
    assert drift.differing_folded <= 1e-3 * sum(layer.spikes for layer in drift.layers)
    assert drift.logits_folded <= 1e-2 * float(snn(make_images()).abs().max())


@pytest.mark.parametrize(
    ("kind", "backend"),
    [(AveragePoolNetwork, "spikingjelly"), (ResidualNetwork, "snntorch"), (SmallResNet, "snntorch")],
)
def test_reading_gives_the_network_back(kind, backend, tmp_path):
    snn = converted(kind, refinements=["bias_correction"], initial_potential=0.3)
    snn_lowlat.to_nir(snn, make_images(2), tmp_path / "snn.nir")
    again = snn_lowlat.from_nir(tmp_path / "snn.nir", backend=backend)
    assert torch.equal(again.readout(make_images()), snn.readout(make_images()))
    assert again.plan == snn.plan
    assert again.depth == snn.depth
    assert (again.timesteps, again.strategy) == (6, "optimized_potential")
    for key in ("options", "refinements", "versions"):
        assert getattr(again.provenance, key) == getattr(snn.provenance, key)
    weights, expected = again.normal_form()[0].state_dict(), snn.normal_form()[0].state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_what_was_read_can_be_saved_and_written_again(tmp_path):
    again = snn_lowlat.from_nir(snn_lowlat.to_nir(converted(OddNetwork), make_images(2)).graph)
    again.save(tmp_path / "snn.pt")
    assert torch.equal(snn_lowlat.load(tmp_path / "snn.pt").readout(make_images()), again.readout(make_images()))
    assert snn_lowlat.to_nir(again, make_images(2)).drift.logits == 0


def test_amplitudes_are_in_the_weights_behind_the_neurons():
    snn = converted(AveragePoolNetwork)
    nodes = snn_lowlat.to_nir(snn, make_images(2)).graph.nodes
    weights, plan = snn.normal_form()[0].state_dict(), snn.plan
    expected = weights["layers_4.weight"] * plan["layers_2"].amplitude[None, :, None, None]
    np.testing.assert_array_equal(nodes["layers_4"].weight, expected)
    behind_flatten = weights["layers_8.weight"] * plan["layers_5"].amplitude.repeat_interleave(16)
    np.testing.assert_array_equal(nodes["layers_8"].weight, behind_flatten)
    assert nodes["layers_4"].weight.dtype == np.float32


def test_sum_pools_have_their_size_in_the_weights():
    snn = converted(AveragePoolNetwork)
    average, total = (snn_lowlat.to_nir(snn, make_images(2), pooling=p).graph.nodes for p in ("average", "sum"))
    assert isinstance(total["layers_3"], nir.SumPool2d)
    np.testing.assert_array_equal(total["layers_4"].weight, average["layers_4"].weight / 4)
    with pytest.raises(ValueError, match="There are: average, sum"):
        snn_lowlat.to_nir(snn, make_images(2), pooling="max")


def test_values_of_channels_are_written_for_every_neuron():
    snn = converted(AveragePoolNetwork)
    node, plan = snn_lowlat.to_nir(snn, make_images(2)).graph.nodes["layers_2"], snn.plan["layers_2"]
    assert node.v_threshold.shape == node.r.shape == node.v_reset.shape == (8, 8, 8)
    assert plan.threshold.unique().numel() == 8
    for values, expected in (
        (node.v_threshold, plan.threshold),
        (node.metadata["v_init"], plan.initial_potential),
        (node.metadata["amplitude"], plan.amplitude),
    ):
        np.testing.assert_array_equal(values, expected.view(8, 1, 1).expand(8, 8, 8))
        assert values.dtype == np.float32


def test_a_file_says_how_to_run_the_graph(tmp_path):
    snn = converted(AveragePoolNetwork)
    written = snn_lowlat.to_nir(snn, make_images(2), tmp_path / "snn.nir").graph
    graph = nir.read(tmp_path / "snn.nir")
    assert graph.metadata["timesteps"] == 6
    assert graph.metadata["encoder"] == "direct"
    assert graph.metadata["readout"] == "mean of the outputs over the steps"
    assert "computes another network" in graph.metadata["note"]
    assert graph.nodes.keys() == written.nodes.keys()
    metadata = graph.nodes["layers_5"].metadata
    assert metadata["reset"] == "subtract"
    np.testing.assert_array_equal(metadata["v_init"], written.nodes["layers_5"].metadata["v_init"])
    assert graph.edges == written.edges


def test_options_of_layers_are_kept_or_written_out():
    nodes = snn_lowlat.to_nir(converted(OddNetwork), make_images(2)).graph.nodes
    assert tuple(nodes["sparse"].dilation) == (2, 2)
    assert tuple(nodes["strided"].stride) == (2, 2)
    assert nodes["wide"].weight.shape == (6, 1, 3, 3)
    assert tuple(nodes["wide"].padding) == (1, 1)
    grouped = nodes["grouped"]
    assert grouped.weight.shape == (12, 12, 3, 3)
    assert grouped.groups == 1
    assert not grouped.weight[:3, 3:].any()


def test_the_report_shows_every_layer():
    export = snn_lowlat.to_nir(converted(AveragePoolNetwork), make_images(2))
    assert "NIR graph of 11 nodes: 3 IF" in str(export)
    assert "drift on 2 images in 6 steps" in str(export)
    for layer in export.drift.layers:
        assert f"{layer.layer} {layer.spikes} 0 0" in " ".join(str(export).split())


def test_a_rounding_note_that_is_wrong_changes_no_more_than_the_rounding(tmp_path):
    snn = converted(AveragePoolNetwork)
    graph = snn_lowlat.to_nir(snn, make_images(2)).graph
    graph.nodes["layers_4"].metadata["rounding"] = np.full_like(graph.nodes["layers_4"].weight, 2, dtype=np.int8)
    changed = snn_lowlat.from_nir(graph).normal_form()[0].state_dict()["layers_4.weight"]
    torch.testing.assert_close(changed, snn.normal_form()[0].state_dict()["layers_4.weight"])


@pytest.mark.parametrize("kind", [SmallResNet, ResidualNetwork])
def test_another_reader_finds_the_same_network(kind, tmp_path):
    nirtorch = pytest.importorskip("nirtorch", reason="the package nirtorch is not installed")

    class Neurons(nn.Module):
        """What the metadata ask for, in another tool."""

        def __init__(self, node):
            super().__init__()
            self.threshold, self.start = (torch.from_numpy(v) for v in (node.v_threshold, node.metadata["v_init"]))

        def forward(self, x, state=None):
            charged = (torch.zeros_like(x) if state is None else state) + x
            spikes = (charged + self.start >= self.threshold).float()
            return spikes, charged - spikes * self.threshold

    def affine(node):
        layer = nn.Linear(node.weight.shape[1], len(node.weight))
        layer.load_state_dict({"weight": torch.from_numpy(node.weight), "bias": torch.from_numpy(node.bias)})
        return layer

    def convolution(node):
        layer = nn.Conv2d(node.weight.shape[1], len(node.weight), node.weight.shape[2:], node.stride, node.padding)
        layer.load_state_dict({"weight": torch.from_numpy(node.weight), "bias": torch.from_numpy(node.bias)})
        return layer

    rules = {nir.IF: Neurons, nir.Affine: affine, nir.Conv2d: convolution, nir.Flatten: lambda node: nn.Flatten(1)}
    snn, images = converted(kind), make_images()
    snn_lowlat.to_nir(snn, images[:2], tmp_path / "snn.nir")
    network, state, outputs = nirtorch.nir_to_torch(nir.read(tmp_path / "snn.nir"), rules), None, []
    with torch.no_grad():
        for _ in range(snn.timesteps):
            output, state = network(images, state)
            outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs).mean(0), snn(images), rtol=1e-4, atol=1e-5)


def test_the_reader_of_spikingjelly_takes_the_file_and_needs_the_metadata(tmp_path):
    pytest.importorskip("nirtorch", reason="the package nirtorch is not installed")
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    snn, images = converted(AveragePoolNetwork, granularity="layer", initial_potential="zero"), make_images()
    snn_lowlat.to_nir(snn, images[:2], tmp_path / "snn.nir")
    logits = []
    for follows_metadata in (True, False):
        network, state, outputs = import_from_nir(tmp_path / "snn.nir", dt=1.0), None, []
        for module in network.modules():
            if follows_metadata and isinstance(module, neuron.IFNode):
                module.v_reset = None
        with torch.no_grad():
            for _ in range(snn.timesteps):
                output, state = network(images, state)
                outputs.append(output)
        logits.append(torch.stack(outputs).mean(0))
    torch.testing.assert_close(logits[0], snn(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[1], snn(images), rtol=1e-2, atol=1e-2)


def test_max_pooling_is_refused_with_every_layer():
    with pytest.raises(ConversionError, match=r"obstacles \(3\)(?s:.*)ceiling_pool(?s:.*)maximum") as refused:
        snn_lowlat.to_nir(converted(MaxPoolNetwork), make_images(2))
    assert [obstacle.node for obstacle in refused.value.obstacles] == ["ceiling_pool", "relu_pool", "relu6_pool"]


def test_other_neurons_and_codings_are_refused(tmp_path):
    snn = converted(AveragePoolNetwork)
    graph, plan = snn.normal_form()
    plan["layers_5"] = replace(plan["layers_5"], neuron="leaky_integrate_and_fire", parameters={"leak": 0.9})
    with pytest.raises(ConversionError, match=r"layers_5.*leaky_integrate_and_fire"):
        snn_lowlat.to_nir(snn.rebuilt(graph, plan), make_images(2), tmp_path / "snn.nir")
    with pytest.raises(ConversionError, match="'poisson'"):
        snn_lowlat.to_nir(converted(AveragePoolNetwork, encoder="poisson"), make_images(2), tmp_path / "snn.nir")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.AvgPool2d(3, 2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "count_include_pad"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
        (nn.AdaptiveAvgPool2d(3), "divides the input's"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Conv2d(4, 4, (2, 3)), "square"),
        (nn.Conv2d(4, 4, 2, padding="same"), "odd size"),
        (nn.ConstantPad2d(1, 0.5), "zeros only"),
        (nn.ConvTranspose2d(4, 4, 2), "transposed"),
        (nn.Upsample(scale_factor=2), "resizes"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Unflatten(1, (2, 2))), "it reads 'reshape': NIR can't turn a layer"),
    ],
)
def test_layers_without_a_node_are_refused_by_name(layer, reason):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.layer, self.linear = nn.Conv2d(1, 4, 3, padding=1), layer, nn.LazyLinear(3)

        def forward(self, x):
            return self.linear(F.relu(self.layer(F.relu(self.stem(x)))).flatten(1))

    network = Network().eval()
    network(make_images(2))
    snn = snn_lowlat.convert(network, [make_images()], timesteps=2)
    with pytest.raises(ConversionError, match=reason):
        snn_lowlat.to_nir(snn, make_images(2))


def test_rearrangements_that_no_node_does_are_refused_by_name():
    class Network(SmallCNN):
        def forward(self, x):
            return super().forward(x.transpose(2, 3))

    snn = snn_lowlat.convert(Network().eval(), [make_images()], timesteps=2)
    with pytest.raises(ConversionError, match=r"features_0_0.*it reads 'permute': no convolution picks"):
        snn_lowlat.to_nir(snn, make_images(2))


def test_a_constant_that_differs_from_pixel_to_pixel_is_refused():
    class Network(SmallCNN):
        def forward(self, x):
            return super().forward(x + torch.linspace(0, 1, 8))

    snn = snn_lowlat.convert(Network().eval(), [make_images()], timesteps=2)
    with pytest.raises(ConversionError, match="from pixel to pixel"):
        snn_lowlat.to_nir(snn, make_images(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_foreign_graph_runs_with_the_reset_that_is_asked_for(backend):
    graph = foreign(v_threshold=np.array([0.5, 0.75, 1.0]))
    snn = snn_lowlat.from_nir(graph, backend=backend, timesteps=4, reset="subtract")
    images = torch.tensor([[1.0, 0.5], [0.25, 1.0]])
    potential, fired = torch.zeros(2, 3), torch.zeros(2, 3)
    threshold = torch.tensor([0.5, 0.75, 1.0])
    for _ in range(4):
        potential += images @ torch.from_numpy(graph.nodes["node0"].weight).T
        spikes = (potential >= threshold).float()
        potential -= spikes * threshold
        fired += spikes
    torch.testing.assert_close(snn(images), fired / 4)
    assert snn.strategy == "nir"


def test_scales_and_sum_pools_of_foreign_graphs_are_run():
    scale = AMPLITUDE * np.ones((2, 2, 2), np.float32)
    pool = nir.SumPool2d(np.array(2), np.array(2), np.array(0))
    flatten = nir.Flatten({"input": np.array([2, 2, 2])}, start_dim=0)
    spiking = neurons(r=np.ones((2, 4, 4)), v_threshold=np.full((2, 4, 4), 0.5), v_reset=np.zeros((2, 4, 4)))
    graph = chain(spiking, pool, nir.Scale(scale), flatten, shape=(2, 4, 4), classes=8)
    snn = snn_lowlat.from_nir(graph, timesteps=1, reset="subtract")
    torch.testing.assert_close(snn(torch.ones(3, 2, 4, 4)), torch.full((3, 8), 4 * float(AMPLITUDE)))


def test_resistances_count_with_the_length_of_a_step():
    images = torch.rand(8, 2)
    plain = snn_lowlat.from_nir(foreign(), timesteps=4, reset="subtract")
    with pytest.raises(ConversionError, match=r"node1.*give the length of a step"):
        snn_lowlat.from_nir(foreign(r=np.full(3, 1e4)), timesteps=4, reset="subtract")
    scaled = snn_lowlat.from_nir(foreign(r=np.full(3, 1e4)), timesteps=4, reset="subtract", dt=1e-4)
    assert torch.equal(scaled(images), plain(images))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (foreign(), r"node1.*reset='subtract'"),
        (foreign(metadata={"reset": "zero"}), r"node1.*'zero'"),
        (foreign(metadata={"reset": "subtract"}, v_reset=np.ones(3)), r"node1.*v_reset"),
        (foreign(metadata={"reset": "subtract"}, v_threshold=-np.ones(3)), r"node1.*positive"),
        (foreign(metadata={"reset": "subtract", "v_init": np.ones(5)}), "node1"),
        (chain(nir.LIF(*[np.ones(2)] * 4)), r"node0.*LIF"),
        (chain(nir.Affine(np.ones((3, 4)), np.ones(3))), r"node0.*can't be run"),
        (chain(nir.Affine(np.ones((3, 2)), np.ones(3))), "no IF node"),
        (
            nir.NIRGraph({"input": nir.Input({"input": np.array([2])})}, [("input", "nowhere")], type_check=False),
            "no node 'nowhere'",
        ),
        ("a graph", None),
        (3, "neither a nir.NIRGraph nor a path"),
    ],
)
def test_graphs_that_can_not_be_run_are_refused_by_node(graph, reason, tmp_path):
    if reason is None:
        with pytest.raises(FileNotFoundError):
            snn_lowlat.from_nir(tmp_path / graph, timesteps=4)
    else:
        with pytest.raises(ConversionError, match=reason):
            snn_lowlat.from_nir(graph, timesteps=4)


def test_thresholds_that_differ_within_a_channel_are_refused():
    threshold = np.arange(1.0, 9.0).reshape(2, 2, 2)
    spiking = neurons(r=np.ones_like(threshold), v_threshold=threshold, v_reset=0 * threshold)
    graph = chain(spiking, nir.Flatten({"input": np.array([2, 2, 2])}, 0), shape=(2, 2, 2), classes=8)
    with pytest.raises(ConversionError, match=r"node0.*v_threshold differs within a channel"):
        snn_lowlat.from_nir(graph, timesteps=1, reset="subtract")


def test_graphs_of_another_form_are_refused():
    graph = foreign(metadata={"reset": "subtract"})
    graph.edges.append(("node1", "node0"))
    with pytest.raises(ConversionError, match=r"recurrent \(.*node1"):
        snn_lowlat.from_nir(graph, timesteps=4)
    graph = foreign(metadata={"reset": "subtract"})
    graph.nodes["second"] = nir.Output({"output": np.array([3])})
    with pytest.raises(ConversionError, match="one Output node, not 2"):
        snn_lowlat.from_nir(graph, timesteps=4)
    graph = foreign(metadata={"reset": "subtract"})
    graph.edges.append(("input", "node1"))
    with pytest.raises(ConversionError, match=r"node1.*it adds 'node0' and 'input', of shapes \[3\] and \[2\]"):
        snn_lowlat.from_nir(graph, timesteps=4)


def test_options_that_do_not_exist_are_refused():
    graph = foreign(metadata={"reset": "subtract"})
    with pytest.raises(ValueError, match="give timesteps"):
        snn_lowlat.from_nir(graph)
    with pytest.raises(ValueError, match="unknown reset 'hard'"):
        snn_lowlat.from_nir(graph, timesteps=4, reset="hard")
    with pytest.raises(ValueError, match="unknown backend"):
        snn_lowlat.from_nir(graph, backend="norse", timesteps=4)


def test_metadata_that_were_changed_are_refused():
    graph = snn_lowlat.to_nir(converted(AveragePoolNetwork), make_images(2)).graph
    graph.metadata["options"] = "{"
    with pytest.raises(ConversionError, match="metadata are incomplete or were changed"):
        snn_lowlat.from_nir(graph)


def test_damaged_files_are_refused_with_the_node(tmp_path):
    path = tmp_path / "snn.nir"
    snn_lowlat.to_nir(converted(AveragePoolNetwork), make_images(2), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match=r"snn\.nir can't be read as a NIR graph"):
        snn_lowlat.from_nir(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(FileFormatError, match="damaged or something else"):
        snn_lowlat.from_nir(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["node/nodes/layers_4/stride"]
    with pytest.raises(FileFormatError, match=r"'layers_4' of type 'Conv2d'.*stride"):
        snn_lowlat.from_nir(path)


def test_a_network_that_can_not_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "snn.nir"
    path.write_bytes(b"old")
    with pytest.raises(ConversionError):
        snn_lowlat.to_nir(converted(MaxPoolNetwork), make_images(2), path)
    with pytest.raises(ValueError, match="converted for inputs"):
        snn_lowlat.to_nir(converted(AveragePoolNetwork), torch.zeros(2, 1, 4, 4), path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["snn.nir"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_picking_convolutions_pick_what_slices_and_pads_do(data):
    size, step, channels = (data.draw(st.integers(1, most)) for most in (7, 3, 4))
    start, first = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, channels - 1))
    # Before a row that is not among the first, a convolution would read the picture and not a zero.
    before, after = data.draw(st.integers(0, 2 if start < step else 0)), data.draw(st.integers(0, 2))
    padding = [before, after] * 2 + [data.draw(st.integers(0, 2)) for _ in range(2)]

    def move(images):
        return F.pad(images[:, first:, start::step, start::step], padding)

    images = torch.rand(2, channels, size, size)
    places = torch.arange(1, 1 + channels * size * size).reshape(1, channels, size, size)
    weight, stride, around = picking.picking_kernel(move(places)[0], (channels, size, size))
    assert torch.equal(F.conv2d(images, weight, stride=stride, padding=around), move(images))


def test_pixels_shuffled_before_a_linear_layer_keep_every_spike():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Flatten(), nn.Linear(144, 3))
    snn = snn_lowlat.convert(network, [make_images()], timesteps=3)
    assert snn_lowlat.to_nir(snn, make_images(4)).drift.differing == 0


@pytest.mark.parametrize(
    ("move", "reason"),
    [
        (lambda x: x.transpose(2, 3), "same rows and columns"),
        (lambda x: x.flip(2), "another order"),
        (lambda x: F.pad(x[:, :, 2:], (0, 0, 1, 0)), "different distances"),
        (lambda x: x[:, :, :3], "square kernel"),
    ],
)
def test_what_no_convolution_picks_is_refused(move, reason):
    with pytest.raises(picking.Unpickable, match=reason):
        picking.picking_kernel(move(torch.arange(1, 33).reshape(1, 2, 4, 4))[0], (2, 4, 4))


@pytest.mark.data
def test_a_trained_resnet_keeps_every_spike(real_data, tmp_path):
    model = ResNet20().eval()
    load_weights(model, real_data("weights/akamaster_resnet20-12fca82f.th"))
    folder, mean, std = real_data("cifar10.npz").parent, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = CIFAR10(folder, mean=mean, std=std, batch_size=100, augment=False, limit_test=40)
    data.setup()
    snn = snn_lowlat.convert(model, data.calibration_dataloader(100, 100), timesteps=8)
    images, _ = next(iter(data.test_dataloader()))
    drift = snn_lowlat.to_nir(snn, images, tmp_path / "resnet20.nir").drift
    assert len(drift.layers) == 19
    assert drift.differing == 0
    assert drift.logits == 0
    assert drift.differing_folded <= 1e-2 * sum(layer.spikes for layer in drift.layers)


def test_resnet20_keeps_every_spike():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    drift = snn_lowlat.to_nir(snn_lowlat.convert(ResNet20().eval(), [images], timesteps=4), images).drift
    assert drift.differing == 0
    assert drift.logits == 0
