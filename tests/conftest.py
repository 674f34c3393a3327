"""What every test file shares."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import quick_python as quick
import torch
from tiny_checkpoints import TEXT, as_many_threads, tiny_checkpoint

from lmprune.sites.pages import Pages

as_many_threads()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several workers share the files (`make test`), those with slow tests begin, and those with few tests are
    left to fill up the end."""
    if config.getoption("dist", "no") == "no" and not os.environ.get("PYTEST_XDIST_WORKER"):
        return
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    number = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -number[item.path]))


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
def quick_python() -> Iterator[Path]:
    """Stands for `sys.executable` where commands are started: see quick_python.py."""
    with TemporaryDirectory(prefix="python-") as place:  # pytest's own names are too long for a socket's
        room = Path(place)
        server = subprocess.Popen([sys.executable, quick.__file__, room / "socket"])
        while not (room / "socket").exists():
            assert server.poll() is None, "it ended"
            time.sleep(0.05)
        yield quick.client(room)
        server.kill()
        server.wait()


@pytest.fixture
def quickly(quick_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that the test's code starts need not import everything anew."""
    monkeypatch.setattr(sys, "executable", str(quick_python))


@pytest.fixture(scope="session")
def forks() -> Iterator[Any]:
    """Makes processes quickly: a server that has imported everything, and forks."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["tiny_checkpoints", "lmprune.jobs.prune", "lmprune.jobs.training", "lmprune.jobs.train", "lmprune.jobs.bench"]
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    yield context
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module")
def quick_workers(forks: Any) -> Iterator[None]:
    """The processes in which models are timed are forked, too."""
    from lmprune.evaluation import workers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "multiprocessing", SimpleNamespace(get_context=lambda _: forks))
        yield


@pytest.fixture
def blocks_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks are in memory, each time that one comes."""
    seen: list[int] = []
    bring = Pages.bring

    def watched(pages: Pages, number: int) -> None:
        bring(pages, number)
        seen.append(sum(not any(p.is_meta for p in block.parameters()) for block in pages.blocks))

    monkeypatch.setattr(Pages, "bring", watched)
    return seen
