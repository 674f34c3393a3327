"""What every test file shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny models: threads only wait for each other

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and texts, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared models and data at {SHARED}")
    return SHARED
