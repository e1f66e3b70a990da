from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from snn_lowlat.errors import FileFormatError
from snn_lowlat.models import SmallCNN, load_weights


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
    with pytest.raises(FileFormatError, match=r"weights\.pt"):
        load_weights(SmallCNN(), path)


def test_cut_off_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(SmallCNN().state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match=r"weights\.pt"):
        load_weights(SmallCNN(), path)


def test_missing_files_name_the_config_key(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.weights"):
        load_weights(SmallCNN(), tmp_path / "nothing.pt")
