"""`prune --max-ppl-ratio`: the smallest model whose perplexity grows by no more than asked, found by pruning it.

The logarithm of the ratio of perplexities grows with what is removed, about as a power of it; each trial is where the
ones before it say that the wish is met, on text that was kept out of the calibration.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any

from ..data.beginning import Beginning
from ..data.overlap import check_held_out
from ..data.tokens import stream
from ..errors import UserError
from ..evaluation.perplexity import perplexity
from ..plan import PrunePlan
from ..progress import Teller
from ..sites.find import find_sites
from ..sites.limits import check_whole
from .asked import Asked, Made, Opened
from .training_options import Training

#: of the held-out text, that each trial is judged on, at most
JUDGED_TOKENS = 16384
#: models that are pruned at most
TRIALS = 6
#: the ratios that are tried, where there are units enough, and the first of them
FINE, FIRST = tuple(share / 50 for share in range(3, 50)), 0.86
#: of the power, where one trial is known only, and what it may be
_USUAL, _POWERS = 1.5, (1.0, 4.0)


@dataclass(frozen=True)
class Trial:
    """log: of the ratio of perplexities; se: its standard error, paired over windows; None from one window."""

    keep: float
    log: float
    se: float | None


def check_ratio(ratio: float | None, options: Mapping[str, Any], training: Training | None) -> None:
    """Raises: UserError for a ratio that is none, or beside what has its own idea of how much stays."""
    if ratio is None:
        return
    if not 1 < ratio < math.inf:
        raise UserError(f"--max-ppl-ratio must be above 1, the dense model's own, got {ratio:g}")
    if training is not None:
        raise UserError("--max-ppl-ratio prunes at once, and again; drop --steps, and recover from it afterwards")
    if options.get("time_budget") is not None:
        raise UserError("drop --time-budget: how many models --max-ppl-ratio will prune is not known before")
    if options["stream"]:
        raise UserError("--max-ppl-ratio needs the dense model beside the pruned one, and --stream has neither whole")


def check_copies(model: Any) -> None:
    """Raises: UserError for a model that can't be copied."""
    check_whole(model, "--max-ppl-ratio prunes copies, which can't be made")


def smallest(terminal: Teller, asked: Asked, opened: Opened, cut: Callable[[Asked, Opened, Any], PrunePlan]) -> Made:
    """The smallest of the models that were tried and hold the ratio, and how sure that is.

    cut: prunes a copy of the dense model in place. Memory: three models. Raises: UserError where no trial holds it, or
    the text has nothing held out.
    """
    most, shares, judge = asked["max_ppl_ratio"], _shares(asked, opened), _judge(terminal, asked, opened)
    trials: list[Trial] = []
    best: tuple[Trial, Any, PrunePlan, int] | None = None
    while (keep := next_keep(trials, math.log(most), shares)) is not None:
        model = copy.deepcopy(opened.dense)
        # the scores of the model that is chosen are written, once it is
        plan = cut(replace(asked, options={**asked.options, "keep": keep}, scores=None), opened, model)
        with terminal.busy(f"judging keep {keep:g}"):
            found = judge(model)
        error = found.nll_difference_se
        trials.append(trial := Trial(keep, found.nll_difference, error if math.isfinite(error) else None))
        terminal.note(f"keep {keep:.3g}: {math.exp(trial.log):.3f} times the dense perplexity")
        if trial.log <= math.log(most) and (best is None or keep < best[0].keep):
            best = trial, model, plan, found.tokens
    if best is None:
        nearest = min(trials, key=lambda trial: trial.log)
        raise UserError(
            f"no ratio that was tried holds {most:g}: with keep {nearest.keep:.3g} it is {math.exp(nearest.log):.3f}; "
            "ask for more, or for another method or text"
        )
    trial, model, plan, tokens = best
    told = {**said(trial, most), "tokens": tokens, "trials": [asdict(each) for each in trials]}
    return Made(model, replace(plan, provenance={**plan.provenance, "quality": told}), {}, [], told)


