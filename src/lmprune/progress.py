"""How long work tells how far it is: through callbacks, so that the library prints nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

#: (done, in all)
Progress = Callable[[int, int], None]
#: the name of a stage -> what is called as that stage goes on
Stages = Callable[[str], Progress | None]


def silent(_stage: str) -> None:
    """Stages without progress; notes that have been told before."""


@dataclass(frozen=True)
class Phase:
    """A stage that is to come, by its name, and what it is expected to take."""

    name: str
    seconds: float


@dataclass
class Clock:
    """How far all phases together are, and how long the rest takes: by what was expected, put right on the way.

    Stages that nobody expected do not count.
    """

    phases: Sequence[Phase]
    now: Callable[[], float] = time.perf_counter
    _share: dict[str, float] = field(default_factory=dict)
    _begun: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = self.now()

    def begin(self, name: str) -> None:
        self._begun[name] = self.now()

    def update(self, name: str, done: int, total: int) -> None:
        self._share[name] = done / total if total else 1.0

    @property
    def share(self) -> float:
        """Of the time expected in all."""
        return self._done() / (self._expected() or 1.0)

    @property
    def seconds_left(self) -> float:
        """A phase that is well under way goes on as it went; the others take what was expected, as much longer as those
        before did."""
        pace = self._pace()
        return sum(self._left(phase, pace) for phase in self.phases)

    def _left(self, phase: Phase, pace: float) -> float:
        share = self._share.get(phase.name, 0.0)
        if share >= 1.0:
            return 0.0
        gone = self.now() - self._begun.get(phase.name, self.now())
        if share >= _TELLING:
            return gone * (1 - share) / share
        return max(phase.seconds * pace - gone, phase.seconds * pace * _TELLING)

    def _pace(self) -> float:
        """Seconds that a second took so far; the expectation counts as if a tenth of it had come true."""
        prior = 0.1 * self._expected()
        done = self._done() + prior
        return (self.now() - self.start + prior) / done if done else 1.0

    def _done(self) -> float:
        return sum(phase.seconds * self._share.get(phase.name, 0.0) for phase in self.phases)

    def _expected(self) -> float:
        return sum(phase.seconds for phase in self.phases)


#: from this share of a phase on, its own pace tells more than what was expected
_TELLING = 0.1


def duration(seconds: float) -> str:
    """For people: 40 s, 3 min, 2 h 20 min.

    >>> duration(39.6), duration(200), duration(8400)
    ('40 s', '3 min', '2 h 20 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Teller(Protocol):
    """What a job needs of whoever called it: somewhere to say what goes on. On the command line the terminal."""

    def note(self, text: str) -> None:
        """What the user should know on the way."""
        ...

    def busy(self, what: str) -> AbstractContextManager[None]:
        """Something of unknown length goes on."""
        ...

    def stages(self, phases: Sequence[Phase] = ()) -> AbstractContextManager[Stages]:
        """Something whose stages are counted goes on; phases: those that are expected, and how long they take."""
        ...

    def training(self, num_steps: int) -> AbstractContextManager[Callable[[int, int, Mapping[str, float]], None]]:
        """A training goes on: (step, steps, what is known: loss, keep ratio, perplexity)."""
        ...
