"""What pruning at once needs, as a whole and block by block, from the config alone; and a bound that it keeps to."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ..budget.budget import is_named, num_params
from ..budget.choosing import alike, choose, counts_of
from ..budget.costs import weight_costs
from ..budget.keeps import Keep
from ..budget.selection import Scope
from ..checkpoints import devices, dtypes, models
from ..checkpoints.shrinking import check_plan
from ..checkpoints.sources import resolve
from ..checkpoints.writing import resolved
from ..errors import UserError
from ..progress import Teller
from ..pruning import check_choice
from ..sites.find import find_sites
from ..sites.place import Place
from ..solve.duration import Work
from ..solve.memory import NOTHING, Memory, Shape, recovery
from ..solve.solver import Selection
from . import budgeting
from .asked import Asked

#: bytes of a text, its tokenizer, and what is imported for them
_TEXT = 150e6
_UNITS = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_UNITS |= {"kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40}


@dataclass(frozen=True)
class Needs:
    """Of one way to do it. base: bytes that the program itself has. number, saved: bytes of a parameter in memory, and
    in the result. before, after: parameters. held: beside the weights; None where that is not known. passes: whether
    the model is trained after the cut."""

    base: float
    shape: Shape
    saved: int
    before: int
    after: int
    held: Memory | None
    work: Work
    passes: bool = False

    @property
    def result(self) -> float:
        """Bytes of weights that are written."""
        return self.after * self.saved

    @property
    def peak(self) -> float | None:
        """Bytes at most."""
        return self._with(self.held and self.held.peak)

    @property
    def least(self) -> float | None:
        """Bytes without which it can't be done."""
        return self._with(self.held and self.held.least)

    def _with(self, held: float | None) -> float | None:
        if held is None:
            return None
        dense = self.shape.weights if self.passes else 0.0
        training = recovery(self.shape, self.after, self.work.seq_len) if self.passes else 0.0
        return self.base + max(dense + self.shape.weights + held, dense + training, self._saving)

    def room(self, bound: float | None) -> float | None:
        """Bytes of hidden states that fit beside all else into `bound`; None: all do. bound: no less than `least`."""
        if bound is None or self.peak is None or self.least is None or self.peak <= bound:
            return None
        return bound - self.least

    @property
    def disk(self) -> float | None:
        """Bytes beside the result, and of it, at most."""
        if self.held is None:
            return None
        blocks = self.result - self.shape.outside * self.saved
        return self.held.disk.most(self.result, blocks)

    def spilled(self, bound: float | None) -> float:
        """Bytes of hidden states that lie on the disk."""
        room = self.room(bound)
        return 0.0 if room is None or self.held is None else max(self.held.states - room, 0.0)

    @property
    def _saving(self) -> float:
        """While it is opened, and while it is written: what is beside the base."""
        shape, casts = self.shape, self.saved != self.shape.number
        if not shape.streamed:  # a file is made of a copy, and of another where it is another dtype
            return self.after * shape.number + self.after * self.saved * (1 + casts)
        outside = shape.outside * (shape.number + casts * self.saved)
        return outside + max(shape.blocks) * shape.number


def needs(asked: Asked, skeleton: Any) -> dict[str, Needs]:
    """By the way: "whole", in memory, and "streamed", block by block. skeleton: the model without weights."""
    kind = models.check_dtype(asked["dtype"])
    number = (skeleton.dtype if isinstance(kind, str) else kind).itemsize
    sites, keep, scope = to_choose(asked, skeleton)
    before, after = _parameters(asked, skeleton, sites, keep, scope)
    work = Work(sites, asked.calibration_tokens, asked["seq_len"], keep, asked["scope"] or asked.row.scope)
    saved = (asked.kind or dtypes.main(skeleton, None)).itemsize
    base = psutil.Process().memory_info().rss + (_TEXT if asked.calibrates else 0)
    solver, found = asked.row.solver_of(asked.kinds), dict[str, Needs]()
    for name in ("whole", "streamed"):
        shape = Shape.of(skeleton, sites, number=number, streamed=name == "streamed")
        held = solver.memory(work, shape) if asked.calibrates or asked.plan is None else NOTHING
        if name == "whole" or (asked.spec is None and not asked["recover"]):
            mapped = _mapped(asked["model"]) if shape.streamed else 0
            found[name] = Needs(base + mapped, shape, saved, before, after, held, work, bool(asked["recover"]))
    return found


def to_choose(asked: Asked, skeleton: Any) -> tuple[Sequence[Place], Keep, Scope]:
    """What is chosen from, how much of it stays, and in which scope. Raises: UserError where the shapes leave no such
    choice."""
    sites, keep = find_sites(skeleton, asked.kinds, asked.spec), asked["keep"]
    if asked.plan is not None:
        check_plan(asked.plan, sites)
        return sites, keep, "local"
    # with a target, what it leaves of every layer
    keep, scope = budgeting.uniform_share(asked, skeleton)
    scope = scope or asked.row.scope
    how: Selection = {"scope": scope, "multiple_of": asked["multiple_of"], "seed": asked["seed"]}
    check_choice(sites, keep, how, named=is_named(asked.budget))
    return sites, keep, scope