def _shares(asked: Asked, opened: Opened) -> Sequence[float]:
    """The ratios that can be tried: of few units every number that a layer may be left with.

    Raises: UserError for several kinds of which each would have ratios of its own, and where nothing can go.
    """
    sites = find_sites(opened.dense, asked.kinds, asked.spec)
    scope = asked.budget.scope if asked.budget else asked["scope"] or asked.row.scope
    several = len(sites) > len(asked.kinds)  # layers that can make up for each other
    counts = {site.count for site in sites}
    if (scope == "global" and several) or min(counts) >= len(FINE):
        return FINE
    if len(counts) > 1:
        one_kind = "name one kind of --units, or " if len(asked.kinds) > 1 else "give "
        raise UserError(
            f"--max-ppl-ratio finds one ratio, and layers of {' or '.join(map(str, sorted(counts)))} units have their "
            f"own; {one_kind}--scope global"
        )
    (count,) = counts
    if count <= sites[0].least:
        raise UserError(f"no {asked.kinds[0]} can go: {count} must stay, and no more are left; name other --units")
    return [left / count for left in range(sites[0].least, count, sites[0].parts)]


def said(trial: Trial, most: float) -> dict[str, Any]:
    """ratio: of perplexities, with the interval that holds 95% of what other text of this kind would give. sure: how
    likely the ratio is no more than `most` there, by the same error; None from one window."""
    if not trial.se:
        return {"max_ppl_ratio": most, "ratio": math.exp(trial.log), "interval": None, "sure": None}
    around = NormalDist(trial.log, trial.se)
    interval = [math.exp(around.inv_cdf(share)) for share in (0.025, 0.975)]
    sure = around.cdf(math.log(most))
    return {"max_ppl_ratio": most, "ratio": math.exp(trial.log), "interval": interval, "sure": sure}


def next_keep(trials: Sequence[Trial], wanted: float, shares: Sequence[float] = FINE) -> float | None:
    """The one of `shares` to try next; None where enough is known. wanted: the logarithm that is to be held.

    >>> next_keep([Trial(0.86, 0.1, 0.01)], 0.2), next_keep([Trial(0.86, 0.1, 0.01), Trial(0.76, 0.25, 0.01)], 0.2)
    (0.78, 0.78)
    """
    low = max([trial.keep for trial in trials if trial.log > wanted], default=0.0)
    high = min([trial.keep for trial in trials if trial.log <= wanted], default=1.0)
    between = [share for share in shares if low < share < high]
    if len(trials) == TRIALS or not between:
        return None
    near = sorted(trials, key=lambda trial: abs(trial.log - wanted))[:2]
    guess = 1 - _removed(near, wanted) if near else FIRST
    return min(between, key=lambda share: abs(share - guess))


def _removed(near: Sequence[Trial], wanted: float) -> float:
    """The share to remove, by a power through the two nearest trials, or the nearest."""
    shares, logs = [1 - trial.keep for trial in near], [max(trial.log, 1e-4) for trial in near]
    power = _USUAL
    if len(near) > 1 and shares[0] != shares[1]:
        power = math.log(logs[1] / logs[0]) / math.log(shares[1] / shares[0])
    return shares[0] * (wanted / logs[0]) ** (1 / min(max(power, _POWERS[0]), _POWERS[1]))


def _judge(terminal: Teller, asked: Asked, opened: Opened) -> Callable[..., Any]:
    """What compares a pruned model with the dense one on the validation split."""
    whose = {"tokenizer": opened.tokenizer, "model": opened.dense}
    text = asked.corpus.text("validation", JUDGED_TOKENS, **whose)
    if opened.text is not None:
        check_held_out(text, opened.text, "which says how good a model is")
    terminal.note(f"judging by {text.name}")
    ids = stream(opened.tokenizer, text, JUDGED_TOKENS)[0]
    return partial(perplexity, input_ids=ids, baseline=opened.dense, begin=Beginning.of(opened.tokenizer).ids)
