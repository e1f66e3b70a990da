"""NIR graphs from strangers: no code in them runs, no other file is read, errors are clear."""

import errno
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat import ConversionError, FileFormatError
from snn_lowlat.hosts import BACKENDS
from tests.payloads import fields, payloads, replaced
from tests.test_file_safety import damaged

nir = pytest.importorskip("nir", reason="the package nir is not installed: pip install 'snn_lowlat[nir]'")
h5py = pytest.importorskip("h5py")


class Network(nn.Module):
    """A layer of each kind that has a node."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2), nn.Linear(18, 3)

    def forward(self, x):
        return self.head(torch.relu(self.pool(torch.relu(self.stem(x)))).flatten(1))


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def snn(images):
    torch.manual_seed(0)
    return snn_lowlat.convert(Network(), images, timesteps=3)


@pytest.fixture
def path(snn, images, tmp_path):
    snn_lowlat.to_nir(snn, images, tmp_path / "snn.nir")
    return tmp_path / "snn.nir"


def contents_of(path):
    with h5py.File(path) as file:
        return nir.serialization.hdf2dict(file)


def write(contents, path):
    """Write nested dicts as groups, whatever is in them."""

    def fill(group, entries):
        for name, value in entries.items():
            if isinstance(value, dict):
                fill(group.require_group(name), value)
            else:
                group.create_dataset(name, data=value)

    with h5py.File(path, "w") as file:
        fill(file, contents)


def test_no_field_of_a_file_runs_code(path, snn, images, tmp_path):
    contents, marker, logits = contents_of(path), tmp_path / "marker", snn(images)
    shapes, tried = payloads(marker), 0
    contents["node"]["edges"] = [tuple(end.decode() for end in edge) for edge in contents["node"]["edges"]]
    for index, place in enumerate(fields(contents)):
        try:
            write(replaced(contents, place, shapes[index % len(shapes)]), path)
        except (TypeError, ValueError):
            continue
        tried += 1
        try:
            again = snn_lowlat.from_nir(path)
        except (ConversionError, FileFormatError, ValueError):
            continue
        finally:
            assert not marker.exists(), place
        found = again(images)
        # What a neuron's metadata leave out has a default; all else must be there.
        assert torch.equal(found, logits) or "metadata" in str(place), place
        assert not marker.exists(), place
    assert tried > 50


NAMES = ("in", "class", "graph", "self", "a/b", "a.b", "input", "größe", "code", "x_amplitude", "output")


def named(graph, names):
    """Give the nodes of a graph other names."""
    new = dict(zip(graph.nodes, names, strict=True))
    nodes = {new[name]: node for name, node in graph.nodes.items()}
    edges = [(new[source], new[target]) for source, target in graph.edges]
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("shift", [0, 3, 6, 9])
def test_nodes_of_any_name_are_read(shift, in_file, backend, snn, images, tmp_path):
    graph = snn_lowlat.to_nir(snn, images).graph
    names = [NAMES[(index + shift) % len(NAMES)] for index in range(len(graph.nodes))]
    found = named(graph, names)
    if in_file:
        nir.write(tmp_path / "named.nir", found)
        found = tmp_path / "named.nir"
    again = snn_lowlat.from_nir(found, backend)
    assert torch.equal(again(images), snn(images))
    again.save(tmp_path / "snn.pt")
    assert torch.equal(snn_lowlat.load(tmp_path / "snn.pt")(images), snn(images))


@pytest.mark.parametrize("shape", range(9))
def test_nodes_named_by_code_are_only_names(shape, snn, images, tmp_path):
    graph, marker = snn_lowlat.to_nir(snn, images).graph, tmp_path / "marker"
    names = [f"{name}{payloads(marker)[shape]}" for name in graph.nodes]
    again = snn_lowlat.from_nir(named(graph, names))
    assert torch.equal(again(images), snn(images))
    assert not marker.exists()


def replace_weight(path, make):
    with h5py.File(path, "a") as file:
        del file["node/nodes/stem/weight"]
        make(file["node/nodes/stem"])


FOREIGN = {
    "an external link": lambda group: group.__setitem__("weight", h5py.ExternalLink("other.nir", "/secret")),
    "a soft link": lambda group: group.__setitem__("weight", h5py.SoftLink("/node/nodes/head/weight")),
    "external storage": lambda group: group.create_dataset(
        "weight", (2, 1, 3, 3), "f4", external=[("other.nir", 0, 72)], track_times=False
    ),
    "a virtual array": lambda group: group.create_virtual_dataset("weight", virtual_layout()),
}


def virtual_layout():
    layout = h5py.VirtualLayout((2, 1, 3, 3), "f4")
    layout[:] = h5py.VirtualSource("other.nir", "secret", (2, 1, 3, 3))
    return layout


@pytest.mark.parametrize("what", FOREIGN)
def test_no_other_file_is_read(what, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with h5py.File("other.nir", "w") as file:
        file["secret"] = np.ones((2, 1, 3, 3), np.float32)
    replace_weight(path, FOREIGN[what])
    with pytest.raises(FileFormatError, match=r"is a link to|takes its values from other files"):
        snn_lowlat.from_nir(path)


def test_groups_within_themselves_are_refused(path):
    with h5py.File(path, "a") as file:
        file["node/nodes/again"] = file["node"]
    with pytest.raises(FileFormatError, match="nested too deeply"):
        snn_lowlat.from_nir(path)


def test_sizes_are_checked_before_memory_is_taken(path, snn, images):
    with h5py.File(path, "a") as file:
        file["node/nodes/stem"].create_dataset("much", (30_000, 30_000), "f4", chunks=True, compression="gzip")
    assert os.path.getsize(path) < 200_000
    with pytest.raises(FileFormatError, match="larger than the file"):
        snn_lowlat.from_nir(path)
    graph = snn_lowlat.to_nir(snn, images).graph
    graph.nodes["input"] = nir.Input({"input": np.array([1, 10**6, 10**6])})
    with pytest.raises(ConversionError, match=r"'input'.*would put out"):
        snn_lowlat.from_nir(graph)
    graph = snn_lowlat.to_nir(snn, images).graph
    graph.nodes["stem"].padding = np.array([10**5, 10**5])
    with pytest.raises(ConversionError, match=r"'stem'.*would put out"):
        snn_lowlat.from_nir(graph)
    graph.metadata["timesteps"] = 10**12
    with pytest.raises(ConversionError, match="timesteps"):
        snn_lowlat.from_nir(graph)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1j])
def test_weights_that_are_no_numbers_are_refused_by_node(value, snn, images):
    graph = snn_lowlat.to_nir(snn, images).graph
    graph.nodes["head"].weight = graph.nodes["head"].weight * value
    with pytest.raises(ConversionError, match=r"'head'.*not finite real numbers"):
        snn_lowlat.from_nir(graph)


@pytest.mark.parametrize("dt", [0, -1, math.nan, math.inf, "1", True])
def test_lengths_of_steps_that_are_none_are_refused(dt, snn, images):
    graph = snn_lowlat.to_nir(snn, images).graph
    with pytest.raises(ValueError, match="dt must be a finite number above 0"):
        snn_lowlat.from_nir(graph, dt=dt)
    graph.metadata["dt"] = dt
    with pytest.raises(ConversionError, match="dt of the metadata must be a finite number above 0"):
        snn_lowlat.from_nir(graph)


@pytest.mark.parametrize("timesteps", [0, -1, 1.5, "8", True])
def test_windows_that_are_none_are_refused(timesteps, snn, images):
    graph = snn_lowlat.to_nir(snn, images).graph
    with pytest.raises(ValueError, match="timesteps must be a whole number"):
        snn_lowlat.from_nir(graph, timesteps=timesteps)
    graph.metadata["timesteps"] = timesteps
    with pytest.raises(ConversionError, match="timesteps of the metadata must be a whole number"):
        snn_lowlat.from_nir(graph)


def test_random_damage_is_noticed(path, images):
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(30):
        path.write_bytes(damaged(whole, generator))
        try:
            again = snn_lowlat.from_nir(path)
        # HDF5 has no digest: other numbers are other weights.
        except (ConversionError, FileFormatError):
            refused += 1
        else:
            assert again(images).shape == (4, 3)
    assert refused > 10


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes on this system")
def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(FileFormatError, match="not a file"):
            snn_lowlat.from_nir(place)


def test_a_disk_that_fills_leaves_the_old_file(path, snn, images, monkeypatch):
    before = path.read_bytes()

    def fail(file, data):
        with open(file, "wb") as half:
            half.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"snn\.nir could not be written, the file that was there is unchanged: No space"):
        snn_lowlat.to_nir(snn, images, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["snn.nir"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_networks_of_other_precisions_are_written_and_read(backend, dtype, images, tmp_path):
    torch.manual_seed(0)
    images = images.to(dtype)
    snn = snn_lowlat.convert(Network().to(dtype), images, timesteps=3, backend=backend)
    drift = snn_lowlat.to_nir(snn, images, tmp_path / "snn.nir").drift
    assert (drift.differing, drift.logits) == (0, 0)
    assert snn_lowlat.to_nir(snn, images.float()).drift == drift
    again = snn_lowlat.from_nir(tmp_path / "snn.nir", backend)
    assert again(images).dtype == dtype
    assert torch.equal(again(images), snn(images))