def _mapped(model: str) -> int:
    """Bytes of a GGUF file, which stays mapped into memory; the system takes them away where they are wanted."""
    found = resolve(model)
    return Path(str(found)).stat().st_size if found.gguf else 0


def _parameters(asked: Asked, skeleton: Any, sites: Sequence[Place], keep: Keep, scope: Scope) -> tuple[int, int]:
    """Of the model, before and after: of whole layers at most, under global scope about."""
    how, solver = {"multiple_of": asked["multiple_of"], "seed": asked["seed"]}, asked.row.solver_of(asked.kinds)
    if asked.plan is not None:
        counts = [len(asked.plan.kept[site.address]) for site in sites]
    elif scope == "global" and solver.by_parameters:
        counts = counts_of(sites, alike(sites), keep, **how)
    else:
        counts = [len(units) for units in choose(sites, alike(sites), keep, scope=scope, **how)]
    left = {site.address: count for site, count in zip(sites, counts, strict=True)}
    whole = [site for site in sites if site.address.kind == "layers"] or sites  # parts of layers may go with the same
    costs = weight_costs(whole, before := num_params(skeleton), adds_bias=solver.adds_bias)
    return before, int(costs.total({site.address: left[site.address] for site in whole}))


def parse_memory(text: str | None) -> float | None:
    """Bytes. Raises: UserError.

    >>> parse_memory("4GB"), parse_memory("1.5 GiB"), parse_memory("800mb")
    (4000000000.0, 1610612736.0, 800000000.0)
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b|)\s*", text.lower())
    if found is None or found[2] not in _UNITS or float(found[1]) == 0:
        raise UserError(f"--max-memory {text!r} is no amount of memory; expected something like 4GB or 800MB")
    return float(found[1]) * _UNITS[found[2]]


def bound_of(asked: Asked) -> float | None:
    """The bytes that `--max-memory` allows. Raises: UserError where nobody knows what is held."""
    if (bound := parse_memory(asked["max_memory"])) is None:
        return None
    if (device := devices.check_device(asked.how["device"])).type != "cpu":
        raise UserError(f"drop --max-memory, which bounds the processor's memory: hidden states are on {device}")
    if asked.budget is not None and asked.budget.by != "uniform":
        raise UserError(f"drop --max-memory: what --budget {asked.budget.by} holds is not known beforehand")
    return bound


def check_bound(asked: Asked, found: Needs, bound: float | None) -> None:
    """Raises: UserError where it is less than one block needs."""
    if bound is None:
        return
    if found.least is None:
        kinds = " and ".join(asked.kinds)
        raise UserError(f"drop --max-memory: what {asked.row.name} of {kinds} holds is not known beforehand")
    if found.least > bound:
        raise UserError(
            f"--max-memory {asked['max_memory']} is too little: {asked.row.name} needs {_told(found.least)} for one "
            f"block of {asked['model']} at a time, with all hidden states on the disk"
        )


def room_for_states(terminal: Teller, asked: Asked) -> float | None:
    """Bytes of hidden states that may be in memory, by what `--max-memory` leaves for them; None: all of them.

    Raises: UserError where it is less than one block needs, or the disk will not hold what is read block by block.
    """
    bound = bound_of(asked)
    searches = asked.budget is not None and asked.budget.by != "uniform"
    if not asked.how.get("stream") or searches or asked["max_ppl_ratio"] is not None:
        return None
    with terminal.busy(f"reading {asked['model']}"):
        skeleton = models.skeleton(asked["model"], trust_remote_code=asked["trust_remote_code"])
    found = needs(asked, skeleton)["streamed"]
    check_bound(asked, found, bound)
    spilled, there = found.spilled(bound), _size(asked.kept.path) if asked.kept is not None else 0
    _check_free("the result", asked["out"], (found.disk or found.result) - there, "choose another --out")
    _check_free("hidden states", Path(tempfile.gettempdir()), spilled, "set TMPDIR to a folder on another disk")
    if spilled > 0:
        terminal.note(f"{_told(spilled)} of hidden states will lie on the disk, as --max-memory asks")
    return found.room(bound)


def _check_free(what: str, place: Path, number: float, cure: str) -> None:
    """Raises: UserError where the disk does not hold so many bytes more."""
    if number > (free := free_at(place)):
        raise UserError(
            f"{what} will take {_told(number)} of the disk of {place}, where {_told(free)} is free; make room or {cure}"
        )


def free_at(place: Path) -> int:
    """Bytes, where something of that name will be written."""
    there = resolved(place)
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def _size(folder: Path) -> int:
    """Bytes of what an earlier run has left."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _told(number: float) -> str:
    """Three digits, and never less than it is."""
    size, unit = (1e9, "GB") if number >= 1e9 else (1e6, "MB")
    if not number:
        return f"0 {unit}"
    step = 10.0 ** (math.floor(math.log10(number / size)) - 2)
    return f"{math.ceil(number / size / step) * step:.3g} {unit}"
