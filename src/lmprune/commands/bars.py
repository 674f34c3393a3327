"""Bars that tell how far long work is, and how long it still takes; where there is no terminal, a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..progress import Clock, Phase, Stages, duration

#: what a training run tells, and how
_KNOWN = {"loss": ".3f", "keep": ".3f", "perplexity": ",.2f"}
_IN_ALL = "in all"
_MINUTE = 60.0


class _Count(ProgressColumn):
    """done/total, or the share where parts are of different lengths."""

    def render(self, task: Task) -> Text:
        if task.description == _IN_ALL:
            return Text(f"{task.completed:.0%}", justify="right")
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}", justify="right")


class _Left(ProgressColumn):
    """By the clock of all phases, or at the pace of the task so far, however long a step of it takes."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        if left is None and task.completed and task.total:
            gone = task.finished_time if task.finished else task.elapsed
            left = (gone or 0.0) * (task.total - task.completed) / task.completed
        return Text("" if left is None or task.finished else f"{duration(left)} left", style="progress.remaining")


class _Minutes:
    """Says a line a minute where nobody sees a bar."""

    def __init__(self, console: Console, now: Callable[[], float] = time.perf_counter):
        self._console, self._now = console, now
        self.start = self._told = now()

    def tell(self, what: str, done: int, total: int, left: float | None, known: str = "") -> None:
        now = self._now()
        if self._console.is_terminal or now - self._told < _MINUTE:
            return
        self._told = now
        rest = "" if left is None else f", about {duration(left)} left"
        line = f"{what}: {done} of {total}{known and f' ({known})'}, {duration(now - self.start)} gone{rest}"
        self._console.print(escape(line), soft_wrap=True)


@contextmanager
def stages(console: Console, phases: Sequence[Phase]) -> Iterator[Stages]:
    """A bar for each stage that is begun in the `with` block, and above them one for all of them, where it is known
    what is to come: name -> (done, in all) -> None."""
    clock, minutes = Clock(phases), _Minutes(console)
    with _bars(console) as bars:
        whole = bars.add_task(_IN_ALL, total=1.0, left=clock.seconds_left) if phases else None

        def stage(name: str) -> Callable[[int, int], None]:
            task, start = bars.add_task(name, total=None), time.perf_counter()
            clock.begin(name)

            def update(done: int, total: int) -> None:
                clock.update(name, done, total)
                bars.update(task, completed=done, total=total)
                if whole is not None:
                    bars.update(whole, completed=clock.share, left=clock.seconds_left)
                at_this_pace = (time.perf_counter() - start) * (total - done) / done if done else None
                minutes.tell(name, done, total, clock.seconds_left if phases else at_this_pace)

            return update

        yield stage


@contextmanager
def training(console: Console, num_steps: int) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """A bar for the steps of a training run, with what is known on the way: loss, keep ratio, perplexity."""
    minutes = _Minutes(console)
    with _bars(console, TextColumn("{task.fields[known]}")) as bars:
        task = bars.add_task("training", total=num_steps, known="")

        def report(done: int, total: int, known: Mapping[str, float]) -> None:
            told = ", ".join(f"{name} {known[name]:{form}}" for name, form in _KNOWN.items() if name in known)
            bars.update(task, completed=done, total=total, known=told)
            gone = time.perf_counter() - minutes.start
            minutes.tell("training", done, total, gone * (total - done) / done if done else None, told)

        yield report


def _bars(console: Console, *more: ProgressColumn) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), _Count(), *more, TimeElapsedColumn())
    return Progress(*columns, _Left(), console=console)
