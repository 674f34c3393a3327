"""How the keep ratio falls while a model trains: pure functions of the optimizer step
(docs/methods.md, "Schedule")."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..budget.selection import check_keep
from ..errors import UserError

#: steps that are done -> the keep ratio of the next one, in (0, 1]
Schedule = Callable[[int], float]

#: the shares of a run that the cubic schedule waits before it begins, and rests after it has arrived
WAIT, REST = 0.1, 0.3
#: fewer steps than this would jump, not descend
MIN_STEPS = 10


def oneshot(keep: float) -> Schedule:
    """`keep` from the first step on.

    >>> oneshot(0.5)(0)
    0.5
    """
    check_keep(keep)
    return lambda _step: keep


def cubic(keep: float, num_steps: int) -> Schedule:
    """1 for the first tenth of the run, then down to `keep` along 1 - (1 - x)³, and `keep` for the last three tenths.

    Raises: UserError where there are too few steps to descend in.

    >>> [round(cubic(0.25, 100)(step), 3) for step in (0, 10, 11, 40, 70, 99)]
    [1.0, 1.0, 0.963, 0.344, 0.25, 0.25]
    """
    check_keep(keep)
    if num_steps < MIN_STEPS:
        raise UserError(
            f"{num_steps} training steps are too few for the cubic schedule, which needs at least {MIN_STEPS}; "
            "give more --steps, or prune at once with --schedule oneshot"
        )
    start, stop = WAIT * num_steps, (1 - REST) * num_steps

    def at(step: int) -> float:
        done = min(max((step - start) / (stop - start), 0.0), 1.0)
        return keep + (1 - keep) * (1 - done) ** 3

    return at


def descent(num_steps: int) -> Schedule:
    """How much of the cubic descent is still to come: 1 at first, 0 at the end; what `soft`'s threshold follows."""
    tiny = cubic(0.5, num_steps)
    return lambda step: 2 * tiny(step) - 1


def milestone_steps(num_steps: int, number: int) -> list[int]:
    """The steps at which a costly criterion is asked again: `number` of them, evenly over the cubic's descent.

    The last is the step from which on the keep ratio is the final one.

    >>> milestone_steps(100, 4)
    [25, 40, 55, 70]
    """
    start, stop = WAIT * num_steps, (1 - REST) * num_steps
    return sorted({math.ceil(start + (stop - start) * (i + 1) / number) for i in range(number)})
