"""What every test file shares."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import TEXT, as_many_threads, tiny_checkpoint

as_many_threads()


def pytest_collection_finish() -> None:
    """What is imported by now stays, and need not be looked through by every collection (accelerate asks for one after
    each training: a third of a second)."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any]], dict[str, Any]]:
    """Makes `rows` what any data set of the hub holds, streamed by the real `datasets`; returns what was asked."""
    import datasets
    import huggingface_hub

    asked: dict[str, Any] = {}

    def install(rows: list[Any]) -> dict[str, Any]:
        class Api:
            def dataset_info(self, name: str, revision: str | None, timeout: float) -> Any:
                asked.update(branch=revision)
                return type("Info", (), {"sha": "abc123"})

        def load_dataset(name: str, config: str | None, **kwargs: Any) -> Any:
            asked.update(name=name, config=config, **kwargs)
            return datasets.Dataset.from_list(rows).to_iterable_dataset()

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return install


@pytest.fixture(scope="session")
def forks() -> Iterator[Any]:
    """Makes processes quickly: a server that has imported everything, and forks."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["tiny_checkpoints", "lmprune.jobs.prune", "lmprune.jobs.training", "lmprune.jobs.train"]
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    yield context
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
