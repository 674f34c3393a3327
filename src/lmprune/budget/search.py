"""Which level each site gets: pure functions of errors, costs and a judge of whole choices; a seed gives one answer.

Sources: SPDY and ZipLM (`dp`), EvoPress and DarwinLM (`evolution`). Where theirs draw at random, these ask the judge
first: what the loss of the whole model changes by where one site alone has another level.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, Protocol, get_args

import numpy as np

from ..progress import Progress, silent
from .dynamic import allocate
from .levels import Choice, Choices

Budgeting = Literal["uniform", "ranking", "dp", "evolution"]
BUDGETS: tuple[Budgeting, ...] = get_args(Budgeting)


class Judge(Protocol):
    """What is known of whole choices. Its loss is the divergence from the dense model on calibration text.

    rounds: how many amounts of text, growing, it can judge on.
    """

    rounds: int

    def loss(self, choice: Choice, amount: int) -> float:
        """On the first of `rounds` amounts of text, or a later one."""
        ...

    def settle(self, choice: Choice) -> None:
        """What is judged from now on differs from this choice in few sites."""
        ...

    def changes(self, choice: Choice) -> list[Mapping[int, float]]:
        """Of each site: a level near its own -> what the loss changes by where that site alone takes it."""
        ...


@dataclass(frozen=True)
class Effort:
    """How long is searched. minutes: an end before the others; None = none. generations, offspring: of `evolution`.

    reweighings: how often `dp` measures its coefficients. survivors: how many of the best choices are really cut for a
    try, beside the ranking. tune: passes over the text of the levels that each of these is trained for first.
    """

    seed: int = 0
    minutes: float | None = None
    reweighings: int = 4
    generations: int = 12
    offspring: int = 8
    survivors: int = 1
    tune: int = 0

    @property
    def turns(self) -> int:
        return self.reweighings + self.generations


@dataclass
class Course:
    """A search on its way: the best so far, and a line and a loss for each choice that was judged on all text.

    note: told of what is better than all before. progress: told of its turns.
    """

    judge: Judge
    effort: Effort
    note: Callable[[str], None] = silent
    progress: Progress | None = None
    best: Choice = ()
    loss: float = np.inf
    log: list[dict[str, Any]] = field(default_factory=list)
    evaluations: int = 0
    losses: dict[Choice, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    @property
    def over(self) -> bool:
        """Whether time is up."""
        return self.effort.minutes is not None and time.perf_counter() - self.start > 60 * self.effort.minutes

    def judged(self, choice: Choice, amount: int) -> float:
        self.evaluations += 1
        return self.judge.loss(choice, amount)

    def told(self, done: int) -> None:
        """How many of its turns are done."""
        if self.progress:
            self.progress(done, self.effort.turns)

    def offer(self, choice: Choice, by: str) -> bool:
        """Judge on all text; whether it is the best so far."""
        self.losses[choice] = found = self.judged(choice, self.judge.rounds - 1)
        seconds = round(time.perf_counter() - self.start, 1)
        if better := found < self.loss:
            self.best, self.loss = choice, found
            self.note(f"best so far: {found:.4f} nats a token from the dense model ({by}, after {seconds:.0f} s)")
        told = {"by": by, "loss": found, "best": self.loss, "evaluations": self.evaluations, "seconds": seconds}
        self.log.append(told)
        return better

    def survivors(self) -> list[Choice]:
        """The best of those that were judged on all text, the very best first."""
        return sorted(self.losses, key=self.losses.__getitem__)[: self.effort.survivors]


def ranking(choices: Choices) -> Choice:
    """The least sum of errors as they are. The budget must be within reach."""
    found = allocate(choices.errors, choices.costs, choices.most)
    assert found is not None, "the smallest levels fit"
    return found


#: how many levels away from its own a site may go in one step of `dp`, at first
_REACH = 8


def dp(choices: Choices, course: Course) -> np.ndarray | None:
    """The least sum of errors, each site's times a coefficient: one at first, and then how many times as much the loss
    rises from where the site stands as its error.

    That is true nearby: a step goes no further than some levels, half as many after each that made it worse.
    Returns the coefficients at the best choice, where they were measured.
    """
    if not course.best:
        course.offer(ranking(choices), "ranking")
    reach, weights = _REACH, None
    for turn in range(course.effort.reweighings):
        if course.over or not reach:
            break
        course.told(turn)
        if weights is None:
            weights = coefficients(choices, course.best, course.judge.changes(course.best))
        found = nearby(choices, course.best, weights, reach)
        if found != course.best and course.offer(found, "dp"):
            weights = None
        else:
            reach //= 2
    return weights


def nearby(choices: Choices, choice: Choice, weights: np.ndarray, reach: int) -> Choice:
    """The least weighted sum of errors of all within the budget that are no more than `reach` levels away."""
    within = [
        np.where(abs(np.arange(len(errors)) - level) <= reach, weight * errors, np.inf)
        for errors, level, weight in zip(choices.errors, choice, weights, strict=True)
    ]
    return least(choices, within, choice)


def least(choices: Choices, errors: Sequence[np.ndarray], choice: Choice) -> Choice:
    """The least sum of these errors (S,), some of which may be infinite; at worst the choice, which is within them."""
    found = allocate(errors, choices.costs, choices.most)
    assert found is not None
    reached = all(np.isfinite(each[level]) for each, level in zip(errors, found, strict=True))
    return found if reached else choice  # buckets of cost are rounded up, so that not even the choice may fit


def coefficients(choices: Choices, choice: Choice, changes: Sequence[Mapping[int, float]]) -> np.ndarray:
    """How many times as much the loss rises from a site's level as its error; their median stands for those not known,
    and none is more than ten times as far from it."""
    found = np.full(len(choice), np.nan)
    for place, (errors, level, near) in enumerate(zip(choices.errors, choice, changes, strict=True)):
        low, high = min((level, *near)), max((level, *near))
        rise = errors[high] - errors[low]
        if high > low and rise > 0:
            found[place] = max(near.get(high, 0.0) - near.get(low, 0.0), 0.0) / rise
    middle = float(np.nanmedian(found)) if np.isfinite(found).any() else 1.0
    if middle <= 0:
        return np.ones(len(choice))
    return np.clip(np.nan_to_num(found / middle, nan=1.0), 0.1, 10.0)


def evolution(choices: Choices, course: Course) -> None:
    """From `dp`'s answer on: each generation's offspring differ from the best by a few swaps at equal cost, drawn and
    sifted by the errors with `dp`'s coefficients; fewer and fewer are judged on more and more text, and the last one
    takes the parent's place where it is better."""
    weights = dp(choices, course)
    if course.over:
        return
    draw = Random(course.effort.seed)
    if weights is None:
        weights = coefficients(choices, course.best, course.judge.changes(course.best))
    for turn in range(course.effort.generations):
        course.told(course.effort.reweighings + turn)
        course.judge.settle(course.best)
        brood = list(dict.fromkeys(_brood(choices, course, draw, weights)))
        for amount in range(course.judge.rounds - 1):
            if course.over:
                return
            losses = {each: course.judged(each, amount) for each in brood}
            brood = sorted(brood, key=losses.__getitem__)[: max(len(brood) // 2, 1)]
        if course.over or not brood:
            return
        course.offer(brood[0], "evolution")


#: how many random children each child is the most promising of
_SIFTED = 8


def _brood(choices: Choices, course: Course, draw: Random, weights: np.ndarray) -> Iterator[Choice]:
    for _ in range(course.effort.offspring):
        swaps = min(draw.randint(1, 3), draw.randint(1, 3))
        drawn = [mutated(choices, course.best, draw, swaps) for _ in range(_SIFTED)]
        new = [each for each in drawn if each != course.best]
        if new:
            yield min(new, key=lambda child: weighted(choices, child, weights))


def weighted(choices: Choices, choice: Choice, weights: np.ndarray) -> float:
    """The sum of a choice's errors, each site's times its coefficient."""
    return float(sum(w * errors[level] for w, errors, level in zip(weights, choices.errors, choice, strict=True)))


def mutated(choices: Choices, parent: Choice, draw: Random, swaps: int) -> Choice:
    """A choice within the budget near the parent: as often as `swaps` says one site gets a level back and others give
    theirs; what is left over goes to whoever it is enough for."""
    levels, places = list(parent), range(len(parent))
    last = [len(each.counts) - 1 for each in choices.levels]
    gave: set[int] = set()
    for _ in range(swaps):
        able = [i for i in places if levels[i] > 0 and i not in gave]
        if not able:
            break
        gains = draw.choice(able)
        levels[gains] -= 1
        while not choices.fits(tuple(levels)):
            able = [i for i in places if levels[i] < last[i] and i != gains]
            if not able:
                return parent
            gives = draw.choice(able)
            gave.add(gives)
            levels[gives] += 1
    for i in draw.sample(places, len(levels)):
        if levels[i] > 0 and i not in gave:
            raised = [level - (place == i) for place, level in enumerate(levels)]
            if choices.fits(tuple(raised)):
                levels = raised
    return tuple(levels)


#: the searches that ask a judge
SEARCHES: Mapping[Budgeting, Callable[[Choices, Course], object]] = {"dp": dp, "evolution": evolution}
