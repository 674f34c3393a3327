"""How long work tells how far it is: through callbacks, so that the library prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

#: (done, in all)
Progress = Callable[[int, int], None]
#: the name of a stage -> what is called as that stage goes on
Stages = Callable[[str], Progress | None]


def silent(_stage: str) -> None:
    """Stages without progress; notes that have been told before."""


class Teller(Protocol):
    """What a job needs of whoever called it: somewhere to say what goes on. On the command line the terminal."""

    def note(self, text: str) -> None:
        """What the user should know on the way."""
        ...

    def busy(self, what: str) -> AbstractContextManager[None]:
        """Something of unknown length goes on."""
        ...

    def stages(self) -> AbstractContextManager[Stages]:
        """Something whose stages are counted goes on."""
        ...

    def training(self, num_steps: int) -> AbstractContextManager[Callable[[int, int, Mapping[str, float]], None]]:
        """A training goes on: (step, steps, what is known: loss, keep ratio, perplexity)."""
        ...
