import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small networks run faster on one thread than on several that wait for each other."""
    torch.set_num_threads(1)
