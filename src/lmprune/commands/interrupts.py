"""Ctrl-C, and a polite kill, which is answered like it: from the first moment to the last, in a sentence.

While commands are imported nothing is begun, so the process just ends: imports that are interrupted say so each in its
own way. At work both are a KeyboardInterrupt, which everything that is half-written cleans up after; it waits until
what is just being imported is there, since libraries with a native half may abort when they are interrupted then.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

CODE = 130  # the exit code that typer gives to Ctrl-C
SENTENCE = "interrupted; nothing was left half-written"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: seconds until an interrupt that was lost, or has to wait, comes again
_SOON = 0.01
#: the longest that an import is waited for, in seconds
_PATIENCE = 30.0

#: whether one was heard, and has to wait; until when at most
_heard, _waits, _until = False, False, 0.0


def end_at_once() -> None:
    """Until something is begun."""
    _answer(_end)


@contextmanager
def answered() -> Iterator[None]:
    """Around all work: however an interrupt comes out of it, it ends in the sentence and with CODE."""
    global _waits
    sys.unraisablehook = _once_more
    _answer(_raise)
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if not (_heard or isinstance(error, KeyboardInterrupt)):
            raise
        _answer(signal.SIG_IGN)
        exec("")  # or Python ends by SIGINT where the interrupt came through an `eval` (of a type hint, say)
        _say()
        sys.exit(CODE)
    finally:
        _waits = False  # too late
        _answer(signal.SIG_DFL)  # Python ends, and has no traceback to show either


def _answer(handler: Any) -> None:
    """What a shell's background is told to ignore stays ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(*_: Any) -> None:
    _say()
    os._exit(CODE)


def _raise(number: int, frame: FrameType | None) -> None:
    global _heard, _waits, _until
    if number == signal.SIGALRM and not _waits:
        return  # it was quicker another way
    if not _heard:
        _heard, _until = True, time.monotonic() + _PATIENCE
    elif number != signal.SIGALRM:
        _until = 0.0  # who asks twice wants it now
    if _imports(frame) and time.monotonic() < _until:
        _come_again()
        return
    _waits = False
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is just being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _come_again() -> None:
    global _waits
    _waits = True
    signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, _SOON)


def _say() -> None:
    os.write(2, f"error: {SENTENCE}\n".encode())


def _once_more(lost: Any) -> None:
    """An interrupt that fell into a destructor, or between a fork and its child, where Python drops exceptions.

    Memory that a library's last words would need is not spoken of again: that there is none has been said.
    """
    if issubclass(lost.exc_type, MemoryError):
        return
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    _come_again()
