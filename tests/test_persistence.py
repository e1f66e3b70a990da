import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snn_lowlat
from snn_lowlat import FileFormatError
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.model_file import digest_of


def network(hidden=8, activation=nn.ReLU):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), activation(), nn.Linear(hidden, 3))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(16, 1, 8, 8)
    snn_lowlat.convert(network(), images, timesteps=3, refinements=["bias_correction"]).save(tmp_path / "snn.pt")
    return tmp_path / "snn.pt"


def change(path, without=(), **values):
    """Change or leave out entries of a saved file, as somebody would who also knows how to make its digest."""
    contents = torch.load(path, weights_only=True) | values
    contents = {key: value for key, value in contents.items() if key not in without}
    torch.save(contents | {"digest": digest_of(contents)}, path)


def test_the_file_holds_plain_values_only(saved):
    contents = torch.load(saved, weights_only=True)
    assert (contents["format"], contents["version"]) == ("snn_lowlat.SpikingModel", 3)
    assert contents["provenance"]["strategy"] == "optimized_potential"
    assert contents["provenance"]["refinements"] == [{"name": "bias_correction", "images": 512, "iterations": 4}]
    assert torch.__version__.startswith(contents["provenance"]["versions"]["torch"])


class Unusual(nn.Module):
    """Slices, paddings, factors, constants and permutations, all of which a file has to describe."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3, 2, padding_mode="reflect", padding=1), nn.Linear(24, 3)
        self.register_buffer("shift", torch.rand(4, 1, 1))

    def forward(self, x):
        x = F.relu6(0.5 * self.stem(x) - self.shift)
        x = F.pad(x[:, 1:, ..., ::2], (0, 1, 0, 1)).permute(0, 2, 3, 1)
        x = torch.cat([x.mean(1), -x.mean(2)[:, :5]], 1)
        return self.head(F.relu(x.reshape(len(x), -1)[:, -24:]))


def test_a_fresh_process_needs_no_source_code_of_the_network(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(8, 1, 8, 8)
    snn = snn_lowlat.convert(Unusual(), images, timesteps=3)
    snn.save(tmp_path / "snn.pt")
    torch.save((images, snn.readout(images)), tmp_path / "expected.pt")
    code = f"""if True:
        import sys, torch, snn_lowlat
        torch.set_num_threads(1)
        images, expected = torch.load("expected.pt")
        for backend in {list(BACKENDS)}:
            assert torch.equal(snn_lowlat.load("snn.pt", backend=backend).readout(images), expected)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_the_weights_come_from_the_file(saved):
    torch.manual_seed(1)
    snn = snn_lowlat.load(saved, model=network())
    assert torch.equal(snn.network.state_dict()["3.bias"], torch.load(saved, weights_only=True)["weights"]["3.bias"])


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        snn_lowlat.load(tmp_path / "none.pt", model=network())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    with pytest.raises(FileFormatError, match="damaged"):
        snn_lowlat.load(saved, model=network())


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "text").write_text("hello")
    torch.save({"state_dict": network().state_dict()}, tmp_path / "checkpoint")
    torch.save(network(), tmp_path / "pickle")
    for name, words in (("text", "damaged"), ("checkpoint", "no network saved by snn_lowlat"), ("pickle", "damaged")):
        with pytest.raises(FileFormatError, match=words):
            snn_lowlat.load(tmp_path / name, model=network())


def test_a_newer_version(saved):
    change(saved, version=4)
    with pytest.raises(FileFormatError, match="install a newer snn_lowlat"):
        snn_lowlat.load(saved, model=network())


@pytest.mark.parametrize("key", ["plan", "provenance", "weights", "timesteps", "backend", "digest"])
def test_a_missing_part(saved, key):
    contents = torch.load(saved, weights_only=True)
    del contents[key]
    torch.save(contents if key == "digest" else contents | {"digest": digest_of(contents)}, saved)
    with pytest.raises(FileFormatError, match="incomplete"):
        snn_lowlat.load(saved, model=network())


TAMPERED = {
    "a negative threshold": ("plan", "2", {"threshold": -torch.ones(())}),
    "a site too few": ("plan", "2", None),
    "weights of another shape": ("weights", "3.bias", torch.zeros(4)),
    "another neuron": ("plan", "2", {"neuron": "unheard_of"}),
    "an operation that is none": ("structure", "nodes", [{"op": "call_function", "name": "x", "target": "exec"}]),
    "a layer that is none": ("structure", "modules", {"1": {"type": "Popen", "options": {"args": ("ls",)}}}),
}


@pytest.mark.parametrize("change_made", TAMPERED)
def test_a_tampered_file(saved, change_made):
    part, key, value = TAMPERED[change_made]
    contents = torch.load(saved, weights_only=True)
    if value is None:
        del contents[part][key]
    else:
        contents[part][key] = contents[part][key] | value if isinstance(value, dict) else value
    change(saved, **contents)
    with pytest.raises(FileFormatError, match="was changed"):
        snn_lowlat.load(saved)


def test_a_file_edited_by_hand(saved):
    contents = torch.load(saved, weights_only=True)
    contents["plan"]["2"]["threshold"] *= 2
    torch.save(contents, saved)
    with pytest.raises(FileFormatError, match="was changed"):
        snn_lowlat.load(saved)


def test_format_version_1_needs_the_network(saved):
    images = torch.rand(4, 1, 8, 8)
    expected = snn_lowlat.load(saved)(images)
    change(saved, version=1, without=["structure"])
    with pytest.raises(FileFormatError, match="give the original network"):
        snn_lowlat.load(saved)
    assert torch.equal(snn_lowlat.load(saved, model=network())(images), expected)


def test_missing_weights(saved):
    weights = torch.load(saved, weights_only=True)["weights"]
    change(saved, weights={key: value for key, value in weights.items() if key != "3.bias"})
    with pytest.raises(FileFormatError, match=r"3\.bias"):
        snn_lowlat.load(saved, model=network())


@pytest.mark.parametrize("other", [network(9), network(activation=nn.ReLU6)], ids=["wider", "with ceilings"])
def test_another_network(saved, other):
    with pytest.raises(FileFormatError, match="belongs to another network"):
        snn_lowlat.load(saved, model=other)


def test_a_disk_that_fills_leaves_the_old_file(saved, monkeypatch):
    snn = snn_lowlat.load(saved, model=network())
    before = saved.read_bytes()

    def fail(path, data):
        with open(path, "wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"snn\.pt could not be written, the file that was there is unchanged: No space"):
        snn.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["snn.pt"]
