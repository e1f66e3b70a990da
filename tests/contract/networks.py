"""The networks on which every strategy has to keep the contract, and how their spikes are watched."""

import torch
import torch.nn.functional as F
from torch import nn

from snn_lowlat.activations import CeilingReLU
from snn_lowlat.graph import find_sites
from snn_lowlat.hosts import get_backend
from snn_lowlat.simulation import window_starts


class AveragePoolNetwork(nn.Module):
    """A plain convolutional network with batch norm and average pooling."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout()),
            *(nn.Linear(128, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)),
        )

    def forward(self, x):
        return self.layers(x)


class ResidualNetwork(nn.Module):
    """Residual blocks with a padded shortcut, as in the CIFAR ResNets, in functional style."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.first, self.second = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        out = F.relu(self.first_norm(self.first(x)))
        out = self.second_norm(self.second(out))
        out += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        out = F.relu(out)
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


class MaxPoolNetwork(nn.Module):
    """Max-pooling after an activation, alone and behind a concatenation, and trained ceilings."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.pool, self.ceiling = nn.MaxPool2d(2), CeilingReLU(0.5, channels=6)
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        x = self.pool(self.ceiling(self.stem(x)))
        x = torch.cat([F.relu(self.left(x)), F.relu6(self.right(x))], 1)
        return self.linear(F.max_pool2d(x, 3).flatten(1))


NETWORKS = (AveragePoolNetwork, ResidualNetwork, MaxPoolNetwork)


def make_network(kind):
    """Return a network with fixed weights and batch-norm statistics, in evaluation mode."""
    torch.manual_seed(0)
    network = kind()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(32, 1, 8, 8))
    return network.eval()


def make_images(count=24):
    """Return fixed images ``[count, 1, 8, 8]``."""
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def step_by_step(snn, images, reset=True):
    """Run the host's network as its users do, in a time loop; returns the output of the last window's steps."""
    if reset:
        snn.reset()
    with torch.no_grad():
        outputs = [snn.network(images) for _ in range(snn.latency_steps)]
    snn.reset()
    return torch.stack(outputs[-snn.timesteps :])


def recorded(snn, images, steps):
    """Run a window, step by step or whole; returns outputs and spikes ``[T, N, neurons]``, amplitudes aside."""
    seen, shape = {}, (snn.timesteps, len(images))

    def watch(name, layer):
        worth = getattr(layer, "graded_spikes_factor", 1)
        return layer.register_forward_hook(lambda m, i, output: seen.setdefault(name, []).append(output / worth))

    handles = [watch(name, layer) for name, layer in snn.spiking_layers().items()]
    host = get_backend(snn.backend)
    outputs = step_by_step(snn, images) if steps else host.run(snn.network, images.expand(*shape, *images.shape[1:]))
    for handle in handles:
        handle.remove()
    graph, plan = snn.normal_form()
    starts = window_starts(graph, plan, snn.timesteps)
    first = {name: starts[site.node] if steps else 0 for name, site in find_sites(graph).items()}
    windows = {name: torch.stack(values[first[name] :][: snn.timesteps]) for name, values in seen.items()}
    return outputs, {name: values.flatten().unflatten(0, (*shape, -1)) for name, values in windows.items()}
