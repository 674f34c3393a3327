"""What the errors of one kind of unit are worth in those of another.

A site's error is measured with all else dense. Several sites of a kind that lose units together do more harm than that
adds up to, and not equally so: of SmolLM2's heads, many times more than of its neurons. So what the kinds come to is
measured, on the whole model, and their errors are weighed by it before they are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ..sites.address import Kind
from .levels import Choice, Choices
from .search import Judge, ranking

#: how often a choice is made, and what each kind's part of it does to the loss is measured
_TURNS = 3
#: the weight of a kind that is to stay as it is
_NEVER = 1e12


def weighed(choices: Choices, rates: Mapping[Kind, float]) -> Choices:
    """The same choices, each kind's errors times its rate; 1 where there is none."""
    levels = tuple(replace(each, errors=each.errors * rates.get(each.address.kind, 1.0)) for each in choices.levels)
    return replace(choices, levels=levels)


def exchange_rates(choices: Choices, judge: Judge) -> dict[Kind, float]:
    """By which the kinds' errors are weighed, so that the ranking's choice is the best found by the judge.

    Tried are: the errors as they are; three times the rates at which each kind's part of a choice, alone, adds to the
    loss (from the second time on the geometric mean with the rate before, since a rate holds only near its choice); and
    each kind alone, as far as it goes.
    """
    kinds: list[Kind] = list(dict.fromkeys(each.address.kind for each in choices.levels))
    rates: dict[Kind, float] = dict.fromkeys(kinds, 1.0)
    if len(kinds) == 1:
        return rates
    tried: list[dict[Kind, float]] = [dict(rates)]
    for turn in range(_TURNS):
        choice = ranking(weighed(choices, rates))
        for kind in kinds:
            part = _part(choices, choice, kind)
            foretold = sum(float(each.errors[level]) for each, level in zip(choices.levels, part, strict=True))
            if foretold > 0:
                found = max(judge.loss(part, judge.rounds - 1), 1e-12) / foretold
                rates[kind] = found if turn == 0 else math.sqrt(rates[kind] * found)
        tried.append(dict(rates))
    for kind in kinds:
        alone: dict[Kind, float] = {other: 1.0 if other == kind else _NEVER for other in kinds}
        tried.append(alone)
    losses: dict[Choice, float] = {}
    for candidate in tried:
        choice = ranking(weighed(choices, candidate))
        if choice not in losses:
            losses[choice] = judge.loss(choice, judge.rounds - 1)
    return min(tried, key=lambda candidate: losses[ranking(weighed(choices, candidate))])


def _part(choices: Choices, choice: Choice, kind: Kind) -> Choice:
    """The choice where only units of this kind go."""
    return tuple(level if each.address.kind == kind else 0 for each, level in zip(choices.levels, choice, strict=True))
