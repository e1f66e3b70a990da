"""Saved networks that somebody has tampered with, who also knows how to make the digest."""

import copy
import math
import os
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snn_lowlat
from snn_lowlat import FileFormatError
from snn_lowlat.model_file import digest_of
from snn_lowlat.models import load_weights
from tests.payloads import fields, payloads, renamed, replaced


class Network(nn.Module):
    """One of everything that a description holds: layers, functions, slices, constants, joins."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 2, 3, 2, padding_mode="reflect", padding=1), nn.Linear(3, 3)
        self.register_buffer("shift", torch.rand(2, 1, 1))

    def forward(self, x):
        x = F.relu(0.5 * self.stem(x) + self.shift).permute(0, 2, 3, 1)[:, 1:, ..., ::2]
        x = torch.cat([x.mean(1), -x.mean(2)[:, :1]], 1)
        return self.head(F.relu(x.reshape(len(x), -1)[:, :3]))


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def contents(images, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved") / "snn.pt"
    snn_lowlat.convert(Network(), images, timesteps=3, refinements=["bias_correction"]).save(path)
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def logits(contents, images, tmp_path_factory):
    return loaded(contents, tmp_path_factory.mktemp("honest") / "snn.pt")(images)


def loaded(contents, path):
    torch.save({**contents, "digest": digest_of(contents)}, path)
    return snn_lowlat.load(path)


def test_a_payload_is_code(tmp_path):
    eval(payloads(tmp_path / "marker")[0])
    assert (tmp_path / "marker").exists()


def test_no_field_of_a_file_runs_code(contents, images, logits, tmp_path):
    marker, tried, harmless = tmp_path / "marker", 0, 0
    shapes = payloads(marker)
    for index, path in enumerate(fields(contents)):
        for payload in (shapes[index % len(shapes)],):
            tried += 1
            try:
                snn = loaded(replaced(contents, path, payload), tmp_path / "snn.pt")
            except FileFormatError:
                continue
            finally:
                assert not marker.exists(), path
            harmless += 1
            assert torch.equal(copy.deepcopy(snn)(images), logits), path
            repr(snn)
            assert not marker.exists(), path
    # Names of nodes and what is said of the conversion may be anything.
    assert tried > 300 > harmless > 10


def test_a_name_that_is_code_everywhere_is_a_name(contents, images, logits, tmp_path):
    marker, structure = tmp_path / "marker", contents["structure"]
    functions = {node["target"] for node in structure["nodes"] if node["op"] in ("call_function", "call_method")}
    names = {*structure["modules"], *structure["buffers"], *(node["name"] for node in structure["nodes"])} - functions
    for shape in range(len(payloads(marker))):
        odd = {name: f"{name}{payloads(marker)[shape]}" for name in sorted(names - {"output"})}
        snn = loaded(renamed(contents, odd), tmp_path / "snn.pt")
        assert torch.equal(snn(images), logits)
        snn.save(tmp_path / "again.pt")
        assert torch.equal(snn_lowlat.load(tmp_path / "again.pt")(images), logits)
        assert not marker.exists()


WEIRD = (
    10**12,
    -1,
    0,
    1e300,
    math.nan,
    math.inf,
    None,
    True,
    [],
    {},
    (),
    "x",
    2**70,
    torch.zeros(2),
    [[1]],
    {"node": "x"},
)


def test_no_value_of_a_file_raises_anything_but_its_error(contents, images, tmp_path):
    places = [path for path in fields(contents) if path[-1][0] == "value"]
    for index, path in enumerate(places):
        value = WEIRD[index % len(WEIRD)]
        try:
            snn = loaded(replaced(contents, path, value), tmp_path / "snn.pt")
        except FileFormatError:
            continue
        assert snn(images).shape == (4, 3), (path, value)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def in_itself():
    value = []
    value.append(value)
    return value


def shared(depth):
    value = ["x"]
    for _ in range(depth):
        value = [value] * 10
    return value


SIZES = {
    "a tensor without memory of its own": ("weights", "head.bias", torch.zeros(1).expand(30_000, 30_000)),
    "a window": ("timesteps", 10**12),
    "images": ("provenance", "input_shape", [1, 10**6, 10**6]),
    "channels": ("structure", "modules", "stem", "options", "out_channels", 10**12),
    "padding": ("structure", "modules", "stem", "options", "padding", (10**6, 10**6)),
    "lists in lists": ("structure", "nodes", nested(200)),
    "a list in itself": ("structure", "buffers", in_itself()),
    "lists of the same lists": ("provenance", "refinements", shared(12)),
}


@pytest.mark.parametrize("what", SIZES)
def test_sizes_are_checked_before_memory_is_taken(what, contents, tmp_path):
    *place, last, value = SIZES[what]
    changed = copy.deepcopy(contents)
    inner = changed
    for key in place:
        inner = inner[key]
    inner[last] = value
    endless = what in ("a tensor without memory of its own", "a list in itself", "lists of the same lists")
    torch.save({**changed, "digest": "" if endless else digest_of(changed)}, tmp_path / "snn.pt")
    with pytest.raises(FileFormatError, match=r"snn\.pt"):
        snn_lowlat.load(tmp_path / "snn.pt")


def damaged(data, generator):
    """Flip bits, leave out a piece, cut the end, or put something else in."""
    start = generator.randrange(len(data))
    kind = generator.randrange(4)
    if kind == 0:
        data = bytearray(data)
        for _ in range(generator.choice([1, 1, 8, 64])):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        return bytes(data)
    if kind == 1:
        return data[:start]
    piece = generator.randbytes(generator.choice([1, 4, 100])) if kind == 3 else b""
    return data[:start] + piece + data[start + generator.choice([1, 4, 100]) :]


def test_random_damage_is_noticed(contents, images, logits, tmp_path):
    path, generator = tmp_path / "snn.pt", random.Random(0)
    loaded(contents, path)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        path.write_bytes(damaged(whole, generator))
        try:
            snn = snn_lowlat.load(path)
        except FileFormatError:
            refused += 1
            continue
        # What lies between the parts of a file may change.
        assert torch.equal(snn(images), logits)
    assert refused > 200


NUMBERS = {
    "NaN": lambda weight: weight * math.nan,
    "infinite": lambda weight: weight / 0,
    "double": lambda weight: weight.double(),
    "complex": lambda weight: weight.to(torch.complex64),
    "whole": lambda weight: weight.long(),
    "of another shape": lambda weight: weight[:1],
    "of more dimensions": lambda weight: weight[None],
}


@pytest.mark.parametrize("what", NUMBERS)
@pytest.mark.parametrize("name", ["stem.weight", "head.bias"])
def test_weights_that_were_edited_are_refused_by_name(name, what, contents, tmp_path):
    weights = {**contents["weights"], name: NUMBERS[what](contents["weights"][name])}
    with pytest.raises(FileFormatError, match=name.replace(".", r"\.")):
        loaded({**contents, "weights": weights}, tmp_path / "snn.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes on this system")
@pytest.mark.parametrize("read", [snn_lowlat.load, lambda path: load_weights(nn.Linear(1, 1), path)])
def test_what_is_no_file_is_refused_at_once(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "pipe or a device"),
        ("/dev/zero", "pipe or a device"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(FileFormatError, match=words):
            read(path)


def test_a_backend_that_does_not_exist_is_not_the_fault_of_the_file(contents, tmp_path):
    loaded(contents, tmp_path / "snn.pt")
    with pytest.raises(ValueError, match="unknown backend 'norse'") as caught:
        snn_lowlat.load(tmp_path / "snn.pt", backend="norse")
    assert not isinstance(caught.value, FileFormatError)


def test_a_path_that_can_not_be_written_is_named(contents, tmp_path):
    snn = loaded(contents, tmp_path / "snn.pt")
    with pytest.raises(ValueError, match="names no file"):
        snn.save("")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        snn.save(tmp_path)
    with pytest.raises(OSError, match=r"snn\.pt/x could not be written"):
        snn.save(tmp_path / "snn.pt" / "x")


@pytest.mark.parametrize("backend", ["spikingjelly", "snntorch"])
def test_files_of_earlier_versions_load(backend):
    folder = Path(__file__).parent / "data" / "saved"
    expected = torch.load(folder / "expected.pt", weights_only=True)
    for model in (None, Residual()):
        snn = snn_lowlat.load(folder / f"residual_{backend}.pt", model=model)
        assert snn.backend == backend
        assert torch.equal(snn.readout(expected["images"]), expected[backend])


class Residual(nn.Module):
    """The network in those files; one of its layers has a name that is no name in Python."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(16, 3)
        self.add_module("skip/1", nn.Conv2d(4, 4, 3, padding=1))
        self.register_buffer("shift", torch.zeros(4, 1, 1))

    def forward(self, x):
        x = F.relu(self.stem(x) - self.shift)
        x = F.relu(self.norm(self.get_submodule("skip/1")(x)) + x)
        return self.head(F.adaptive_avg_pool2d(x[:, :, :, 1:], 2).flatten(1))


def test_another_model_than_that_of_an_earlier_version_is_refused():
    class Other(Residual):
        def forward(self, x):
            return super().forward(x) + 1

    with pytest.raises(FileFormatError, match="another network"):
        snn_lowlat.load(Path(__file__).parent / "data" / "saved" / "residual_snntorch.pt", model=Other())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_other_precisions_load(dtype, images, tmp_path):
    torch.manual_seed(0)
    model = Network().to(dtype)
    snn = snn_lowlat.convert(model, images.to(dtype), timesteps=3)
    snn.save(tmp_path / "snn.pt")
    for given in (None, model):
        again = snn_lowlat.load(tmp_path / "snn.pt", model=given)
        assert again(images.to(dtype)).dtype == dtype
        assert torch.equal(again(images.to(dtype)), snn(images.to(dtype)))
