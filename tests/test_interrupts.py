"""Ctrl-C and a polite kill end in a sentence, at whatever moment they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lmprune.commands import interrupts

ANSWER = f"error: {interrupts.SENTENCE}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_commands_are_imported(number: signal.Signals) -> None:
    """In the middle of the imports of the command line, as a user begins it."""
    code = (
        "import os, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background ignores it
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == 'typer': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('lmprune', run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", ANSWER)


def test_an_interrupt_that_comes_through_an_eval(tmp_path: Path) -> None:
    """Python would end by a signal after one, as `python -m`."""
    (tmp_path / "ends.py").write_text(
        "import os, signal\n"
        "from lmprune.commands import interrupts\n"
        "with interrupts.answered():\n"
        "    eval('os.kill(os.getpid(), signal.SIGTERM) or [0 for _ in range(9)]')\n"
    )
    ended = subprocess.run([sys.executable, "-m", "ends"], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, ANSWER)


def in_a_process(work: Callable[[], object]) -> tuple[int, str]:
    """Exit code and stderr of a fork that does the work as a command would."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writes, 2)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        code = 0
        try:
            with interrupts.answered():
                work()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            code = 1
        os._exit(code)
    os.close(writes)
    with os.fdopen(reads) as said:
        told = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupt_that_a_library_turns_into_something_else() -> None:
    def work() -> None:
        try:
            kill_me()
        except KeyboardInterrupt:
            raise SystemError("initialization failed") from None

    assert in_a_process(work) == (130, ANSWER)


def test_an_interrupt_that_falls_into_a_destructor_comes_again() -> None:
    class Falls:
        def __del__(self) -> None:
            kill_me()

    def work() -> None:
        found = Falls()
        del found
        signal.pause()

    assert in_a_process(work) == (130, ANSWER)


def test_memory_for_last_words_is_not_spoken_of() -> None:
    code = (
        "from lmprune.commands import interrupts\n"
        "class Falls:\n"
        "    def __init__(self, error): self.error = error\n"
        "    def __del__(self): raise self.error\n"
        "with interrupts.answered():\n"
        "    Falls(MemoryError()), Falls(KeyError())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0 and "KeyError" in ended.stderr and "MemoryError" not in ended.stderr


def test_an_import_is_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch aborts where it is; but who asks twice is heard."""
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.05)\n"
        "if os.environ.get('TWICE'): os.kill(os.getpid(), signal.SIGINT)\nos.write(2, b'there ')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def work() -> None:
        import slow_to_import  # type: ignore[import-not-found]  # noqa: F401

        signal.pause()

    assert in_a_process(work) == (130, f"there {ANSWER}")

    def both() -> None:
        try:
            work()
        finally:  # the second is there; the first, which waits, comes no more
            time.sleep(0.05)

    monkeypatch.setenv("TWICE", "yes")
    assert in_a_process(both) == (130, ANSWER)


def test_other_faults_stay_what_they_are() -> None:
    def work() -> None:
        raise KeyError("a")

    assert in_a_process(work) == (1, "KeyError('a')")
    assert in_a_process(lambda: sys.exit(2)) == (2, "")
    assert in_a_process(lambda: None) == (0, "")


def test_what_is_ignored_stays_ignored() -> None:
    def work() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with suppress(KeyboardInterrupt), interrupts.answered():
            os.kill(os.getpid(), signal.SIGINT)

    assert in_a_process(work) == (0, "")
