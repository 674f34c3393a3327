"""Commands begun in processes of their own: as a user begins them, or forked from one that has imported everything.

A fork saves the seconds that imports take; from then on it is the same process: its own session, its own standard
streams, the handlers of signals that Python has, `lmprune.__main__`. What it begins itself (`lmprune study`) is forked,
too, with what Popen would close closed. A process may be told to die at its n-th change of the disk.
"""

from __future__ import annotations

import atexit
import importlib
import json
import multiprocessing.util
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmprune

#: what changes the disk, by the names of Python's audit events; `open` for writing beside
_CHANGES = frozenset(
    ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
)
#: in a command's folder, what a forked process tells at its end: changes of the disk, and modules that it imported
TOLD = ".told"
LOG = ".stderr"


@dataclass(frozen=True)
class How:
    """How a command is begun. limit: called in the process before all else. dies: (at this change of the disk, by
    this signal). meanwhile: (at this file that it opens, what happens then). stdout: a file to speak to. beside:
    another command is at work, and speaks to the same LOG."""

    limit: Callable[[], object] = lambda: None
    env: Mapping[str, str] = field(default_factory=dict)
    dies: tuple[int, int] | None = None
    meanwhile: tuple[int, Callable[[], object]] | None = None
    stdout: str = os.devnull
    beside: bool = False


AS_ALWAYS = How()


class Changes:
    """Counts changes of the disk, and files that are opened, in this process, not in those that it begins; and dies, or
    lets something happen, at one of them."""

    def __init__(self, how: How) -> None:
        self.seen, self.opened, self._pid = 0, 0, os.getpid()
        self._at, self._number = how.dies or (-1, 0)
        self._opening, self._happens = how.meanwhile or (-1, os.getpid)
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if (event != "open" and event not in _CHANGES) or os.getpid() != self._pid:
            return
        if event == "open":
            self.opened += 1
            if self.opened == self._opening:
                self._happens()
        if event != "open" or _writes(*arguments):
            self.seen += 1
            if self.seen == self._at:
                os.kill(self._pid, self._number)


def _writes(_: object, mode: object, flags: int) -> bool:
    return bool((isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR))


def import_all(names: Sequence[str] = ()) -> None:
    """All of lmprune, and modules by their names, so that no fork has to."""
    ours = [found.name for found in pkgutil.walk_packages(lmprune.__path__, "lmprune.")]
    for name in (*ours, *names):
        if name not in sys.modules and not name.endswith("__main__"):
            with suppress(Exception):
                importlib.import_module(name)


def forked(words: Sequence[str], folder: Path, how: How = AS_ALWAYS) -> int:
    """The id of a process that carries the command out in the folder; what it says on stderr is in LOG there."""
    if not how.beside:
        (folder / LOG).unlink(missing_ok=True)
    pid = os.fork()
    if pid:
        return pid
    with _no_way_back():
        os.setsid()
        os.chdir(folder)
        for name in ("1", "2"):
            target = how.stdout if name == "1" else LOG
            os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), int(name))
        os.environ.update(how.env)
        before = set(sys.modules)
        how.limit()
        code, changes = _command(words, how)
        told = {"changes": changes.seen, "opened": changes.opened, "modules": sorted(set(sys.modules) - before)}
        with suppress(OSError):
            (folder / TOLD).write_text(json.dumps(told))
        os._exit(code)
    raise AssertionError


class _no_way_back:
    """Whatever happens in a forked process, it does not go on with its parent's work."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        traceback.print_exc()
        os._exit(1)


def _command(words: Sequence[str], how: How = AS_ALWAYS) -> tuple[int, Changes]:
    """The exit code of `lmprune words…`, with all that Python does at the end of a process; and changes of the disk."""
    from lmprune.__main__ import main  # pyright: ignore[reportPrivateImportUsage]

    atexit._clear()  # what the parent does at its end
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = ["lmprune", *words]
    subprocess.Popen = Fork  # type: ignore[misc,assignment]
    changes = Changes(how)
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with suppress(AssertionError, RuntimeError):  # forked from a thread, which is no main one to Python
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return code, changes


_real = subprocess.Popen


class Fork:
    """A command that a command begins, where it would be Popen([python, "-m", "lmprune", …]); all else is a Popen."""

    def __new__(cls, line: Sequence[Any], *arguments: Any, **how: Any) -> Any:
        if list(line[:3]) != [sys.executable, "-m", "lmprune"]:
            return _real(line, *arguments, **how)
        return super().__new__(cls)

    def __init__(
        self, line: Sequence[str], *, stdout: int, preexec_fn: Callable[[], object], stderr: Any = None,
        env: Mapping[str, str] | None = None, cwd: Any = None,
    ) -> None:  # fmt: skip
        assert stdout == subprocess.PIPE
        reads, writes = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            with _no_way_back():
                preexec_fn()
                os.dup2(writes, 1)
                if stderr is not None:
                    os.dup2(stderr.fileno(), 2)
                os.closerange(3, 4096)
                if env is not None:
                    os.environ.update(env)
                os.chdir(cwd or ".")
                os._exit(_command(line[3:])[0])
        os.close(writes)
        self.stdout = os.fdopen(reads, "rb")

    def communicate(self) -> tuple[bytes, None]:
        out = self.stdout.read()
        self.wait()
        return out, None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def terminate(self) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


def fresh(words: Sequence[str], folder: Path, how: How = AS_ALWAYS) -> int:
    """The same in a new Python, as a user begins it."""
    with (folder / LOG).open("wb") as log, Path(how.stdout).open("wb") as out:

        def before() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores Ctrl-C
            how.limit()

        line = [sys.executable, "-m", "lmprune", *words]
        environment = {**os.environ, **how.env}
        child = _real(
            line, cwd=folder, env=environment, stdout=out, stderr=log, preexec_fn=before, start_new_session=True
        )
        child.returncode = 0  # so that it is not waited for elsewhere
        return child.pid


def ended(pid: int, seconds: float = 300.0) -> int:
    """The exit code of such a process; one that takes longer is killed, and counts as killed."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end += seconds
        time.sleep(0.005)


def living(session: int) -> list[int]:
    """Processes of a session."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = place.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(place.parent.name))
    return found


def outlived(session: int, seconds: float = 10.0) -> list[int]:
    """Those that are still there after a while, which are killed then."""
    end = time.monotonic() + seconds
    while (found := living(session)) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found
