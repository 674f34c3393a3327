"""How a command talks: its result to stdout, as text or as one JSON object; everything else to stderr."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from ..errors import Finished, Interrupted, SaidBefore, UserError, shown, spelt_out
from ..foreign import clipped, out_of_memory
from ..progress import Phase, Stages
from . import bars, interrupts

#: what a command shows: tables, and texts that are printed as they are
Views = list[RenderableType | str]

#: in JSON, characters that some terminals obey, and halves of characters
_UNSHOWN = re.compile("[\x7f-\x9f\ud800-\udfff]")

#: integers from here on are no numbers of anything, and no floating-point ones
_BEYOND = 2**53

#: what says that a disk is full, or broken, or that a process may not have more files, or larger ones
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}


class Terminal:
    """One command's way to the outside."""

    def __init__(self, *, as_json: bool):
        self._as_json = as_json
        self._stdout = sys.stdout
        # under torchrun every process runs the command, and the first one speaks
        self.silent = os.environ.get("RANK", "0") != "0"
        self._stderr = Console(stderr=True, highlight=False, emoji=False, quiet=self.silent)

    def note(self, text: str) -> None:
        """What the user should know on the way, on stderr."""
        self._stderr.print(_plain(text), soft_wrap=True)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Something of unknown length goes on."""
        with self._stderr.status(f"{_plain(what)} …"):
            yield

    def stages(self, phases: Sequence[Phase] = ()) -> AbstractContextManager[Stages]:
        """A bar for each stage that is begun in the `with` block: name -> (done, in all) -> None."""
        return bars.stages(self._stderr, phases)

    def training(self, num_steps: int) -> AbstractContextManager[Callable[[int, int, Mapping[str, float]], None]]:
        """A bar for the steps of a training run, with what is known on the way: loss, keep ratio, perplexity."""
        return bars.training(self._stderr, num_steps)

    def write(self, text: str) -> None:
        """What is said on stdout as it comes, to people only."""
        if not (self._as_json or self.silent):
            self._stdout.write(spelt_out(text, keep="\n\t"))
            self._stdout.flush()

    def result(self, record: dict[str, Any], *views: RenderableType | str) -> None:
        """What the command found out. views: the same for people; a text is printed as it is, whatever the width."""
        if self.silent:
            return
        try:
            self._tell(record, views)
        except (BrokenPipeError, SystemExit):  # which rich makes of it
            _stop_talking()
            raise UserError("nobody hears the result: stdout was closed; what was to be written is written") from None

    def _tell(self, record: Mapping[str, Any], views: Sequence[RenderableType | str]) -> None:
        if self._as_json:
            told = json.dumps(record, allow_nan=False, ensure_ascii=False)
            print(_UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", told), file=self._stdout, flush=True)
            return
        console = Console(file=self._stdout, highlight=False, emoji=False)
        for view in views:
            console.print(_plain(view) if isinstance(view, str) else view, soft_wrap=isinstance(view, str))
        self._stdout.flush()


@contextmanager
def talking(as_json: bool, out: Path | None = None) -> Iterator[Terminal]:
    """The Terminal of one command; with JSON, nothing that a library prints gets between.

    out: what the command is to write, for which no other works meanwhile.
    """
    from ..checkpoints.writing import claimed

    terminal = Terminal(as_json=as_json)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        try:
            with claimed(out) if out is not None and not terminal.silent else nullcontext():
                yield terminal
        except Finished as done:
            from ..checkpoints.begun import PRUNING, TRAINING, forget

            forget(Path(done.out), TRAINING, PRUNING)
            terminal.result({"out": done.out, "finished": True}, str(done))


class Command(TyperCommand):
    """A number that nothing counts is refused before anything computes with it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if isinstance(value, int) and abs(value) >= _BEYOND:
                raise UserError(f"--{name.replace('_', '-')} is {shown(value)}, more than anybody counts")
        return rest


class CommandGroup(TyperGroup):
    """Whatever the user did wrong comes out as one sentence on stderr, and exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except SaidBefore as error:
            Console(stderr=True, highlight=False, emoji=False).print(_plain(str(error)), soft_wrap=True)
            sys.exit(error.code)
        except Exception as error:
            if (sentence := explain(error)) is None:
                raise
            complain(sentence)
            sys.exit(interrupts.CODE if isinstance(error, Interrupted) else 2)
        if code == interrupts.CODE:
            complain(interrupts.SENTENCE)
        sys.exit(code)


def explain(error: Exception) -> str | None:
    """What the user should hear; None for a fault of ours, which deserves its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if (told := out_of_memory(error)) is not None:
        return told
    if (told := _of_the_disk(error)) is not None:
        return told
    if (wrong_usage := getattr(error, "format_message", None)) is None:  # what typer's own errors have
        return None
    context = getattr(error, "ctx", None)
    return f"{wrong_usage()} (see {context.command_path if context else 'lmprune'} --help)"


def _of_the_disk(error: Exception) -> str | None:
    """For what a disk refuses, or a limit on files, wherever, and for a path that can't be used; safetensors has an
    exception of its own for the first."""
    number = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    code = int(number[1]) if number else getattr(error, "errno", None) if isinstance(error, OSError) else None
    place = getattr(error, "filename", None)
    if code in _DISK:
        place = place or f"what it writes, or keeps in {tempfile.gettempdir()} meanwhile"
        return f"{os.strerror(code)}: {place}; make room, or raise the limit, and run it again"
    if code is None or not isinstance(place, str | bytes | os.PathLike):
        return None
    return f"{os.strerror(code)}: {os.fsdecode(place)}; name another, or mend that, and run it again"


def _stop_talking() -> None:
    """Python would try once more when it ends, and complain itself."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(sentence: str) -> None:
    """One line on stderr, that anybody reads to its end, however long a name in it is."""
    line = escape(clipped(sentence))
    Console(stderr=True, highlight=False, emoji=False).print(f"[bold red]error:[/] {line}", soft_wrap=True)


def _plain(text: str) -> str:
    """As it is: neither rich nor a terminal takes any of it for an order."""
    return escape(spelt_out(text, keep="\n\t"))


#: words up to so long stand in one line of a cell, where there is room for that
_WORD = 18


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> Table:
    """A header (unless all its names are empty) and rows. numbers: all columns but the first stand to the right."""
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=any(columns))
    for position, name in enumerate(columns):
        words = [word for row in rows for word in row[position].split()]
        found.add_column(
            _plain(name), justify="right" if numbers and position else "left", overflow="fold",
            min_width=min(max(map(len, words), default=0), _WORD),
        )  # fmt: skip
    for row in rows:
        found.add_row(*map(_plain, row))
    return found


def next_commands(lines: Iterable[Sequence[str]]) -> str:
    """What to type next, arguments after `lmprune`, so that it works when it is copied: this very program, quoted."""
    return "\n".join(["", "Try next:", *(f"  {program()} {shlex.join(line)}" for line in lines)])


def program() -> str:
    """How the running program is called from here."""
    this = Path(sys.argv[0])
    if this.name != "lmprune":
        return f"{shlex.quote(sys.executable)} -m lmprune"
    found = shutil.which("lmprune")
    if found is not None and Path(found).resolve() == this.resolve():
        return "lmprune"
    return shlex.quote(str(this))
