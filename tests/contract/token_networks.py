"""Networks whose layers do not all have their channels in dimension 1."""

import torch
import torch.nn.functional as F
from torch import nn


class Tokens(nn.Module):
    """Linear layers over tokens ``[N, L, 6]``."""

    shape = (5, 6)

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 7), nn.Linear(7, 8), nn.Linear(40, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))).flatten(1))


class SquareTokens(nn.Module):
    """As many tokens as channels, so that no shape tells them apart."""

    shape = (8, 6)

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean(1))


class Pixels(nn.Module):
    """Linear layers over ``[N, H, W, C]``, between convolutions."""

    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 12), nn.Linear(12, 6)
        self.last, self.head = nn.Conv2d(6, 4, 3), nn.Linear(64, 4)

    def forward(self, x):
        x = F.relu(self.stem(x).permute(0, 2, 3, 1))
        x = F.relu(self.second(F.relu(self.first(x))) + x)
        return self.head(F.relu(self.last(x.permute(0, 3, 1, 2))).flatten(1))


class Sequences(nn.Module):
    """A convolution over sequences, then linear layers over its positions, with a batch norm."""

    shape = (3, 9)

    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.norm = nn.Conv1d(3, 6, 3), nn.Linear(6, 7), nn.BatchNorm1d(7)
        self.head = nn.Linear(49, 4)

    def forward(self, x):
        x = self.linear(F.relu(self.conv(x)).transpose(1, 2))
        return self.head(F.relu(self.norm(x.transpose(1, 2))).flatten(1))


class Mixer(nn.Module):
    """A block that mixes tokens, then channels, with shortcuts around both."""

    shape = (4, 6)

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 6)
        self.tokens, self.tokens_back = nn.Linear(4, 6), nn.Linear(6, 4)
        self.mixed, self.mixed_back = nn.Linear(6, 12), nn.Linear(12, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.tokens_back(F.relu(self.tokens(x.transpose(1, 2)))).transpose(1, 2)
        x = x + self.mixed_back(F.relu(self.mixed(x)))
        return self.head(F.relu(x).mean(1))


TOKEN_NETWORKS = (Tokens, SquareTokens, Pixels, Sequences, Mixer)


def make_token_network(kind):
    """Return a network with fixed weights and statistics, in evaluation mode, and images for it, ``[24, ...]``."""
    torch.manual_seed(3)
    network = kind()
    for _ in range(4):
        network(torch.randn(16, *kind.shape))
    return network.eval(), torch.randn(24, *kind.shape, generator=torch.Generator().manual_seed(1))
