"""What `lmprune latency` does: the seconds of a model as its layers shrink, measured in one engine on this machine.

Whole models are measured, cut alike in all layers, each in turn with the uncut one, so that a busy moment hits both; a
layer's share of what they gain is taken to be the same wherever it is.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..budget.choosing import floors, kinds_of, least_for, multiple_for
from ..budget.keeps import parse_units
from ..budget.selection import num_kept
from ..budget.timing import TABLE_FORMAT, LatencyTable, Timing, sizes_of
from ..checkpoints import checkpoint, dtypes, models
from ..checkpoints.rooms import scratch
from ..checkpoints.shrinking import shrink
from ..checkpoints.writing import Destination, begins, check_file, written_aside
from ..errors import UserError
from ..evaluation.engines import ENGINES
from ..evaluation.workers import Worker
from ..plan import PrunePlan
from ..progress import Teller
from ..sites.address import Kind
from ..sites.families import FFNSpec, parse_spec
from ..sites.find import find_sites
from ..sites.limits import check_room, max_context
from ..sites.place import Place
from .bench import Seconds, check_engine, exported, interleaved

#: shares of the units at which a model is measured; where units are few, every number of them is
_SHARES = (0.75, 0.5, 0.25)
_FEW = 6
#: of the whole model's time, whatever was measured: no time is negative
_NEVER_LESS = 1e-3


@dataclass(frozen=True)
class Setting:
    """What the seconds depend on beside the model."""

    engine: str
    threads: int
    batch: int
    prompt_tokens: int
    new_tokens: int
    repeats: int


def check_table(out: Path, *, force: bool) -> Destination:
    """Raises: UserError where a table can't be written to `out`."""
    is_table = begins(f'{{\n "format": "{TABLE_FORMAT}"', "a latency table")
    return check_file(out, force=force, amiss=is_table)


