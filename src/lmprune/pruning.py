"""The main job: calibrate, score or solve, cut. One function, for the command line and for Python alike."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from . import data as text
from .budget.budget import Budget, Spending, is_named, num_params, shares_of
from .budget.choosing import alike, check_counts, check_widths, choose
from .budget.costs import Costs
from .budget.keeps import Keep, check_keeps
from .budget.selection import SCOPES, Scope
from .checkpoints.journal import journal_of
from .checkpoints.shrinking import check_plan, record_shapes
from .data import TextData
from .data.beginning import Beginning
from .data.tokens import sequences
from .errors import UserError, unknown
from .methods import GIVEN, Method, MethodLike, get_method, must_train
from .plan import PrunePlan, in_order
from .processes import check_alike, meets
from .progress import Stages, silent
from .scores.criteria import checked_scores
from .scores.passes import undisturbed
from .sites.address import Address, Kind
from .sites.families import FFNSpec
from .sites.find import find_sites
from .sites.layers import check_left
from .sites.limits import check_in_memory, check_tokens, check_whole
from .sites.place import Place
from .sites.proof import check_ffns
from .sites.site import seams
from .solve.solver import Selection, Solver

#: one (F_l,) a layer, or by address, as a plan has them, or by its text, as a file has them
Scores = Sequence[Tensor] | Mapping[Address, Tensor] | Mapping[str, Tensor]


def prune(
    model: Any,
    tokenizer: Any = None,
    *,
    units: Sequence[Kind] = ("neurons",),
    method: MethodLike | None = None,
    keep: Keep = 0.75,
    scope: Scope | None = None,
    budget: Budget | None = None,
    data: str | TextData | Sequence[str] | Tensor = "mix",
    data_dir: Path | str | None = None,
    chat_template: bool = False,
    calibration_tokens: int = 65536,
    seq_len: int = 512,
    multiple_of: int = 32,
    seed: int = 0,
    plan: PrunePlan | None = None,
    scores: Scores | None = None,
    spec: FFNSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
    stages: Stages = silent,
) -> PrunePlan:
    """Prune the model's units (by default its feed-forward neurons) in place, and return the plan of what stayed.

    model: a transformers causal-LM model. tokenizer: needed where the method reads text.
    units: kinds of what is removed, of `sites.address.KINDS`; a plan names its own.
    method: a name, a Method, or a function as a criterion is: (layer, statistics, random numbers) -> scores (F,),
        larger = keep (docs/add_a_criterion.md). None = `obs`. keep: the ratio of units that stay, in (0, 1],
        or one for each kind; of several kinds under global scope `obs` takes one ratio as that of their parameters.
    scope: `local` or `global`; by default the method's own. multiple_of: of every layer's number of neurons.
    budget: what the model may cost, in place of `keep`, and how that is spread over the sites, in place of `scope`.
    data: a source name (see `lmprune.data.load`; its train split is read), a list of texts, a TextData, or token ids
        (sequences, T). A text is cut into sequences of `seq_len`, `calibration_tokens` in all, in an order from `seed`.
    plan: neurons chosen before: they stay, and the layers are repaired as the plan's method does it.
    scores: what to choose by, one (U,) a site, or as `--scores-out` writes them; layers are repaired as by `method`.
    spec: where the FFN is, for models that lmprune's table does not know; it is proved on the model first.
    Raises: UserError; where the arguments or the data were wrong, the model is untouched.
    """
    row = _row(method, plan, scores)
    how: Selection = {"scope": scope or row.scope, "multiple_of": multiple_of, "seed": seed}
    sites = _checked_sites(model, units, row, keep, scope, plan=plan, scores=scores, spec=spec)
    addresses, counts_before = [site.address for site in sites], [site.count for site in sites]
    solver = row.solver_of(address.kind for address in addresses)
    costs = budget.costs(sites, model, spec, adds_bias=solver.adds_bias) if budget else None
    share = _settled(budget, costs, sites, keep, how)
    check_choice(sites, 1 if plan or isinstance(share, Spending) else share, how, named=is_named(budget))
    given = None if scores is None else checked_scores(in_order(scores, addresses), sites, "scores")
    reading = _Reading(data, data_dir, chat_template, calibration_tokens, seq_len, seed)
    reads = solver.reads_text(chosen=plan is not None or scores is not None)
    input_ids, calibration = reading.tokens(model, tokenizer) if reads else (None, {})
    with undisturbed(model):
        kept, given, searched = _solved(solver, model, sites, input_ids, share, stages, how, plan=plan, given=given)
    share = shares_of(addresses, kept, counts_before) if isinstance(share, Spending) or not is_named(budget) else share
    record_shapes(model, spec)
    settings = {"method": row.name, "keep": share, **how, **({"scores": "given"} if scores is not None else {})}
    settings |= _spent(budget, costs, model, addresses, counts_before, kept) | _size(input_ids)
    chosen, planned = (plan.chosen, {"plan": plan.record()}) if plan else ({}, {})
    origin = {"versions": versions(), **calibration, **planned, **searched, **(provenance or {})}
    found = plan.scores if plan else dict(zip(addresses, given or (), strict=True))
    return replace(PrunePlan.of(addresses, kept, counts_before, settings | chosen, origin), scores=found)


def _row(method: MethodLike | None, plan: PrunePlan | None, scores: Scores | None) -> Method:
    """What the neurons are chosen by, and how the layers are repaired: the plan's, or what the caller said."""
    if plan is not None and scores is not None:
        raise UserError("give a plan, which says what neurons stay, or scores to choose them by, not both")
    own = None if method is None else get_method(method)
    if plan is None:
        return own or (GIVEN if scores is not None else get_method("obs"))
    name = plan.settings.get("method")
    if name is None or name == GIVEN.name or (own is not None and own.name == name):
        return own or (GIVEN if name else get_method("obs"))
    try:
        return get_method(name)
    except UserError as error:
        raise UserError(
            f"the plan was made by {name!r}, which is not here ({error}); register it, or name its --plugin; "
            "lmprune.shrink(model, plan) cuts without a repair"
        ) from None


