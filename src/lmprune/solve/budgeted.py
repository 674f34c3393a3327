"""How many units each site keeps where a budget is spread by search: levels of the dense model, levels on the prefix
that they lead to, a search among these.

The units themselves are then chosen and refitted anew, block by block, on what the pruned blocks before really put out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..budget.budget import Spending
from ..budget.choosing import floors, least_for, multiple_for
from ..budget.levels import Choice, Choices, grid
from ..budget.search import SEARCHES, Course, least, ranking
from ..checkpoints.fingerprint import tensors_fingerprint
from ..checkpoints.journal import journal_of
from ..checkpoints.rooms import scratch
from ..checkpoints.shelf import Tensors
from ..progress import Stages, silent
from ..sites.pages import here
from ..sites.site import Site
from ..sites.walk import list_of
from .database import Database
from .second_look import SECOND_LOOK, Look, heads_of, mixed
from .stitched import DenseEnds, Stitched, as_before
from .trials import Tryout, check_tunes
from .walks import Probe, problems

#: levels that a site of many units has
_LEVELS = 32
#: sequences that choices are judged on: at first, and of those that are left
_AMOUNTS = (2, 4, 8)
#: the second look at the ranking in which every layer keeps something
_WITH_SOME = "a second look where nothing is gone"
#: what a search's log says of choices that were cut for a try
RANKED, SEARCHED = "ranking, cut", "search, cut"


@dataclass(frozen=True)
class Spread:
    """counts: units left of each site. log: the search's course, empty where nothing was searched."""

    counts: list[int]
    log: list[dict[str, Any]]

    def kept(self) -> dict[str, Tensor]:
        """As a run keeps it that may go on."""
        log = json.dumps(self.log).encode()
        return {"counts": torch.tensor(self.counts), "log": torch.tensor([*log], dtype=torch.uint8)}

    @classmethod
    def of(cls, kept: Tensors) -> Spread:
        return cls(kept["counts"].tolist(), json.loads(bytes(kept["log"].tolist())))


@dataclass(frozen=True)
class Walk(Probe):
    """What levels are measured on."""

    def about(self, counts: Sequence[int] | None) -> dict[str, Any]:
        """What the levels depend on."""
        shapes = {str(site.address): [site.count, site.size] for site in self.sites}
        settings = {**asdict(self.settings), "seed": self.seed, "gone": [bool(site.leaves) for site in self.sites]}
        return {"digest": self.digest, "shapes": shapes, "settings": settings, "counts": counts}

    @cached_property
    def digest(self) -> str:
        """Of the text and of every weight: a layer's errors depend on all before it, and by the end loss on all."""
        blocks = list_of(self.model, self.sites[0].block)
        inside = {id(tensor) for block in blocks for tensor in block.state_dict(keep_vars=True).values()}
        named = self.model.state_dict(keep_vars=True).items()
        rest = {name: tensor for name, tensor in named if id(tensor) not in inside}
        found = hashlib.sha256(tensors_fingerprint({**rest, "input_ids": self.input_ids}).encode())
        for block in blocks:
            here(block)
            found.update(tensors_fingerprint(block.state_dict()).encode())
        return found.hexdigest()

    @torch.no_grad()
    def fill(self, database: Database, counts: Sequence[int] | None, stages: Stages) -> None:
        """All sites, each behind a prefix of sites cut to `counts`; None = dense. The model is left as it was."""
        until = dict(zip([site.address for site in self.sites], counts or [], strict=False))
        settings = self.settings if counts else replace(self.settings, sequential=False)
        name = "levels on the pruned prefix" if counts else "levels of the dense model"
        walk = problems(self.model, self.sites, self.input_ids, settings, stages(name), known=database)
        with as_before(self.sites):
            for site, problem in walk:
                at = site.address
                if at not in database:
                    database.put(site, problem, self.gone(site, problem, until=0 if site.leaves else 1))
                if at in until:
                    levels = database.levels(at, (site.count, until[at]))
                    site.set_reader(*database.reader(levels, until[at]))
                del problem  # before the next is stated


