"""A few seconds of `make fuzz`, and that it finds what is wrong."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import fuzz  # noqa: E402
from fuzz_mutations import MUTATIONS, mutated  # noqa: E402
from fuzz_readers import READERS, Reader  # noqa: E402


def test_every_reader_refuses_damage_in_a_line(tmp_path: Path) -> None:
    names = [name for name in READERS if not name.startswith("lmprune")]
    counts, findings = fuzz.fuzz(names, tmp_path, inputs=3 * len(names), size=3, first=10**6)
    assert not findings and {name for name, _ in counts} == set(names)
    assert sum(number for (_, kind), number in counts.items() if kind == "refused") > len(names)


def test_damage_is_drawn_from_its_number() -> None:
    content = b'{"a": [1, 2.5, "x"], "b": {"c": null}}\n'
    for kind in set(MUTATIONS) - {"safetensors"}:
        drawn = [mutated(random.Random(str(number)), content, kind) for number in range(30)]
        assert drawn == [mutated(random.Random(str(number)), content, kind) for number in range(30)]
        assert sum(one != content for one in drawn) >= 20


def trap(read: Callable[[Path], Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kinds of what is found of a reader that is wrong itself."""
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    row = Reader(lambda place: (place / "f").write_text("a"), "f", "lines", read)
    monkeypatch.setitem(READERS, "trap", row)
    folder.mkdir()
    _, findings = fuzz.fuzz(["trap"], folder, inputs=2, size=2)
    return [found.kind for found in findings]


def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmprune.errors import UserError

    class Several(UserError):
        def __str__(self) -> str:
            return "one\ntwo"

    def raises(error: BaseException) -> Callable[[Path], None]:
        def read(_: Path) -> None:
            raise error

        return read

    def spins(_: Path) -> None:
        while True:
            pass

    def dies(_: Path) -> None:
        import os

        os._exit(3)

    for number, (read, kind) in enumerate(
        [
            (raises(KeyError("a")), "traceback"),
            (raises(Several()), "lines"),
            (raises(UserError("x" * 500)), "long"),
            (spins, "hang"),
            (dies, "died"),
            (lambda _: bytearray(3 * 2**30), "traceback"),
            (lambda _: (tmp_path / "outside").write_text("x"), "outside"),
            (lambda _: time.sleep(0), None),
        ]
    ):
        assert set(trap(read, tmp_path / str(number), monkeypatch)) == ({kind} if kind else set()), number
