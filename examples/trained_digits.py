"""What the other examples begin with: a small ReLU network, trained on scikit-learn's digits in a second."""

from __future__ import annotations

import torch

from snn_lowlat.data import Digits
from snn_lowlat.models import SmallCNN


def trained_digits(epochs: int = 5) -> tuple[SmallCNN, Digits]:
    """Return the network, in evaluation mode, and the data."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = Digits(batch_size=64)
    data.setup()
    model = SmallCNN(in_channels=1, num_classes=10, image_size=8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(epochs):
        for images, labels in data.train_dataloader():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval(), data
