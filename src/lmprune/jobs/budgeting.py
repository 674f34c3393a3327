"""What `lmprune prune` is told of a target and of how a budget is spread, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from ..budget.budget import Budget, Spending
from ..budget.keeps import Keep
from ..budget.search import SEARCHES, Budgeting, Effort
from ..budget.selection import Scope
from ..budget.target import CostTarget, Wish, parse_target
from ..budget.timing import TIMED, LatencyTable
from ..checkpoints import dtypes, models
from ..checkpoints.sources import called
from ..checkpoints.writing import prove
from ..errors import UserError, unknown
from ..methods import Method
from ..plan import PrunePlan
from ..progress import silent
from ..sites.address import Kind
from ..sites.find import find_sites
from . import inspection
from .asked import Asked
from .training_options import Training


def budget_of(options: Mapping[str, Any]) -> Budget | None:
    """From a command's options; None where neither a target nor a way to spread a budget was given.

    Raises: UserError for what no budget can be, and for options without the one that they are about.
    """
    target = _target(options)
    table, phase = options.get("latency_table"), options.get("latency_of", "whole")
    if phase not in TIMED:
        raise unknown("phase", phase, TIMED)
    if not (target and target.timed) and (table is not None or phase != "whole"):
        name = "latency-of" if table is None else "latency-table"
        raise UserError(f"--{name} is about --target-speedup and --target-latency; name one of them")
    by, levels = options.get("budget") or "uniform", options.get("levels")
    effort = _effort(options, by)
    if levels is not None:
        check_levels(levels)
    if target is None and options.get("budget") is None:
        return None
    loaded = LatencyTable.load(Path(table), phase) if table is not None else None
    return Budget(target, by, effort, loaded, levels=levels)


def _effort(options: Mapping[str, Any], by: Budgeting) -> Effort:
    """How long is searched. Raises: UserError for what no search can be told, and where there is none."""
    names = ("search_minutes", "levels", "survivors", "tune_survivors")
    given = {name: options[name] for name in names if options.get(name) is not None}
    for name in given:
        if by not in SEARCHES:
            raise UserError(f"--{name.replace('_', '-')} is about a search; name it with --budget dp or evolution")
    if not (minutes := given.get("search_minutes", 1)) > 0:
        raise UserError(f"search-minutes must be above 0, got {minutes:g}")
    for name in ("survivors", "tune_survivors"):
        if (number := given.get(name, 1)) < 1:
            raise UserError(f"{name.replace('_', '-')} must be at least 1, got {number}")
    tune = given.get("tune_survivors", 0)
    if tune and options.get("stream"):
        raise UserError("--tune-survivors trains the model, and --stream leaves it in its files; drop one of the two")
    if tune and options.get("dtype") == "float16":
        raise UserError("drop --tune-survivors, or --dtype float16, in which weights can't be trained; take float32")
    return Effort(options["seed"], given.get("search_minutes"), survivors=given.get("survivors", 1), tune=tune)


def _table_of(table: LatencyTable | None, model: str) -> LatencyTable | None:
    """The table, which also serves a model that was cut from the one that was measured."""
    if table is None:
        return None
    plan = inspection.find_plan(model)
    before = [called(source) for source in plan.sources()] if plan else []
    return replace(table, cut=called(table.model) in before)


def check_levels(folder: Path) -> None:
    """Raises: UserError where no levels can be kept there."""
    prove(folder, "--levels")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder for levels: name another --levels")


def check_spread(
    budget: Budget | None, row: Method, kinds: Sequence[Kind], training: Training | None, options: Mapping[str, Any]
) -> None:
    """Raises: UserError where a budget can't be spread as asked by this method, over these kinds, in a training, or
    over a model that is in its files."""
    if budget is not None and options.get("time_budget") is not None:
        raise UserError(
            "drop --time-budget: how long it takes to come to a target, or to spread a budget, is not known before; "
            "--search-minutes ends a search"
        )
    if budget is None or budget.by == "uniform":
        return
    if training is not None and training.schedule != "oneshot":
        raise UserError(
            f"--budget {budget.by} chooses at once, and units go little by little while the model trains; prune first "
            "(--schedule oneshot), or leave it out"
        )
    row.solver_of(kinds).check_spends(kinds)


def at_work(asked: Asked, budget: Budget, model: Any, note: Callable[[str], None] = silent) -> Budget:
    """The same for the model that was asked for, opened. note: told what gets better."""
    table, itemsize = _table_of(budget.table, asked["model"]), dtypes.main(model, asked.kind).itemsize
    return replace(budget, table=table, itemsize=itemsize, note=note)


def uniform_share(asked: Asked, model: Any) -> tuple[Keep, Scope | None]:
    """What stays of a model whose units go little by little, and the scope: with a budget, of every layer alike."""
    if asked.budget is None:
        return asked["keep"], asked["scope"]
    share = _settled(asked, asked.budget, model)
    assert not isinstance(share, Spending)
    return share, asked.budget.scope


def check_reach(asked: Asked) -> None:
    """Raises: UserError where a target can't be reached, as the model's shapes and the latency table say: before it is
    one of several steps."""
    if asked.budget is not None and asked.budget.target is not None:
        blank = models.skeleton(asked["model"], trust_remote_code=asked["trust_remote_code"])
        _settled(asked, asked.budget, blank)


def _settled(asked: Asked, budget: Budget, model: Any) -> Keep | Spending:
    places, spent = find_sites(model, asked.kinds, asked.spec), at_work(asked, budget, model)
    adds_bias = asked.row.solver_of(asked.kinds).adds_bias
    costs = spent.costs(places, model, asked.spec, adds_bias=adds_bias)
    return spent.settle(places, costs, asked["keep"], multiple_of=asked["multiple_of"])


def record(budget: Budget | None, plan: PrunePlan) -> dict[str, Any]:
    """What the command's record says of it; after a training the cost is not counted."""
    told = {**(budget.asked() if budget else {}), **plan.settings}
    return {name: told.get(name) for name in ("budget", "target", "cost")}


def _target(options: Mapping[str, Any]) -> CostTarget | None:
    wishes: tuple[Wish, ...] = get_args(Wish)
    given: list[tuple[Wish, str]] = [
        (wish, text) for wish in wishes if (text := options.get(f"target_{wish}")) is not None
    ]
    if len(given) > 1:
        names = " and ".join(f"--target-{wish}" for wish, _ in given)
        raise UserError(f"{names} are two targets; give one")
    return parse_target(*given[0]) if given else None