def _checked_sites(
    model: Any,
    units: Sequence[Kind],
    row: Method,
    keep: Keep,
    scope: Scope | None,
    *,
    plan: PrunePlan | None,
    scores: Scores | None,
    spec: FFNSpec | None,
) -> Sequence[Place]:
    """Where the model can be pruned as it was asked. Raises: UserError where it can't."""
    if row.learned and plan is None and scores is None:
        raise must_train(row)
    kinds = plan.kinds if plan else units
    if plan is None:
        check_keeps(keep, kinds)
    if scope not in (None, *SCOPES):
        raise unknown("scope", scope, SCOPES)
    row.solver_of(kinds)
    sites = find_sites(model, kinds, spec)
    check_in_memory(model)
    if spec is not None:
        check_whole(model, "the FFN that was named can't be proved")
        with undisturbed(model):
            check_ffns(model, seams(sites, "--ffn"))
    if plan is not None:
        check_plan(plan, sites)
    return sites


def _settled(
    budget: Budget | None, costs: Costs | None, sites: Sequence[Place], keep: Keep, how: Selection
) -> Keep | Spending:
    """What stays, by a ratio or by a search; with a budget the scope is the budget's."""
    if budget is None or costs is None:
        return keep
    how["scope"] = budget.scope
    return budget.settle(sites, costs, keep, multiple_of=how["multiple_of"])


def _spent(
    budget: Budget | None, costs: Costs | None, model: Any, addresses: Sequence[Address], before: Sequence[int],
    kept: Sequence[Tensor],
) -> dict[str, Any]:  # fmt: skip
    """What a plan's settings say of a budget, the model being cut."""
    if budget is None or costs is None:
        return {}
    counts, left = (dict(zip(addresses, each, strict=True)) for each in (before, map(len, kept)))
    return budget.record(costs, counts, left, num_params(model))


