import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is there to the end, all modules and tests, and come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 50)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small networks run faster on one thread than on several that wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Find a file of real data or trained weights; the test is skipped, with the reason, where it is missing."""
    folder = Path(os.environ.get("SNN_LOWLAT_DATA", "~/.cache/snn_lowlat")).expanduser()

    def find(name: str) -> Path:
        if not (folder / name).is_file():
            pytest.skip(f"there is no {folder / name}; SNN_LOWLAT_DATA names the folder")
        return folder / name

    return find
