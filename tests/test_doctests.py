"""The examples in docstrings say what comes out."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import lmprune

#: it needs a package that is not installed beside this one
_ELSEWHERE = {"lmprune.llm_compressor", "lmprune.__main__"}
MODULES = sorted(m.name for m in pkgutil.walk_packages(lmprune.__path__, "lmprune.") if m.name not in _ELSEWHERE)


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    assert not doctest.testmod(import_module(name)).failed


def test_there_are_examples_and_a_wrong_one_is_seen() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(bool(test.examples) for name in MODULES for test in finder.find(import_module(name))) > 40
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda _: None).failed == 1