def check_choice(sites: Sequence[Place], keep: Keep, how: Selection, *, named: bool) -> None:
    """named: somebody did name this ratio, so each site is to come near it. Raises: UserError where no choice of it can
    be made, whatever the scores will be."""
    check_widths(sites, keep, how["multiple_of"])
    if keep != 1:
        if named:
            check_counts(sites, keep, how["scope"])
        choose(sites, alike(sites), keep, **how)


def _solved(
    solver: Solver, model: Any, sites: Sequence[Place], input_ids: Tensor | None, share: Keep | Spending,
    stages: Stages, how: Selection, *, plan: PrunePlan | None, given: list[Tensor] | None,
) -> tuple[list[Tensor], list[Tensor] | None, dict[str, Any]]:  # fmt: skip
    """Choose, unless that was done before, cut and repair: what stays of each site, the scores, and what a plan says of
    a search."""
    _check_as_begun(model, input_ids, plan)
    if meets():
        check_whole(model, "several processes can't calibrate together")
    asked = (share.by, share.most) if isinstance(share, Spending) else share
    check_alike(input_ids, [solver.name, asked, how, plan and plan.kept])
    if isinstance(share, Spending):
        if plan is not None or given is not None:
            raise UserError("a plan or scores say which units stay, so no budget is searched beside them; drop one")
        done = solver.spend(model, sites, input_ids, share, stages, **how)
        return done.kept, done.scores, {"search": done.search} if done.search else {}
    if plan is None and given is None:
        done = solver.solve(model, sites, input_ids, share, stages, **how)
        return done.kept, done.scores, {}
    kept = plan.indices([site.address for site in sites]) if plan else choose(sites, given or [], share, **how)
    check_left(sites, kept)
    solver.carry_out(model, sites, input_ids, kept, stages)
    return kept, given, {}


def _check_as_begun(model: Any, input_ids: Tensor | None, plan: PrunePlan | None) -> None:
    """Raises: UserError where a run that goes on has another text, plan or model than it began with; of blocks that is
    seen when they are read."""
    if (journal := journal_of(model)) is None:
        return
    if input_ids is not None:
        journal.check("text", {"input_ids": input_ids})
    if plan is not None:
        journal.check("plan", {str(at): units for at, units in zip(plan.addresses, plan.indices(), strict=True)})
    journal.check("model", {name: values for name, values in model.state_dict().items() if not values.is_meta})


def versions() -> dict[str, str]:
    """What a number depends on: the versions of lmprune, torch, transformers and Python."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("lmprune", "torch", "transformers")},
    }


@dataclass(frozen=True)
class _Reading:
    """What text is read before anything is chosen, and how it is cut; see `prune`."""

    data: str | TextData | Sequence[str] | Tensor
    data_dir: Path | str | None
    chat_template: bool
    num_tokens: int
    seq_len: int
    seed: int

    def tokens(self, model: Any, tokenizer: Any) -> tuple[Tensor, dict[str, Any]]:
        """Token ids (sequences, T), and what a plan says of where they came from."""
        if isinstance(self.data, Tensor):
            return check_tokens(self.data, model), {}
        if tokenizer is None:
            raise UserError("calibration text needs a tokenizer; pass one, or give token ids of shape (sequences, T)")
        found = self.text(model, tokenizer)
        ids = sequences(tokenizer, found, seq_len=self.seq_len, num_tokens=self.num_tokens, seed=self.seed)
        calibration = {**found.provenance, "bos": Beginning.of(tokenizer).text or None}
        return check_tokens(ids, model), {"calibration": calibration}

    def text(self, model: Any, tokenizer: Any) -> TextData:
        if isinstance(self.data, TextData):
            return self.data
        if not isinstance(self.data, str):
            return text.from_texts(self.data)  # type: ignore[arg-type]  # tokens are no text
        return text.load(
            self.data, "train", data_dir=self.data_dir, model=model, tokenizer=tokenizer,
            chat_template=self.chat_template, seed=self.seed, num_tokens=self.num_tokens,
        )  # fmt: skip


def _size(input_ids: Tensor | None) -> dict[str, int]:
    """What was read, for a plan's settings."""
    return {} if input_ids is None else {"calibration_tokens": input_ids.numel(), "seq_len": input_ids.shape[1]}
