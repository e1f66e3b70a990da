from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from snn_lowlat.errors import FileFormatError
from snn_lowlat.models import SmallCNN, load_weights
from tests.payloads import payloads
from tests.test_file_safety import damaged


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    weights = second.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_common_layouts_load(tmp_path: Path, prefix: str, key: str | None) -> None:
    trained, network = SmallCNN(), SmallCNN()
    weights = {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt")
    assert same(network, trained)


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    trained, network = SmallCNN(), SmallCNN()
    weights = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
    torch.save(weights, tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt")
    assert same(network, trained)


def test_a_file_may_lack_what_is_optional(tmp_path: Path) -> None:
    trained, network = SmallCNN(), SmallCNN(activation="ceiling")
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(FileFormatError, match=r"missing: features\.0\.2\.ceiling"):
        load_weights(network, tmp_path / "weights.pt")
    ceilings = {name for name in network.state_dict() if name.endswith("ceiling")}
    assert load_weights(network, tmp_path / "weights.pt", optional=ceilings) == ceilings
    assert same(trained, network)
    torch.save(network.state_dict(), tmp_path / "own.pt")
    assert load_weights(network, tmp_path / "own.pt", optional=ceilings) == set()


def test_lightning_checkpoints_load(tmp_path: Path) -> None:
    from lightning import Trainer

    from snn_lowlat.training import Classifier

    trained, network = SmallCNN(), SmallCNN()
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=tmp_path)
    trainer.strategy.connect(Classifier(trained, num_classes=10))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    load_weights(network, tmp_path / "last.ckpt")
    assert same(network, trained)


def test_a_network_with_such_a_prefix_of_its_own_keeps_it(tmp_path: Path) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(2, 2)

    trained, network = Wrapped(), Wrapped()
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt")
    assert same(network, trained)


def test_weights_of_another_network_are_refused_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    weights = SmallCNN(num_classes=3).state_dict()
    weights["surplus"] = weights.pop("features.0.0.weight")
    torch.save(weights, path)
    network = SmallCNN()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(FileFormatError, match=r"weights\.pt") as caught:
        load_weights(network, path)
    for part in ("missing: features.0.0.weight", "unexpected: surplus", r"classifier.bias is [3], not [10]"):
        assert part in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"no weights", {"epoch": 3}, [1, 2], torch.nn.Linear(1, 1)])
def test_files_without_weights_are_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(FileFormatError, match=r"weights\.pt") as caught:
        load_weights(SmallCNN(), path)
    # Torch's own message advises to run the code in the file.
    assert "False" not in str(caught.value)


def test_cut_off_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(SmallCNN().state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match=r"weights\.pt"):
        load_weights(SmallCNN(), path)


def test_missing_files_name_the_config_key(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.weights"):
        load_weights(SmallCNN(), tmp_path / "nothing.pt")


@pytest.mark.parametrize("shape", range(9))
def test_names_of_weights_are_never_code(tmp_path: Path, shape: int) -> None:
    network, marker = SmallCNN(), tmp_path / "marker"
    payload, state = payloads(marker)[shape], network.state_dict()
    for name in [name for name in state if not name.endswith("num_batches_tracked")]:
        weights = {payload if key == name else key: value for key, value in state.items()}
        torch.save({"state_dict": weights, payload: payload}, tmp_path / "weights.pt")
        with pytest.raises(FileFormatError, match="another network"):
            load_weights(network, tmp_path / "weights.pt")
        assert not marker.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1j])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: complex) -> None:
    weights = SmallCNN().state_dict()
    weights["classifier.bias"] = weights["classifier.bias"] * value
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(FileFormatError, match=r"NaN, infinite or complex values in classifier\.bias"):
        load_weights(SmallCNN(), tmp_path / "weights.pt")


def test_a_small_file_of_large_weights_takes_no_memory(tmp_path: Path) -> None:
    torch.save({"classifier.weight": torch.zeros(1).expand(100_000, 100_000)}, tmp_path / "weights.pt")
    with pytest.raises(FileFormatError, match="larger than the file"):
        load_weights(SmallCNN(), tmp_path / "weights.pt")


def test_objects_that_are_code_are_named(tmp_path: Path) -> None:
    torch.save({"classifier.weight": torch.zeros(1), "run": os.getcwd}, tmp_path / "weights.pt")
    with pytest.raises(FileFormatError, match=r"posix\.getcwd, which is code|nt\.getcwd, which is code"):
        load_weights(SmallCNN(), tmp_path / "weights.pt")


def test_random_damage_is_noticed(tmp_path: Path) -> None:
    path, generator = tmp_path / "weights.pt", random.Random(0)
    trained, network = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    torch.save(trained.state_dict(), path)
    whole, refused = path.read_bytes(), 0
    for _ in range(200):
        path.write_bytes(damaged(whole, generator))
        try:
            load_weights(network, path)
        except FileFormatError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("change", ["no dict", "no options", "names", "truncated"])
def test_checkpoints_that_were_changed_are_refused(tmp_path: Path, change: str) -> None:
    from lightning import Trainer

    from snn_lowlat.cli.resuming import check_checkpoint
    from snn_lowlat.data import Digits
    from snn_lowlat.training import Classifier

    classifier, path, marker = Classifier(SmallCNN(), num_classes=10), tmp_path / "last.ckpt", tmp_path / "marker"
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=tmp_path)
    data = Digits()
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(path)
    check_checkpoint(path, classifier, data, trainer)
    content = torch.load(path, weights_only=True)
    if change == "no dict":
        torch.save(list(content.items()), path)
    elif change == "no options":
        torch.save({**content, "hyper_parameters": payloads(marker)[0]}, path)
    elif change == "names":
        names = {name: payloads(marker)[index % 9] + name for index, name in enumerate(content["state_dict"])}
        torch.save({**content, "state_dict": {names[name]: v for name, v in content["state_dict"].items()}}, path)
    else:
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FileFormatError, match=r"last\.ckpt"):
        check_checkpoint(path, classifier, data, trainer)
    assert not marker.exists()
