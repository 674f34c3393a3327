"""Faults put into the code on purpose, one at a time: the fast tests should see at least nine of ten.

    python benchmarks/mutants.py [--only WORD …] [--record FILE]     # as `make mutants` runs it

The list is `mutant_list.py`. Each fault is put into a scratch copy and the tests that should see it are run there, the
fast ones only, until one fails; in the end those that failed must pass without any fault. Processes fork from one that
has torch and transformers loaded; no GPU, one thread.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

from mutant_list import MUTANTS
from numerics import FAST

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src/lmprune")
#: what brings in all other packages
IMPORTED = ("training.train", "pruning", "evaluation.perplexity", "commands.cli", "jobs.prune")
#: a fault that makes a test go on for ever is seen too: seconds of the processor, since other work may be going on
PATIENCE = 180


@dataclass(frozen=True)
class Mutant:
    """where: the file or the package, within lmprune, that has `old` in one place. tests: files, in the order to ask.

    why: what explains that no fast test sees it.
    """

    where: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str | None = None

    def file(self, root: Path = ROOT) -> Path:
        """The file that has `old`. Raises: LookupError where it is not in exactly one place."""
        place = root / PACKAGE / self.where
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        counts = {file: file.read_text(encoding="utf-8").count(self.old) for file in files if file.is_file()}
        if sum(counts.values()) != 1:
            raise LookupError(f"{self.where}: {self.old!r} is there {sum(counts.values())} times; renew mutant_list.py")
        return next(file for file, count in counts.items() if count)


def all_mutants() -> Iterator[Mutant]:
    for where, (tests, edits) in MUTANTS.items():
        for old, new, *why in edits:
            yield Mutant(where, old, new, tuple(tests.split()), *why)


@dataclass
class Result:
    """outcome: killed, survived, or broken (not a test failed, but collecting them)."""

    where: str
    old: str
    new: str
    outcome: str
    by: str | None
    seconds: float
    why: str | None = None


class First:
    """A pytest plugin that remembers which test failed."""

    def __init__(self) -> None:
        self.failed: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid


def run_tests(scratch: Path, tests: Sequence[str], answer: Any) -> None:
    """In a process of its own: pytest's exit code, and the test that failed."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
    os.chdir(scratch)
    os.environ["PYTHONPATH"] = str(scratch / "src")
    sys.path.insert(0, str(scratch / "src"))
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        first = First()
        how = ["-x", "-q", "-p", "no:cacheprovider", "-m", FAST]
        code = pytest.main([*how, *tests], plugins=[first])
        answer.put((int(code), first.failed))


def asked(scratch: Path, tests: Sequence[str]) -> tuple[str, str | None]:
    """The outcome, and the test that failed."""
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=run_tests, args=(scratch, tests, answer))
    process.start()
    process.join()
    if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "killed", f"no end after {PATIENCE} s"
    code, failed = answer.get() if not answer.empty() else (-1, None)
    return {0: "survived", 1: "killed"}.get(code, "broken"), failed


def judge(mutant: Mutant, scratch: Path) -> Result:
    start = time.perf_counter()
    file = mutant.file(scratch)
    sound = file.read_text(encoding="utf-8")
    file.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        outcome, by = asked(scratch, [f"tests/test_{name}.py" for name in mutant.tests])
    finally:
        file.write_text(sound, encoding="utf-8")
    seconds = round(time.perf_counter() - start, 1)
    return Result(mutant.where, mutant.old, mutant.new, outcome, by, seconds, mutant.why)


def copy_to(scratch: Path) -> None:
    """What git would commit of the working tree, so no build, no cache."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, scratch / name)
    # by contents: two edits of one second and one length would share their bytecode
    compileall.compile_dir(scratch / "src", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def preload() -> None:
    """All that the tests import and no mutant touches: what lmprune and pytest need, without lmprune."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM, Trainer  # noqa: F401

    torch.set_num_threads(1)
    for name in ("pytest", "hypothesis", "datasets", "lmprune", *(f"lmprune.{m}" for m in IMPORTED)):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "lmprune"]:
        del sys.modules[name]


class Record:
    """Results in a file, if one is named, written anew after each; those of mutants no longer listed are left out."""

    def __init__(self, file: Path | None):
        self.file = file
        there = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {"results": []}
        self.results = {(r["where"], r["old"], r["new"]): Result(**r) for r in there["results"]}

    def has(self, mutant: Mutant) -> bool:
        return (mutant.where, mutant.old, mutant.new) in self.results

    def add(self, result: Result) -> None:
        self.results[result.where, result.old, result.new] = result
        if self.file is not None:
            listed = [self.results[m.where, m.old, m.new] for m in all_mutants() if self.has(m)]
            killed = sum(one.outcome == "killed" for one in listed)
            about = {"mutants": len(listed), "killed": killed, "results": [asdict(one) for one in listed]}
            self.file.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="mutants whose file or text has one of these words")
    parser.add_argument("--record", type=Path, help="write results to this JSON file, among those that are there")
    parser.add_argument("--missing", action="store_true", help="only mutants that the record does not have")
    options = parser.parse_args()
    record = Record(options.record)
    chosen = [m for m in all_mutants() if any(word in f"{m.where} {m.old}" for word in options.only)]
    chosen = [m for m in chosen if not (options.missing and record.has(m))]
    for mutant in chosen:
        mutant.file()
    preload()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        copy_to(scratch)
        for number, mutant in enumerate(chosen, start=1):
            results.append(one := judge(mutant, scratch))
            record.add(one)
            seen = one.by or one.why or f"{one.old!r} -> {one.new!r}"
            print(f"{number}/{len(chosen)} {one.outcome:8} {one.seconds:5.1f} s  {one.where}: {seen}", flush=True)
        sound, failed = asked(scratch, sorted({one.by for one in results if one.by and "::" in one.by}))
        if sound != "survived":
            sys.exit(f"not only a fault makes {failed} fail")
    killed = sum(one.outcome == "killed" for one in results)
    print(f"{killed} of {len(results)} killed, {killed / max(len(results), 1):.1%}")
    sys.exit(any(one.outcome == "broken" for one in results) or killed < 0.9 * len(results))


if __name__ == "__main__":
    main()
