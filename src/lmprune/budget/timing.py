"""A latency table: seconds of a model's shapes as they shrink, measured on one machine in one engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from operator import le
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import UserError, shown
from ..foreign import NUMBER, json_of, misfit, reading, text_of
from ..sites.address import Kind, check_kind
from ..sites.place import Place
from ..sites.site import Site
from .choosing import kinds_of
from .costs import Costs, Curve, costs_of

TABLE_FORMAT = "lmprune latency 1"
_SHAPE = {
    "model": str, "shapes": {str: [int]}, "sizes": {str: int}, "setting": dict, "machine": dict,
    "kinds": {str: {"counts": [int], "prefill": [NUMBER], "decode": [NUMBER]}},
}  # fmt: skip
Timed = Literal["prefill", "decode", "whole"]
TIMED: tuple[Timed, ...] = ("prefill", "decode", "whole")


@dataclass(frozen=True)
class Timing:
    """Of one kind of units: how many the widest layer had in the models that were measured, the whole one's first,
    falling (others had the same share of theirs), and the median seconds of each, of the prompt and of all new tokens
    together. 0 = the attentions or feed-forward layers are gone: no model does without any, so it is what one that kept
    the first would take without that too."""

    counts: tuple[int, ...]
    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    @property
    def whole(self) -> bool:
        """Whether there is a positive time for each of falling counts."""
        falls = all(a > b >= 0 for a, b in pairwise(self.counts)) and len(self.counts) > 1
        return falls and all(len(t) == len(self.counts) and min(t) > 0 for t in (self.prefill, self.decode))

    def seconds(self, phase: Timed) -> np.ndarray:
        """Of the models with ever fewer units; one that is measured as slower than a larger one counts as that."""
        found = {"prefill": np.array(self.prefill), "decode": np.array(self.decode)}
        return np.minimum.accumulate(found.get(phase, found["prefill"] + found["decode"]))


@dataclass(frozen=True)
class LatencyTable:
    """shapes: a kind of units -> how many each layer of the model has. setting: engine, dtype, threads, batch, tokens.
    machine: where it was measured. kinds: what was. phase: what is asked of it: the prompt, the new tokens, or both.
    cut: it is asked about a model that was cut from the one that was measured. sizes: inputs of a layer that one unit
    is, of kinds that have such; tables made before 2026-11-27 don't say."""

    model: str
    shapes: Mapping[Kind, tuple[int, ...]]
    setting: Mapping[str, Any]
    machine: Mapping[str, Any]
    kinds: Mapping[Kind, Timing]
    phase: Timed = "whole"
    cut: bool = False
    sizes: Mapping[Kind, int] = field(default_factory=dict)

    def costs(self, places: Sequence[Place], every: Sequence[Place] | None = None, blocks: int | None = None) -> Costs:
        """Seconds, as these places shrink; a layer's share of what the whole model gains.

        every: the model's places of all kinds of the table, for a cut one has lost of others too; None = `places`.
        blocks: how many the model has, for a cut one may have lost whole attentions or feed-forward layers of some.
        Raises: UserError where the table is about another model's shapes, or says nothing of a kind.
        """
        for kind in kinds_of(places):
            if kind not in self.kinds:
                raise UserError(f"the latency table says nothing of {kind}; measure it with --units {kind}")
        curves, gone = {}, 0.0
        for kind in self.kinds:
            own = [place for place in every or places if place.address.kind == kind]
            left = self._left(kind, own, blocks)
            whole = self._measured(kind, own, left)
            gone += sum(curve.costs[-1] - float(curve.at([count])[0]) for curve, count in zip(whole, left, strict=True))
            there = [curve for curve, count in zip(whole, left, strict=True) if count]
            curves |= {place.address: curve.up_to(place.count) for place, curve in zip(own, there, strict=True)}
        dense = self.kinds[next(iter(self.kinds))].seconds(self.phase)[0]
        return costs_of("seconds", float(dense) - gone, {place.address: curves[place.address] for place in places})

    def _left(self, kind: Kind, places: Sequence[Place], blocks: int | None) -> list[int]:
        """How many units this model has in each layer of the one that was measured, if the two can be compared."""
        counts = {place.address.layer: place.count for place in places}
        measured = self.shapes.get(kind, ())
        if self.cut and blocks == len(measured):
            return [counts.get(layer, 0) for layer in range(len(measured))]
        return [*counts.values()]

    def _measured(self, kind: Kind, places: Sequence[Place], left: Sequence[int]) -> list[Curve]:
        """Of each layer of the model that was measured. left: see `_left`. Raises: UserError for another model's."""
        alike = all(size == self.sizes.get(kind, size) for size in sizes_of(places).values())
        if not alike or not self._covers(kind, left):
            raise UserError(
                f"the latency table is of {shown(self.model)}, whose layers have other {kind} than this model's; "
                "measure this one with `lmprune latency`"
            )
        timing = self.kinds[kind]
        shares = np.array(timing.counts) / timing.counts[0]
        seconds = (timing.seconds(self.phase) / len(left))[::-1]
        gains = tuple(map(float, seconds - seconds[0]))
        return [Curve(tuple(map(int, np.rint(shares[::-1] * count))), gains) for count in self.shapes[kind]]

    def _covers(self, kind: Kind, counts: Sequence[int]) -> bool:
        """Whether layers of so many units were measured, or are narrower ones of a model that was cut."""
        measured = self.shapes.get(kind, ())
        if not self.cut:
            return measured == tuple(counts)
        return len(measured) == len(counts) and all(map(le, counts, measured))

    def record(self) -> dict[str, Any]:
        """All but the phase and the model, which it is asked about."""
        record = asdict(self)
        del record["phase"], record["cut"]
        return record

    def to_json(self) -> str:
        return json.dumps({"format": TABLE_FORMAT, **self.record()}, indent=1)

    @classmethod
    def load(cls, path: Path, phase: Timed = "whole") -> LatencyTable:
        """Raises: UserError where the file is no such table."""
        with reading(f"{path} is no latency table", "`lmprune latency MODEL --out FILE` writes one"):
            record = json_of(text_of(path))
            if record.pop("format") != TABLE_FORMAT:
                raise ValueError(f"its format is not {TABLE_FORMAT}")
            if wrong := misfit(record, _SHAPE):
                raise ValueError(f"its {wrong} is of another type")
            shapes: dict[Kind, tuple[int, ...]] = {
                check_kind(kind): tuple(counts) for kind, counts in record.pop("shapes").items()
            }
            kinds: dict[Kind, Timing] = {
                check_kind(kind): Timing(*(tuple(timing[name]) for name in ("counts", "prefill", "decode")))
                for kind, timing in record.pop("kinds").items()
            }
            sizes: dict[Kind, int] = {check_kind(kind): size for kind, size in record.pop("sizes", {}).items()}
            if not kinds or not all(shapes.get(kind) and timing.whole for kind, timing in kinds.items()):
                raise ValueError("a kind's counts and seconds don't go together")
            return cls(shapes=shapes, kinds=kinds, phase=phase, sizes=sizes, **record)


def sizes_of(places: Sequence[Place]) -> dict[Kind, int]:
    """Inputs of a layer that one unit is: of heads another number where one key/value group is left, and query heads
    are the units."""
    return {place.address.kind: place.size for place in places if isinstance(place, Site)}
