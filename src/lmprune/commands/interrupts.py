"""Ctrl-C, and a polite kill, which is answered like it: from the first moment to the last, in a sentence.

While commands are imported nothing is begun, so the process just ends: imports that are interrupted say so each in its
own way. At work both are a KeyboardInterrupt, which everything that is half-written cleans up after.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CODE = 130  # the exit code that typer gives to Ctrl-C
SENTENCE = "interrupted; nothing was left half-written"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: seconds until an interrupt that was lost comes again
_SOON = 0.01

_heard = False


def end_at_once() -> None:
    """Until something is begun."""
    _answer(_end)


@contextmanager
def answered() -> Iterator[None]:
    """Around all work: however an interrupt comes out of it, it ends in the sentence and with CODE."""
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
        _say()
        sys.exit(CODE)
    finally:
        _answer(signal.SIG_DFL)  # Python ends, and has no traceback to show either


def _answer(handler: Any) -> None:
    """What a shell's background is told to ignore stays ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(*_: Any) -> None:
    _say()
    os._exit(CODE)


def _raise(*_: Any) -> None:
    global _heard
    _heard = True
    raise KeyboardInterrupt


def _say() -> None:
    os.write(2, f"error: {SENTENCE}\n".encode())


def _once_more(lost: Any) -> None:
    """An interrupt that fell into a destructor, or between a fork and its child, where Python drops exceptions."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, _SOON)
