from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from snn_lowlat.data import CIFAR10, CIFAR100, MNIST, ArchivedImages, Digits, ImageDataModule, ImageFolder
from snn_lowlat.data.augmentation import crop_and_flip
from snn_lowlat.data.sampling import EpochSampler, balanced_order, stratified_split
from snn_lowlat.errors import FileFormatError


def write_archive(folder: Path, name: str = "cifar10", train: int = 60, test: int = 20, classes: int = 10) -> None:
    generator = np.random.default_rng(0)
    shape = (28, 28) if name == "mnist" else (32, 32, 3)
    np.savez(
        folder / f"{name}.npz",
        x_train=generator.integers(0, 256, (train, *shape), dtype=np.uint8),
        y_train=(np.arange(train) % classes).astype(np.uint8)[:, None],
        x_test=generator.integers(0, 256, (test, *shape), dtype=np.uint8),
        y_test=(np.arange(test) % classes).astype(np.uint8),
    )


def write_pictures(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), number: int = 6) -> None:
    for split in ("train", "test"):
        for brightness, name in enumerate(classes):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (20 + index, 30), (100 * brightness,) * 3).save(place / f"{index}.png")


def all_of(loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def epochs_of(data: ImageDataModule, number: int) -> Iterator[Any]:
    """Return the training loader again and again: each time it is gone through is an epoch."""
    loader = data.train_dataloader()
    return (loader for _ in range(number))


def test_digits_have_disjoint_stratified_splits_in_the_unit_interval() -> None:
    data = Digits()
    parts = [all_of(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert sum(len(labels) for _, labels in parts) == 1797
    for images, labels in parts:
        assert images.shape[1:] == data.input_shape == (1, 8, 8)
        assert images.min() == 0
        assert images.max() == 1
        assert labels.bincount(minlength=data.num_classes).min() >= 0.08 * len(labels)


def test_splits_depend_on_the_seed_alone() -> None:
    first, again, other = (all_of(Digits(seed=seed).test_dataloader())[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_calibration_is_balanced_deterministic_and_apart_from_validation_and_test(tmp_path: Path) -> None:
    write_archive(tmp_path, train=200)
    data = CIFAR10(tmp_path, augment=True, validation_fraction=0.2)
    images, labels = all_of(data.calibration_dataloader(50, batch_size=20))
    again, _ = all_of(CIFAR10(tmp_path, validation_fraction=0.2).calibration_dataloader(50, batch_size=7))
    assert torch.equal(images, again)
    assert labels.bincount().tolist() == [5] * 10
    held_out = {image.numpy().tobytes() for image in all_of(data.val_dataloader())[0]}
    assert len(held_out) == 40
    assert not held_out & {image.numpy().tobytes() for image in images}


def test_calibration_uses_what_there_is(caplog: pytest.LogCaptureFixture) -> None:
    data = Digits()
    images, _ = all_of(data.calibration_dataloader(10**6))
    assert len(images) == sum(len(labels) for _, labels in data.train_dataloader())
    assert "10" in caplog.text
    with pytest.raises(ValueError, match="at least 1"):
        data.calibration_dataloader(0)


def test_archive_keeps_order_channels_and_normalisation(tmp_path: Path) -> None:
    write_archive(tmp_path)
    with np.load(tmp_path / "cifar10.npz") as archive:
        pixels = torch.from_numpy(archive["x_test"]).permute(0, 3, 1, 2) / 255
    plain, labels = all_of(CIFAR10(tmp_path, normalise=False, batch_size=7).test_dataloader())
    assert torch.allclose(plain, pixels)
    assert labels.tolist() == [index % 10 for index in range(20)]
    normalised, _ = all_of(CIFAR10(tmp_path, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).test_dataloader())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    assert torch.allclose(normalised, (pixels - mean) / std, atol=1e-6)


def test_unnormalised_pixels_never_leave_the_unit_interval(tmp_path: Path) -> None:
    write_archive(tmp_path)
    images, _ = all_of(CIFAR10(tmp_path, normalise=False).calibration_dataloader())
    assert images.min() >= 0
    assert images.max() <= 1


def test_training_order_is_seeded_and_changes_with_the_epoch() -> None:
    loader = Digits(batch_size=32).train_dataloader()
    first, second = all_of(loader)[1], all_of(loader)[1]
    assert not torch.equal(first, second)
    assert torch.equal(first, all_of(Digits(batch_size=32).train_dataloader())[1])


def test_every_epoch_takes_each_picture_once() -> None:
    data = Digits()
    number = len(data.calibration_dataloader().dataset)
    sampler = EpochSampler(range(number), seed=0)
    for epoch in range(2):
        assert sorted(sampler) == list(range(epoch * number, (epoch + 1) * number))
    images = [sorted(image.numpy().tobytes() for image in all_of(loader)[0]) for loader in epochs_of(data, 2)]
    assert images[0] == images[1]


def test_an_epoch_is_the_same_whatever_was_before_and_whoever_prepares_it(tmp_path: Path) -> None:
    write_archive(tmp_path)
    one, two = (CIFAR10(tmp_path, augment=True, batch_size=16, num_workers=workers) for workers in (0, 1))
    first, second, third = [all_of(loader)[0] for loader in epochs_of(one, 3)]
    assert not torch.equal(first, second)
    loader = two.train_dataloader()
    loader.sampler.set_epoch(2)
    torch.rand(7)
    assert torch.equal(all_of(loader)[0], third)
    loader.sampler.set_epoch(0)
    assert torch.equal(all_of(loader)[0], first)


def test_training_batches_leave_the_global_random_numbers_alone(tmp_path: Path) -> None:
    write_archive(tmp_path)
    loader = CIFAR10(tmp_path, augment=True).train_dataloader()
    before = torch.get_rng_state()
    all_of(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        shares.append(list(EpochSampler(range(10), seed=0, epoch=1)))
    assert sorted(shares[0] + shares[1]) == list(range(10, 20))
    assert len(shares[0]) == len(shares[1]) == 5


def test_limit_test_takes_every_class(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    _, labels = all_of(ImageFolder(tmp_path, limit_test=4).test_dataloader())
    assert labels.tolist() == [0, 0, 1, 1]


def test_image_folder_crops_scales_and_names_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    data = ImageFolder(tmp_path, image_size=16, normalise=False, validation_fraction=0)
    images, labels = all_of(data.test_dataloader())
    assert data.classes == ("cat", "dog")
    assert images.shape == (12, 3, 16, 16)
    assert torch.allclose(images.mean((1, 2, 3)), labels * 100 / 255)
    assert data.val_dataloader() == []
    assert next(iter(ImageFolder(tmp_path, channels=1).test_dataloader()))[0].shape[1:] == (1, 32, 32)


def test_image_folder_works_with_worker_processes(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    images, _ = all_of(ImageFolder(tmp_path, image_size=8, num_workers=1).test_dataloader())
    assert images.shape == (12, 3, 8, 8)


def test_image_folder_errors_name_the_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.root"):
        ImageFolder(tmp_path).setup()
    write_pictures(tmp_path)
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(ValueError, match="bird"):
        ImageFolder(tmp_path).test_dataloader()
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(FileFormatError, match=r"cat/0\.png"):
        all_of(ImageFolder(tmp_path, validation_fraction=0).train_dataloader())


def test_missing_data_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"cifar10\.npz.*data\.root"):
        CIFAR10(tmp_path, download=False).test_dataloader()

    def fails(self: object, train: bool, download: bool) -> None:
        raise RuntimeError("no network" if download else "not found")

    monkeypatch.setattr(MNIST, "torchvision_arrays", fails)
    with pytest.raises(FileNotFoundError, match=r"no network.*mnist\.npz.*MNIST/raw"):
        MNIST(tmp_path).test_dataloader()


def test_torchvision_files_are_read_where_there_is_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def arrays(self: object, train: bool, download: bool) -> tuple[Any, Any]:
        calls.append(download)
        return np.zeros((4, 28, 28), dtype=np.uint8), np.arange(4)

    monkeypatch.setattr(MNIST, "torchvision_arrays", arrays)
    images, labels = all_of(MNIST(tmp_path, normalise=False).test_dataloader())
    assert images.shape == (4, 1, 28, 28)
    assert labels.tolist() == [0, 1, 2, 3]
    assert calls == [False]


@pytest.mark.parametrize("content", [b"", b"not an archive", "wrong arrays", "wrong type"])
def test_damaged_archives_are_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "cifar10.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "wrong arrays":
        np.savez(path, images=np.zeros(3))
    else:
        np.savez(path, x_test=np.zeros((3, 32, 32, 3)), y_test=np.zeros(3))
    with pytest.raises(FileFormatError, match=r"cifar10\.npz"):
        CIFAR10(tmp_path).test_dataloader()


def test_labels_and_shapes_are_checked(tmp_path: Path) -> None:
    write_archive(tmp_path, classes=12)
    with pytest.raises(ValueError, match="10 classes"):
        CIFAR10(tmp_path).test_dataloader()
    write_archive(tmp_path, name="mnist")
    (tmp_path / "mnist.npz").rename(tmp_path / "cifar10.npz")
    with pytest.raises(ValueError, match="shape"):
        CIFAR10(tmp_path).test_dataloader()


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"validation_fraction": 1.0},
        {"mean": [0.5]},
        {"mean": [0.5], "std": [0.0]},
        {"limit_test": 0},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|belong together"):
        Digits(**options)


def test_balanced_order_is_a_permutation_with_balanced_prefixes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 30)
    order = balanced_order(labels, seed=3)
    assert sorted(order.tolist()) == list(range(90))
    assert labels[order[:30]].bincount().tolist() == [10, 10, 10]
    assert labels[order[:50]].bincount().tolist() == [20, 10, 20]


def test_stratified_split_keeps_a_sample_of_each_class() -> None:
    labels = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    kept, held_out = stratified_split(labels, 0.5, seed=0)
    assert set(labels[kept].tolist()) == {0, 1}
    assert len(held_out) == 5
    assert not set(kept.tolist()) & set(held_out.tolist())


def test_crop_and_flip_shifts_and_mirrors_whole_pictures() -> None:
    image = torch.arange(1, 2 * 6 * 6 + 1, dtype=torch.uint8).view(1, 2, 6, 6)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    shifts = [padded[0, :, top : top + 6, left : left + 6] for top in range(5) for left in range(5)]
    candidates = torch.stack(shifts + [shift.flip(-1) for shift in shifts])
    changed = crop_and_flip(image.expand(400, -1, -1, -1), torch.Generator().manual_seed(0), padding=2)
    matches = (changed[:, None] == candidates[None]).flatten(2).all(2)
    assert matches.any(1).all()
    assert matches.any(0).all()


def test_training_batches_are_augmented_and_others_are_not(tmp_path: Path) -> None:
    write_archive(tmp_path)
    plain, augmented = (CIFAR10(tmp_path, augment=augment) for augment in (False, True))
    assert not torch.equal(all_of(plain.train_dataloader())[0], all_of(augmented.train_dataloader())[0])
    assert torch.equal(all_of(plain.test_dataloader())[0], all_of(augmented.test_dataloader())[0])
    assert torch.equal(all_of(plain.val_dataloader())[0], all_of(augmented.val_dataloader())[0])


def test_cifar100_has_its_hundred_classes() -> None:
    assert len(set(CIFAR100(".").classes)) == CIFAR100(".").num_classes == 100


@pytest.mark.data
@pytest.mark.parametrize("data_module", [MNIST, CIFAR10, CIFAR100])
def test_real_archives(data_module: type[ArchivedImages], real_data: Callable[[str], Path]) -> None:
    data = data_module(real_data(data_module(".").archive.name).parent, download=False)
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape[1:] == data.input_shape
    assert abs(float(images.mean())) < 0.3
    assert labels.max() < data.num_classes


def test_a_picture_that_is_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / split / "cat" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FileFormatError, match=r"cat/0\.png is too large a picture .*scale it down"):
        ImageFolder(tmp_path).setup()


def test_a_training_goes_on_with_the_pictures_that_it_began_with_only() -> None:
    data = Digits()
    state = data.state_dict()
    assert state == Digits().state_dict()
    for options in ({"seed": 1}, {"test_fraction": 0.3}, {"batch_size": 4}, {"augment": True}):
        other = Digits(**options)
        changed = {name for name, value in other.state_dict().items() if value != state[name]}
        assert set(options) <= changed
        # Its loaders are asked for without a training, so it need not be the same.
        other.load_state_dict(state)
        other.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))  # type: ignore[assignment]
        with pytest.raises(FileFormatError, match=f"data.{next(iter(options))} was"):
            other.load_state_dict(state)