def latency(
    terminal: Teller, *, model: str, out: Path, units: str, engine: str, threads: int, batch: int, prompt_tokens: int,
    new_tokens: int, repeats: int, multiple_of: int, force: bool, ffn: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune latency`, whose options these are. Raises: UserError; nothing is written then."""
    spec = parse_spec(ffn) if ffn else None
    check_engine(engine)
    place = check_table(out, force=force)
    setting, start = Setting(engine, threads, batch, prompt_tokens, new_tokens, repeats), time.perf_counter()
    with terminal.busy(f"loading {model}"):
        dense = models.load(model, dtype="auto", note=terminal.note)
    places = find_sites(dense, parse_units(units), spec)
    check_room(max_context(dense.config), prompt_tokens, new_tokens, None, spare=1)
    counts: dict[Kind, tuple[int, ...]] = {kind: _counts(places, kind, multiple_of) for kind in kinds_of(places)}
    for few, found in counts.items():
        if len(found) == 1:
            raise UserError(
                f"no model with fewer {few} can be measured: no layer has more than {found[0]}, the fewest that a cut "
                f"in multiples of {multiple_of} leaves; give a smaller --multiple-of, or other --units"
            )
    kind_of_numbers = ENGINES[engine].dtype or dtypes.name_of(dtypes.main(dense))
    shapes: dict[Kind, tuple[int, ...]] = {
        kind: tuple(p.count for p in places if p.address.kind == kind) for kind in counts
    }
    sizes = sizes_of(places)
    del dense, places
    with scratch("latency") as room:
        kinds = _Bench(terminal, model, setting, shapes, room, spec).timings(counts)
    table = LatencyTable(
        model=model,
        shapes=shapes,
        sizes=sizes,
        setting={
            "engine": engine, "dtype": kind_of_numbers, "threads": threads, "batch": batch,
            "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats,
        },
        machine=machine(engine),
        kinds=kinds,
    )  # fmt: skip
    with written_aside(place, folder=False) as aside:
        aside.write_text(table.to_json(), encoding="utf-8")
    return {**table.record(), "out": str(place.path), "seconds": time.perf_counter() - start}


def machine(engine: str) -> dict[str, Any]:
    """The fingerprint of this machine, as far as seconds depend on it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    package = {"torch": "torch", "onnxruntime": "onnxruntime", "llamacpp": "xllamacpp"}[engine]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in dict.fromkeys(("lmprune", package))},
    }


def _counts(places: Sequence[Place], kind: Kind, multiple_of: int) -> tuple[int, ...]:
    """The numbers of units, in the place of a kind that has most, at which a model is measured: falling, all of them
    first, and none last where whole attentions, or feed-forward layers, can go."""
    own = [place for place in places if place.address.kind == kind]
    gone = {0} if 0 in floors(own, multiple_of).values() else set[int]()
    widest = max(own, key=lambda place: place.count)
    if widest.count <= _FEW:
        return tuple(sorted({*range(widest.least, widest.count + 1), *gone}, reverse=True))
    multiple = multiple_for(kind, multiple_of) * widest.parts
    found = [num_kept(widest.count, share, multiple_of=multiple) for share in _SHARES]
    return tuple(sorted({widest.count, *found, least_for(widest, multiple_of), *gone}, reverse=True))


class _Bench:
    """shapes: a kind of units -> how many each layer has. room: where the cut models lie. spec: see `find_sites`."""

    def __init__(
        self, terminal: Teller, source: str, setting: Setting, shapes: Mapping[Kind, tuple[int, ...]], room: Path,
        spec: FFNSpec | None,
    ):  # fmt: skip
        self.terminal, self.source, self.setting, self.shapes = terminal, source, setting, shapes
        self.room, self.spec = room, spec

    def timings(self, counts: Mapping[Kind, tuple[int, ...]]) -> dict[Kind, Timing]:
        """Seconds of a kind's models are those of the whole model, by the ratio to it in the same turns."""
        with self._opened(self._written(None, 1, 1)) as dense:
            asked: list[tuple[Kind, int, int]] = [(k, n, all_[0]) for k, all_ in counts.items() for n in all_[1:]]
            turns = {(kind, n): found for kind, n, of in asked if (found := self._turns(dense, kind, n, of))}
        whole = [[pair[phase] for before, _ in turns.values() for pair in before] for phase in (0, 1)]
        medians = [statistics.median(seconds) for seconds in whole]
        found = {}
        for kind, all_ in counts.items():
            measured = (all_[0], *(n for n in all_[1:] if (kind, n) in turns))
            if len(measured) == 1:
                raise UserError(f"no model with fewer {kind} could be measured; give a smaller --multiple-of")
            ratios = [(1.0, 1.0), *(self._ratios(kind, n, *turns[kind, n]) for n in measured[1:])]
            prefill, decode = (tuple(medians[phase] * pair[phase] for pair in ratios) for phase in (0, 1))
            found[kind] = Timing(measured, prefill, decode)
        return found

    def _opened(self, source: str) -> Worker:
        context = self.setting.prompt_tokens + self.setting.new_tokens + 1
        return Worker(self.setting.engine, source, threads=self.setting.threads, context=context)

    def _ratios(self, kind: Kind, count: int, before: Seconds, after: Seconds) -> tuple[float, float]:
        """How long the cut model takes where the whole takes one; of none, as if the first layer had none either."""
        prefill, decode = _ratios(before, after)
        if count:
            return prefill, decode
        times = sum(self.shapes[kind]) / sum(self.shapes[kind][1:])
        return max(1 - times * (1 - prefill), _NEVER_LESS), max(1 - times * (1 - decode), _NEVER_LESS)

    def _turns(self, dense: Worker, kind: Kind, count: int, of: int) -> tuple[Seconds, Seconds] | None:
        """Of the whole model and of the one with so many of a kind's units a layer, in turn; None where the engine has
        no place for a model that lacks some layers' whole attention, or feed-forward layer."""
        try:
            setting, cut = self.setting, self._written(kind, count, of)
        except UserError as error:
            if count:
                raise
            self.terminal.note(f"layers without any {kind} were not measured: {error}")
            return None
        prompt_BT = np.random.default_rng(0).integers(256, size=(setting.batch, setting.prompt_tokens))
        with self._opened(cut) as after, self.terminal.stages() as stages:
            progress = stages(f"{count} of {of} {kind}")
            both = interleaved([dense, after], prompt_BT, setting.new_tokens, setting.repeats, progress)
        return both[0], both[1]

    def _written(self, kind: Kind | None, count: int, of: int) -> str:
        """A model that keeps the first units of a kind, as the engine opens it; None = the whole one. Which units
        stay does not matter to the time."""
        place = self.room / f"{kind}-{count}"
        with self.terminal.busy(f"preparing {count} of {of} {kind}" if kind else f"preparing {self.source}"):
            model = models.load(self.source, dtype="auto", note=lambda _: None)
            plan = None
            if kind is not None:
                sites = find_sites(model, [kind], self.spec)
                kept = [_first(site, max(site.least, round(count / of * site.count))) for site in sites]
                if not count:
                    kept[0], kept[1:] = torch.arange(sites[0].count), [torch.arange(0) for _ in sites[1:]]
                plan = PrunePlan.of([site.address for site in sites], kept, [site.count for site in sites])
                shrink(model, plan, self.spec)
            tokenizer = models.load_tokenizer(self.source, note=lambda _: None)
            checkpoint.save(model, place, tokenizer=tokenizer, plan=plan, spec=self.spec)
        return exported(self.terminal, str(place), self.setting.engine, self.room / f"{kind}-{count}-exported")


def _first(site: Place, count: int) -> torch.Tensor:
    """The first units, equally many of each part."""
    each, run = count // site.parts, site.count // site.parts
    return torch.cat([torch.arange(each) + part * run for part in range(site.parts)])


def _ratios(before: Seconds, after: Seconds) -> tuple[float, float]:
    """How long the second took where the first took one, median over the turns: prefill, decode."""
    shares = [[new[phase] / old[phase] for old, new in zip(before, after, strict=True)] for phase in (0, 1)]
    return statistics.median(shares[0]), statistics.median(shares[1])
