import math

import numpy as np
import pytest
import torch

from snn_lowlat import checks


@pytest.mark.parametrize("value", [1, 8, np.int64(8), torch.tensor(3)])
def test_whole_numbers_of_any_library_are_counts(value):
    assert checks.count("timesteps", value) == int(value)
    assert type(checks.count("timesteps", value)) is int


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, None, math.nan, 8.0, np.bool_(True), [4]])
def test_what_is_no_count_is_refused_with_its_name(value):
    with pytest.raises(ValueError, match="timesteps must be a whole number of at least 1, not"):
        checks.count("timesteps", value)


def test_a_count_may_have_a_maximum():
    assert checks.count("seed", 0, minimum=0, maximum=10) == 0
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 10, not 11"):
        checks.count("seed", 11, minimum=0, maximum=10)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", True, None, 1j])
def test_what_is_no_finite_number_is_refused(value):
    for check in (checks.number, checks.positive, checks.fraction):
        with pytest.raises(ValueError, match="rate must be a finite number"):
            check("rate", value)


def test_bounds_are_named():
    assert checks.number("leak", np.float32(0.5), above=0, maximum=1) == 0.5
    with pytest.raises(ValueError, match="leak must be a finite number above 0 and of at most 1, not 0"):
        checks.number("leak", 0, above=0, maximum=1)
    with pytest.raises(ValueError, match="a must be a finite number of at least 0 and of at most 1, not 2"):
        checks.fraction("a", 2)
    assert checks.positive("a", torch.tensor(2.0)) == 2.0


def test_near_names_are_offered():
    assert checks.one_of("fruit", "pear", ("apple", "pear")) == "pear"
    with pytest.raises(ValueError, match=r"unknown fruit .peer.\. Did you mean 'pear'"):
        checks.one_of("fruit", "peer", ("apple", "pear"))
    with pytest.raises(ValueError, match="unknown fruit 3"):
        checks.one_of("fruit", 3, ("apple", "pear"))


X = torch.rand(4, 1, 8, 8)

BAD_IMAGES = {
    "nothing": (None, r"images must be a batch of images, a tensor \[N, ...\], not None"),
    "a number": (3, "images must be a batch of images, .* not 3"),
    "a list": ([X[0], X[1]], r"not a list: give torch.stack\(images\)"),
    "a text": ("images.pt", "not the text 'images.pt'"),
    "an array": (X.numpy(), r"not a NumPy array: give torch.from_numpy\(images\)"),
    "no values": (X.to("meta"), "lie on the device 'meta'"),
    "sparse": (X.to_sparse(), r"torch.sparse_coo: give images.to_dense\(\)"),
    "quantised": (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), r"quantised one: give images.dequantize\(\)"),
    "several sizes": (torch.nested.nested_tensor([X[0], X[1, :, 1:]]), "give images of one size, stacked"),
    "one image": (X[0], r"not \[1, 8, 8\]: one image needs a batch dimension, images.unsqueeze\(0\)"),
    "one pixel": (torch.tensor(1.0), r"not \[\]: one image needs a batch dimension"),
    "another size": (X[..., 1:], r"converted for inputs \[N, 1, 8, 8\], not \[4, 1, 8, 7\]: convert it again"),
    "no image": (X[:0], r"of shape \[0, 1, 8, 8\] hold no image"),
}


@pytest.mark.parametrize("given", BAD_IMAGES)
def test_what_is_no_batch_of_images_is_refused(given):
    value, words = BAD_IMAGES[given]
    with pytest.raises(ValueError, match=words):
        checks.images("images", value, (1, 8, 8))


def test_batches_of_images_pass():
    assert checks.images("images", X, (1, 8, 8)) is X
    assert checks.images("images", X) is X
    assert checks.images("images", X[0, 0]).shape == (8, 8)
    ordinary = X.permute(0, 1, 3, 2)
    assert checks.images("images", ordinary, torch.Size([1, 8, 8])) is ordinary
