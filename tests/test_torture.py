"""Two kills and two shortages of `make torture`, and that it finds what is wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import lmprune

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import torture  # noqa: E402
from torture_commands import COMMANDS, clear, make_room, result  # noqa: E402
from torture_forks import LOG, How, ended, forked, outlived  # noqa: E402
from torture_shortages import SHORTAGES, Trial, tried  # noqa: E402

NAME = "prune"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[torture.Subject]:
    """`lmprune prune` in its folder, never begun as a user does: that takes seconds."""
    folder, before = tmp_path_factory.mktemp("torture"), Path.cwd()
    make_room(folder)
    os.chdir(folder)
    try:  # in this process first: what it imports no fork has to
        assert lmprune(*COMMANDS[NAME]).code == 0
    finally:
        os.chdir(before)
    clear(folder)
    told = torture.undisturbed(NAME, folder)
    yield torture.Subject(NAME, folder, result(folder), told["changes"], told["opened"], 1.0, 1.0)


def test_kills_lose_nothing(subject: torture.Subject) -> None:
    found = [torture.killed(subject, moment) for moment in (6, 10)]
    assert [(one["way"], one["signal"], one["faults"]) for one in found] == [
        ("disk", "SIGKILL", []), ("disk", "SIGTERM", []),
    ]  # fmt: skip
    assert {one["ended"] for one in found} == {-signal.SIGKILL, 130}


def test_shortages_end_in_a_sentence(subject: torture.Subject) -> None:
    trial = Trial(NAME, (), subject.folder, subject.whole, 1.0, subject.opened)
    found = {name: tried(name, trial) for name in ("files of 1 kB", "the model is cut short")}
    assert all(one["faults"] == [] for one in found.values()) and found["files of 1 kB"]["ended"] == 2


def test_what_is_wrong_is_found(subject: torture.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Mapping[str, bytes] = {**subject.whole, "out/more": b"x"}
    other = torture.Subject(NAME, subject.folder, whole, subject.changes, subject.opened, 1.0, 1.0)
    assert torture.killed(other, 6)["faults"] == ["lost: other bytes in ['out/more']"]

    def leaves(_: Any) -> tuple[int, list[str]]:
        (subject.folder / ".lmprune-left").mkdir()
        (subject.folder / "out" / "config.json").write_text("half")
        (subject.folder / LOG).write_text("Traceback")
        return 1, []

    monkeypatch.setitem(SHORTAGES, "bad", leaves)  # type: ignore[arg-type]
    faults = tried("bad", Trial(NAME, (), subject.folder, subject.whole, 1.0, subject.opened))["faults"]
    assert [fault.split(":")[0] for fault in faults] == ["damaged", "more than a sentence", "left over"]
    pid = forked(("methods",), subject.folder, How(limit=lambda: os.fork() or signal.pause()))
    assert ended(pid) == 0 and len(outlived(pid, 0.1)) == 1
