"""Stands for Python where tests start `python -m lmprune …`: a process that has imported everything forks, which takes
a hundredth of the time. Anything else is handed to Python.

`serve(socket)` is that process; `client(folder)` writes the executable that asks it.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from select import select

CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys
words = sys.argv[1:]
if words[:2] != ["-m", "lmprune"]:
    os.execv({python!r}, [{python!r}, *words])
asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asked.connect({at!r})
question = json.dumps([words[2:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(asked, [question], [0, 1, 2])
pid = int(asked.recv(99))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(asked.recv(99) or -9)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -9 else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def client(folder: Path) -> Path:
    """The executable, which asks a server at `folder`/socket."""
    file = folder / "python"
    file.write_text(CLIENT.format(python=sys.executable, at=str(folder / "socket")))
    file.chmod(0o755)
    return file


def serve(at: Path) -> None:
    """Answer questions until the process that started this one ends."""
    from lmprune import commands, jobs
    from lmprune.study.children import end_with

    end_with(os.getppid())
    for package in (commands, jobs):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(at.with_name("new")))
    listener.listen()
    at.with_name("new").rename(at)  # who finds it can ask
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    while True:
        asked, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _answer(asked)
            os._exit(0)
        asked.close()


def _answer(asked: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    question, files, *_ = socket.recv_fds(asked, 1 << 20, 3)
    words, place, environment = json.loads(question)
    pid = os.fork()
    if pid == 0:
        asked.close()
        _become(words, place, environment, files)
    asked.send(str(pid).encode())
    ended = os.pidfd_open(pid)
    if ended not in select([asked, ended], [], [])[0]:  # who asked is gone
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(BrokenPipeError):
        asked.send(str(code).encode())


def _become(words: list[str], place: str, environment: dict[str, str], files: list[int]) -> None:
    """What `python -m lmprune` does, from here on."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["lmprune", *words]
    code = 1
    try:
        from tiny_checkpoints import as_many_threads

        from lmprune.commands.cli import main

        as_many_threads()
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
