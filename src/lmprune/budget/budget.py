"""A budget: what a model may keep or cost, and how that is spread over its sites. A value; `settle` makes it exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import UserError, unknown
from ..progress import silent
from ..sites.address import Address, Kind
from ..sites.families import FFNSpec
from ..sites.find import find_sites
from ..sites.place import Place
from ..sites.walk import list_of
from .choosing import floors, kinds_of
from .costs import Costs, check_additive, counts_before, weight_costs
from .keeps import Keep
from .search import BUDGETS, Budgeting, Effort
from .selection import Scope, check_keep
from .target import CostTarget, check_reach, uniform_keep
from .timing import LatencyTable


@dataclass(frozen=True)
class Spending:
    """A budget in exact terms, to be spread by search. costs, most: what the whole model may cost. by, effort: see
    `Budget`. tokens: how many of the calibration tokens the levels are measured on. levels: a folder for them, None =
    they are not kept. note: is told of what gets better."""

    costs: Costs
    most: float
    by: Budgeting
    effort: Effort = field(default_factory=Effort)
    tokens: int = 16384
    levels: Path | None = None
    note: Callable[[str], None] = silent


@dataclass(frozen=True)
class Budget:
    """target: what the model may cost; None = the share `keep` of what its units weigh.

    by: how it is spread: `uniform`, the same share of every site, or one of `search`. effort: of the search.
    table: seconds, where it is about those. itemsize: bytes of a number as it is saved.
    levels: a folder for what the search is made of, which it then need not compute again. note: told what gets better.
    """

    target: CostTarget | None = None
    by: Budgeting = "uniform"
    effort: Effort = field(default_factory=Effort)
    table: LatencyTable | None = None
    itemsize: int = 4
    levels: Path | str | None = None
    note: Callable[[str], None] = silent

    def __post_init__(self) -> None:
        if self.by not in BUDGETS:
            raise unknown("budget", self.by, BUDGETS)
        if self.target is not None and self.target.timed and self.table is None:
            raise UserError("seconds are read off a --latency-table; `lmprune latency MODEL --out FILE` makes one")

    @property
    def scope(self) -> Scope:
        """Which scope it comes to."""
        return "local" if self.by == "uniform" else "global"

    def costs(
        self, places: Sequence[Place], model: nn.Module, spec: FFNSpec | None = None, *, adds_bias: bool = False
    ) -> Costs:
        """Of what the target is about. places: those of the model that are pruned. spec: where its FFN is, see
        `find_sites`. adds_bias: see `weight_costs`. Raises: UserError for a table of other shapes, and for a target
        that whole layers and parts of layers share."""
        if self.target is not None:
            check_additive(kinds_of(places))
        if self.table is not None:
            every, blocks = find_sites(model, [*self.table.kinds], spec), len(list_of(model, places[0].block))
            return self.table.costs(places, every, blocks)
        in_bytes = self.target is not None and self.target.wish == "bytes"
        itemsize = self.itemsize if in_bytes else None
        return weight_costs(places, num_params(model), itemsize=itemsize, adds_bias=adds_bias)

    def settle(self, places: Sequence[Place], costs: Costs, keep: Keep, *, multiple_of: int = 1) -> Keep | Spending:
        """A ratio where every site gets the same share, else what is to be spread by search.

        Raises: UserError where the model costs no more already, or can't cost so little.
        """
        if self.by == "uniform":
            return keep if self.target is None else uniform_keep(places, costs, self.target, multiple_of=multiple_of)
        most = self._most(places, costs, keep, multiple_of)
        levels = Path(self.levels) if self.levels else None
        return Spending(costs, most, self.by, self.effort, levels=levels, note=self.note)

    def _most(self, places: Sequence[Place], costs: Costs, keep: Keep, multiple_of: int) -> float:
        before = counts_before(places)
        if self.target is not None:
            return check_reach(self.target, costs, floors(places, multiple_of), before)
        if isinstance(keep, Mapping):
            kinds = " and ".join(kinds_of(places))
            raise UserError(f"--budget {self.by} shares one budget among {kinds}; give --keep one ratio")
        return costs.base + check_keep(keep) * (costs.total(before) - costs.base)

    def record(
        self, costs: Costs, before: Mapping[Address, int], left: Mapping[Address, int], params: int
    ) -> dict[str, Any]:
        """For a plan's settings: what was asked for, and what the model cost before and costs now, by these costs.

        params: that it has now, which are what it costs but for seconds: its layers may be lighter than they had to be.
        """
        weighs = {"params": 1, "bytes": self.itemsize}
        after = float(params * weighs[costs.measure]) if costs.measure in weighs else costs.total(left)
        return {**self.asked(), "cost": {"measure": costs.measure, "before": costs.total(before), "after": after}}

    def asked(self) -> dict[str, Any]:
        """What was asked for, for records."""
        return {"budget": self.by} | ({"target": {self.target.wish: self.target.amount}} if self.target else {})


def is_named(budget: Budget | None) -> bool:
    """Whether somebody named the ratio that stays, rather than a target that comes to one."""
    return budget is None or budget.target is None


def num_params(model: nn.Module) -> int:
    """Of the whole model; those that two modules share count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def shares_of(addresses: Sequence[Address], kept: Sequence[Tensor], before: Sequence[int]) -> Keep:
    """The ratio that stayed, of each kind where there are several."""
    found: dict[Kind, float] = {}
    kinds: list[Kind] = [address.kind for address in addresses]
    for kind in dict.fromkeys(kinds):
        own = [i for i, address in enumerate(addresses) if address.kind == kind]
        found[kind] = sum(len(kept[i]) for i in own) / sum(before[i] for i in own)
    return found if len(found) > 1 else next(iter(found.values()))
