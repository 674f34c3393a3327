"""What strangers wrote: models, tokenizers, plans, results. The one place where whatever goes wrong while such a thing
is read becomes a sentence that names it, and where reading is given an end."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError, one_line, shown

#: characters of a sentence at most
LONGEST = 399
#: bytes of what is read as text and as a whole: configs, plans, studies
_LARGEST = 64 * 2**20
_BEYOND = 10**18
#: a thread's stack is memory, too
_NO_STACK = "can't start new thread"
#: so is a library, and what other code makes of it that there is none
_NO_MAP = re.compile(
    "failed to map segment|[Cc]annot allocate memory|could not get source code|error return without exception set"
)
#: values that a YAML file may stand for, its aliases written out
_MOST_VALUES = 100_000


class _TooMuch(BaseException):
    """Work took more than it may; no library's `except Exception` should hide that."""


@contextmanager
def reading(
    what: object, cure: str = "", *, seconds: float | None = None, megabytes: int | None = None
) -> Iterator[None]:
    """Whatever is raised in the block comes out as a UserError of one line: `what`, the cause, and the `cure`.

    What a library may raise is not known beforehand: dataclasses, plain Exception, panics of Rust. Only a mistake of
    ours, an assertion in lmprune's own code, stays what it is.
    seconds: of the processor, after which it ends (in the main thread; not on Windows). megabytes: that may be taken on
    top (Linux).
    """
    try:
        with _ends(seconds), _room(megabytes):
            yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except UserError as error:
        if len(str(error)) <= LONGEST:
            raise
        raise type(error)(clipped(str(error))) from error
    except BaseException as error:
        if _is_ours(error):
            raise
        raise UserError(clipped(f"{what}: {reason(error)}{cure and f'; {cure}'}")) from error


def reason(error: BaseException) -> str:
    """What an exception says, in a clause."""
    while error.__cause__ is not None and type(error).__module__.startswith("huggingface_hub"):
        error = error.__cause__  # of a strict dataclass: which says what of the config is wrong
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if (told := out_of_memory(error)) is not None:
        return told
    if isinstance(error, _TooMuch):
        return f"it takes more {error} than it may"
    if isinstance(error, UnicodeDecodeError):
        return f"it is no UTF-8 text (byte {error.start})"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON ({error.msg}, line {error.lineno})"
    if isinstance(error, KeyError):
        return f"it has no {shown(error.args[0] if error.args else '')}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    return one_line(said.strip()) or type(error).__name__


def out_of_memory(error: BaseException) -> str | None:
    """What was needed, and what would help; None for any other error."""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ *\w+)", str(error))
    short = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and (asked or _NO_STACK in str(error)))
    if not (short or (isinstance(error, ImportError | OSError | SystemError) and _NO_MAP.search(str(error)))):
        return None
    more = f"{_in_gigabytes(asked[1])} more were asked for" if asked else "more was asked for"
    return (
        f"out of memory: {more}{_free()}; less is needed with "
        "--stream, --dtype bfloat16, or a smaller --seq-len, --batch-size or --calibration-tokens"
    )


def _free() -> str:
    """A clause on what is free; empty where there is not even room to ask."""
    try:
        import psutil  # not at the top: `--help` needs none of it

        return f", and {psutil.virtual_memory().available / 1e9:.1f} GB are free"
    except (MemoryError, ImportError, OSError):
        return ""


def _in_gigabytes(asked: str) -> str:
    number = asked.removesuffix("bytes").strip()
    return f"{int(number) / 1e9:.1f} GB" if number.isdecimal() else asked


def clipped(text: str) -> str:
    """At most LONGEST characters: the middle is left out, since files stand at the beginning and causes at the end."""
    text, half = one_line(text), LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"


# -- limits


@contextmanager
def _ends(seconds: float | None) -> Iterator[None]:
    """By the processor's time: a slow network, or another program, is not held against it."""
    in_main = threading.current_thread() is threading.main_thread()
    if seconds is None or not in_main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooMuch("time")

    before = signal.signal(signal.SIGVTALRM, stop)
    left = signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, *left)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _room(megabytes: int | None) -> Iterator[None]:
    if megabytes is None or sys.platform != "linux":
        yield
        return
    import resource  # which Windows has not

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    wanted = taken + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (wanted if soft == resource.RLIM_INFINITY else min(wanted, soft), hard))
    try:
        yield
    except MemoryError:
        raise _TooMuch("memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# -- text, JSON, YAML


def text_of(file: Path) -> str:
    """The content of a small file. Raises: what reading it does, UserError where it is no small one."""
    if file.stat().st_size > _LARGEST:
        raise UserError(f"{file} is larger than {_LARGEST >> 20} MB, which none of its kind is")
    return file.read_text(encoding="utf-8")


def json_of(text: str | bytes) -> Any:
    """A value whose numbers are numbers: NaN and Infinity are no JSON. Raises: ValueError, RecursionError."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    return json.loads(text, parse_constant=refuse)


def json_file(file: Path, amiss: str, cure: str = "") -> dict[str, Any]:
    """The object in a file. amiss: what it is where it holds none: "damaged". Raises: UserError."""
    with reading(f"{file} is {amiss}", cure):
        found = json_of(text_of(file))
        if not isinstance(found, dict):
            raise ValueError(f"it holds no object, but {type(found).__name__}")
        return found


def yaml_of(text: str) -> Any:
    """The node at the root of a YAML text (None where it is empty), which stands for no more than it seems to.

    Raises: UserError where aliases make much of little, and whatever yaml does.
    """
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and _size(root, {}) > _MOST_VALUES:
        raise UserError(f"its aliases stand for more than {_MOST_VALUES:,} values")
    return root


def _size(node: Any, known: dict[int, float]) -> float:
    """Values in a node, those behind aliases counted wherever they are named; infinite where one holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: so it is if we meet it again inside
        below = node.value if isinstance(node.value, list) else []
        parts = [part for each in below for part in (each if isinstance(each, tuple) else (each,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def finite(value: Any) -> bool:
    """Whether no number in plain values is NaN, infinite, or beyond all that anybody counts."""
    if isinstance(value, int | float):
        return abs(value) < _BEYOND if isinstance(value, int) else math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, list | tuple) else True


# -- what an object has to be like

NUMBER = (int, float)
#: hexadecimal digits
HEX = re.compile(r"[0-9a-f]+", re.IGNORECASE)


def misfit(value: Any, shape: Any, name: str = "") -> str | None:
    """The name of the first part of `value` that is not of the `shape`; None where all are. None is nothing amiss.

    shape: types; a pattern that a text has to match; [shape] for a list of such, none of them None; {name: shape} for
    an object, of which other fields don't matter; {str: shape} for one whose fields are all such.
    """
    if value is None:
        return None
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return name or "itself"
        known = dict.fromkeys(value, shape[str]) if str in shape else shape
        parts = ((f"{name}.{key}" if name else str(key), value.get(key), part) for key, part in known.items())
        return next((found for key, part, kind in parts if (found := misfit(part, kind, key))), None)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return name or "itself"
        right = all(part is not None and misfit(part, shape[0]) is None for part in value)
    elif isinstance(shape, re.Pattern):
        right = isinstance(value, str) and shape.fullmatch(value) is not None
    else:
        kinds: Sequence[type] = shape if isinstance(shape, tuple) else (shape,)
        right = isinstance(value, tuple(kinds)) and (bool in kinds or not isinstance(value, bool)) and finite(value)
    return None if right else name or "itself"


def _is_ours(error: BaseException) -> bool:
    """An assertion in lmprune's own code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return isinstance(error, AssertionError) and module.partition(".")[0] == "lmprune"
