"""What a pruned model may cost at most, as a user says it, and the ratio that keeps a uniform cut within it."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from ..sites.address import Address, Kind
from ..sites.place import Place
from .choosing import kinds_of, least_for, multiple_for
from .costs import Costs, counts_before
from .keeps import Keep
from .selection import num_kept

Wish = Literal["params", "bytes", "speedup", "latency"]
_THOUSANDS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_BYTES = {f"{unit}{b}": size for unit, size in _THOUSANDS.items() if unit != "b" for b in ("", "b")}
_BYTES |= {f"{unit}ib": 1024.0**power for power, unit in enumerate(("k", "m", "g"), start=1)} | {"b": 1.0}
#: of each wish: the units that its number may have, and an example
_UNITS: dict[Wish, tuple[Mapping[str, float], str]] = {
    "params": (_THOUSANDS, "100M"),
    "bytes": (_BYTES, "80MB"),
    "speedup": ({"": 1.0, "x": 1.0}, "1.5"),
    "latency": ({"s": 1.0, "ms": 1e-3}, "20ms"),
}


@dataclass(frozen=True)
class CostTarget:
    """wish: parameters, bytes of the weights, how many times as fast as before, or seconds. amount: how much of it."""

    wish: Wish
    amount: float

    def most(self, dense: float) -> float:
        """The most that a model may cost where the dense one costs `dense`, in the same measure."""
        return dense / self.amount if self.wish == "speedup" else self.amount

    @property
    def timed(self) -> bool:
        """Whether it is about seconds."""
        return self.wish in ("speedup", "latency")


def parse_target(wish: Wish, text: str) -> CostTarget:
    """What `--target-…` says. Raises: UserError.

    >>> parse_target("params", "100M").amount, parse_target("latency", "20ms").amount, parse_target("bytes", "8MiB")
    (100000000.0, 0.02, CostTarget(wish='bytes', amount=8388608.0))
    """
    units, example = _UNITS[wish]
    found = re.fullmatch(r"([0-9_,]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in units:
        raise UserError(f"--target-{wish} takes a number like {example}, got {text!r}")
    amount = float(re.sub("[_,]", "", found[1])) * units[found[2]]
    if amount <= (1 if wish == "speedup" else 0):
        raise UserError(f"--target-{wish} must be above {int(wish == 'speedup')}, got {text!r}")
    return CostTarget(wish, amount)


def check_reach(target: CostTarget, costs: Costs, least: Mapping[Address, int], before: Mapping[Address, int]) -> float:
    """The most that the model may cost. Raises: UserError where it costs no more already, and where it can't cost so
    little, with the best that it can. least, before: the fewest units of each site, and those it has."""
    dense, smallest = costs.total(before), costs.total(least)
    most = target.most(dense)
    if most >= dense:
        raise UserError(f"the model has {shown(costs, dense)} already, and {shown(costs, most)} are asked for")
    if most < smallest:
        times = math.floor(100 * dense / smallest) / 100  # so that what is told can be asked for
        best = f"{times:.2f} times as fast" if target.wish == "speedup" else shown(costs, smallest)
        kinds = " and ".join(dict.fromkeys(address.kind for address in costs.curves))
        raise UserError(
            f"the best possible is {best}, with the fewest {kinds} that a model can have; ask for that, or let other "
            "--units go too"
        )
    return most


def shown(costs: Costs, amount: float) -> str:
    """A cost, for people; never less than it is."""
    if costs.measure == "seconds":
        return f"{math.ceil(amount * 1e4) / 10:,.1f} ms"
    if costs.measure == "params":
        return f"{math.ceil(amount):,} parameters"
    step = 10.0 ** (math.floor(math.log10(amount)) - 2)
    number = math.ceil(amount / step) * step / 1e6
    return f"{number:,.0f} MB" if number >= 100 else f"{number:.3g} MB"


def uniform_keep(places: Sequence[Place], costs: Costs, target: CostTarget, *, multiple_of: int = 1) -> Keep:
    """The largest share of every site's units with which the model costs no more than the target; of several kinds the
    one with the most units then takes what the others, of few units, leave over.

    Raises: UserError as `check_reach`.
    """
    before, least = counts_before(places), {place.address: least_for(place, multiple_of) for place in places}
    multiples = {place.address: multiple_for(place.address.kind, multiple_of) * place.parts for place in places}

    def cut(share: float, of: Iterable[Address] = before) -> dict[Address, int]:
        return {a: num_kept(before[a], share, multiple_of=multiples[a]) for a in of}

    def enough(share: float) -> bool:
        return all(count >= least[a] for a, count in cut(share).items())

    def largest(of: Iterable[Address], rest: Mapping[Address, int]) -> float:
        """The largest share of these sites that fits beside what the rest keeps."""
        fitting = bisect_right(shares, most, key=lambda share: costs.total({**rest, **cut(share, of)}))
        return shares[max(fitting - 1, 0)]

    def told(share: float, of: Sequence[Address]) -> float:
        """As it comes out, where it does so alike everywhere: each site is to come to the number that was paid for."""
        return cut(share, of)[of[0]] / before[of[0]] if len({before[a] for a in of}) == 1 else share

    shares = sorted({k / count for count in set(before.values()) for k in range(1, count + 1)})
    del shares[: bisect_left(shares, True, key=enough)]
    most = check_reach(target, costs, cut(shares[0]), before)
    share = largest(before, {})
    of_kind: dict[Kind, list[Address]] = {kind: [a for a in before if a.kind == kind] for kind in kinds_of(places)}
    if len(of_kind) == 1:
        return told(share, [*before])
    finest = max(of_kind, key=lambda kind: max(before[a] for a in of_kind[kind]))
    rest = {a: count for a, count in cut(share).items() if a.kind != finest}
    return {kind: told(largest(own, rest) if kind == finest else share, own) for kind, own in of_kind.items()}
