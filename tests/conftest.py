"""What every test file shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import TEXT, tiny_checkpoint

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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense checkpoint with a tokenizer; not to be damaged."""
    return tiny_checkpoint(tmp_path_factory.mktemp("dense") / "llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file that its tokenizer reads."""
    file = tmp_path_factory.mktemp("text") / "cats.txt"
    file.write_text(TEXT)
    return file