@torch.no_grad()
def spread(walk: Walk, spending: Spending, judged: Tensor, *, multiple_of: int = 1, stages: Stages = silent) -> Spread:
    """How many units of each site stay; the model is left as it was. judged: sequences that choices are judged on."""
    sites = walk.sites
    if spending.effort.tune:
        check_tunes(walk.model)
    fewest = floors(sites, multiple_of)
    grids = {site.address: _grid(site, multiple_of, fewest[site.address]) for site in sites}
    with _room(spending.levels, walk.model) as room:

        def choices_on(counts: Sequence[int] | None) -> tuple[Choices, Database]:
            prefix = hashlib.sha256(repr(counts).encode()).hexdigest()[:12]
            database = Database(room / (f"prefix-{prefix}" if counts else "dense"), walk.about(counts))
            walk.fill(database, counts, stages)
            levels = [database.levels(site.address, grids[site.address]) for site in sites]
            return Choices.of(levels, spending.costs, spending.most), database

        choices, _ = choices_on(None)
        start = ranked(walk, choices, stages)
        if 0 in choices.counts(start) and (some := choices.with_some()):
            trial = Tryout(walk, DenseEnds(walk.model, sites, judged), None, 0, stages)
            tried = [start, ranked(walk, some, stages, _WITH_SOME)]
            start = min(tried, key=lambda choice: trial.losses(choices.counts(choice))["loss"])
        if spending.by not in SEARCHES:
            return Spread(choices.counts(start), [])
        ends = DenseEnds(walk.model, sites, judged)
        choices, database = choices_on(choices.counts(start))
        amounts = [amount for amount in _AMOUNTS if amount <= len(judged)] or [len(judged)]
        judge = Stitched(walk.model, sites, choices.levels, database, ends, amounts)
        course = Course(judge, spending.effort, spending.note, stages("searching"))
        with as_before(sites):
            course.offer(start, "ranking")
            SEARCHES[spending.by](choices, course)
        course.told(spending.effort.turns)
        best, lines = survivor(walk, choices, start, course, ends, stages)
        return Spread(choices.counts(best), [*course.log, *lines])


def survivor(
    walk: Walk, choices: Choices, start: Choice, course: Course, ends: DenseEnds, stages: Stages
) -> tuple[Choice, list[dict[str, Any]]]:
    """Of the ranking and the search's best choices, the one that is nearest to the dense model when it is really cut,
    and trained where that is asked for; and a line for each that was tried."""
    tried = list(dict.fromkeys([start, *course.survivors()]))
    if len(tried) == 1:
        return start, []
    passes = course.effort.tune
    trained = DenseEnds(walk.model, walk.sites, walk.input_ids) if passes else None
    trial = Tryout(walk, ends, trained, passes, stages)
    found = {choice: trial.losses(choices.counts(choice)) for choice in tried}
    best = min(tried, key=lambda choice: found[choice].get("tuned", found[choice]["loss"]))
    if best == start:
        course.note("really cut, what the search found is no nearer to the dense model: the ranking stays")
    return best, [{"by": RANKED if choice == start else SEARCHED, **losses} for choice, losses in found.items()]


def ranked(walk: Walk, choices: Choices, stages: Stages, look: str = SECOND_LOOK) -> Choice:
    """The ranking by errors; where heads share it, by what they cost the cut model. look: what that walk is called."""
    start = ranking(choices)
    return looked_again(walk, choices, start, stages, look) if mixed(walk.sites) else start


def looked_again(walk: Walk, choices: Choices, start: Choice, stages: Stages, name: str) -> Choice:
    """The ranking where heads cost what they cost the cut model; no more of them go, see `second_look`."""
    look = Look(walk.model, walk.sites, walk.input_ids, walk.metrics, walk.settings, walk.seed, stages, name)
    spent = [errors[level] for errors, level in zip(choices.errors, start, strict=True)]
    if not (times := look.times(choices.counts(start), spent)):
        return start
    heads = heads_of(walk.sites)
    known = [
        levels.dearer(times.get(place, 1.0), start[place]) if place in heads else levels
        for place, levels in enumerate(choices.levels)
    ]
    return least(choices, [levels.errors for levels in known], start)


@contextmanager
def _room(levels: Path | None, model: Any) -> Iterator[Path]:
    """Where the database is: the folder that was named, that of the run, which may go on, or one that vanishes."""
    if levels is None and (journal := journal_of(model)) is not None:
        levels = journal.folder / "levels"
    if levels is not None:
        yield levels
        return
    with scratch("levels") as room:
        yield room


def _grid(site: Site, multiple_of: int, fewest: int) -> tuple[int, ...]:
    """The numbers of units that a site may keep: multiples of `multiple_of`, about `_LEVELS` of them; then `fewest`."""
    multiple = multiple_for(site.address.kind, multiple_of)
    step = multiple * max(round(site.count / multiple / _LEVELS), 1)
    counts = grid(site.count, step=step, least=least_for(site, multiple_of))
    return counts if fewest in counts else (*counts, fewest)


def shares(input_ids: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Sequences that levels are made of, and others, where there are enough, that choices are judged on."""
    number = max(min(tokens // input_ids.shape[1], len(input_ids) - _AMOUNTS[-1]), 1)
    return input_ids[:number], input_ids[number:][: _AMOUNTS[-1]] if len(input_ids) > number else input_ids
