"""What is worked out of a model whose blocks are in files, in files too: large things lie there until they are used,
and a run that was stopped goes on from what was done of each of its walks along the blocks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..progress import silent
from ..sites.pages import Read, pages_of
from .fingerprint import tensors_fingerprint
from .shelf import SUFFIX, Shelf, Tensors

_NOTHING: Tensors = {}


class Stage:
    """A walk along the blocks, a step each.

    found: what is found on the way, by name. done: how many of the steps an earlier run made. state: what entered the
    step after them; empty before the first.
    """

    def __init__(self, found: MutableMapping[str, Tensors], states: Shelf | None, note: Callable[[str], None] = silent):
        self.found, self._states = found, states
        self.done, self.state = 0, _NOTHING
        for step in sorted(map(int, states or ()), reverse=True):
            assert states is not None
            try:
                self.state, self.done = states[str(step)], step
                break
            except UserError as error:
                note(f"the state after block {step} is damaged ({error}), and the one before it used")
                del states[str(step)]

    @property
    def lasts(self) -> bool:
        """Whether a later run goes on from it."""
        return self._states is not None

    def end(self, state: Callable[[], Tensors]) -> None:
        """A step has been made, and all that was found in it is there. state: what enters the next, where it lasts."""
        self.done, self.state = self.done + 1, _NOTHING
        if self._states is not None:
            self._states[str(self.done)] = state()
            del self._states[str(self.done - 2)]  # the last but one stays, for where the last is damaged


class Journal:
    """All walks of a run. folder: is the run's own. note: is told of states that were damaged."""

    def __init__(self, folder: Path, note: Callable[[str], None] = silent):
        self.folder, self._note = folder, note
        self._begun, self._names = Shelf(folder / "begun", lasting=True), set[str]()
        self._known: set[str] = set()

    @property
    def empty(self) -> bool:
        """Whether a later run would find nothing to go on from."""
        return not any(self.folder.glob(f"*/states/*{SUFFIX}"))

    def stage(self, name: str) -> Stage:
        """The walk of that name, of which a run has one."""
        assert name not in self._names, f"a second walk is called {name}"
        self._names.add(name)
        found, states = (Shelf(self.folder / name / part, lasting=True) for part in ("found", "states"))
        return Stage(found, states, self._note)

    def check(self, what: str, tensors: Tensors, part: str = "all") -> None:
        """A run goes on with what it began with. what: it is, such as the text; part: of it.

        Raises: UserError where it is another than before, or nobody can tell any more.
        """
        if (key := f"{what}.{part}") in self._known:
            return
        self._known.add(key)
        digest = torch.tensor([*bytes.fromhex(tensors_fingerprint(tensors))], dtype=torch.uint8)
        if not self._begun.has(key):
            self._begun[key] = {"sha256": digest}
        elif not torch.equal(self._begun[key]["sha256"], digest):
            raise UserError(
                f"the run in {self.folder} began with another {what}, which has changed since under the same "
                "name; put it back, or begin again with --force"
            )

    def checking(self, read: Read) -> Read:
        """`read`, and what it reads is the same as before, for as much as walks have used of it."""

        def looked_at(path: str) -> Tensors:
            tensors = read(path)
            if self._names:
                self.check("model", tensors, path)
            return tensors

        return looked_at


_JOURNALS: weakref.WeakKeyDictionary[Any, Journal] = weakref.WeakKeyDictionary()


def keep(model: Any, journal: Journal) -> None:
    """What is worked out of a model whose blocks are in files is kept from now on."""
    pages = pages_of(model)
    assert pages is not None, "the model is in memory as a whole"
    pages.read = journal.checking(pages.read)
    _JOURNALS[model] = journal


def journal_of(model: Any) -> Journal | None:
    return _JOURNALS.get(model)


def stage_of(model: Any, name: str) -> Stage:
    """A walk along the model's blocks: what is found is kept where the model has a journal; among temporary files where
    it has none, and its blocks are in files; in memory where the model is."""
    if (journal := _JOURNALS.get(model)) is not None:
        return journal.stage(name)
    return Stage({} if pages_of(model) is None else Shelf.for_now(name), None)
