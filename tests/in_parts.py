"""Which cases of a grid `make test` has, where all go one way through the code; `make conformance` has the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some(names: Iterable[str], *quick: str) -> list[Any]:
    """The names as parameters of a test: `quick` ones, and the rest in the conformance tests."""
    assert {*quick} <= {*names}
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.conformance) for name in names]


def few(names: Iterable[str], every: int = 4) -> list[Any]:
    """The names as parameters of a test: one of `every`, and the rest in the conformance tests."""
    return some(names := [*names], *names[::every])
