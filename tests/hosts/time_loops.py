"""What a process of its own does with snnTorch's networks: no more is imported there than it needs."""

import torch

from snn_lowlat import snntorch


def window(network, images, timesteps=4):
    """Run a window in a time loop, as snnTorch's users do."""
    snntorch.reset(network)
    with torch.no_grad():
        return torch.stack([network(images) for _ in range(timesteps)])


def window_in_a_process(rank, network, images, expected):
    """Run a window in the process of this rank, and compare."""
    assert torch.equal(window(network, images), expected)
