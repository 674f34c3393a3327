"""How long pruning at once will take, told before it begins; and as much text as fits into a time that was given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import UserError
from ..progress import Phase, Teller, duration
from ..sites.pages import pages_of
from ..solve.duration import Work, measure, recovery
from ..solve.solver import Solver

#: of calibration: what `--quick` reads
QUICK_TOKENS = 4096
_LONG = 20.0  # seconds from which on people want to know beforehand
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_budget(text: str | None) -> float | None:
    """Seconds. Raises: UserError.

    >>> parse_budget("90s"), parse_budget("10m"), parse_budget("1.5h")
    (90.0, 600.0, 5400.0)
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*", text)
    if found is None or float(found[1]) == 0:
        raise UserError(f"--time-budget {text!r} is no time; expected something like 90s, 10m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def fit(
    terminal: Teller, model: Any, solver: Solver, work: Work, budget: str | None, spent: float, passes: int = 0
) -> tuple[int, list[Phase]]:
    """The tokens of calibration that are read, and the phases of that, which are told where they are long.

    budget: as given; spent: seconds of it that have gone, or will go beside; passes: over the text after the cut.
    Raises: UserError.
    """
    pace = None  # of a model that is read block by block the files set it
    if pages_of(model) is None:
        pace = measure(model, work.seq_len, gradients=solver.needs_gradients)
    seconds = parse_budget(budget)

    def phases(tokens: int) -> list[Phase]:
        found = solver.phases(replace(work, tokens=tokens), pace) if pace else []
        return found + recovery(pace, tokens, passes) if found and pace else []

    tokens = work.tokens
    if seconds is not None:
        if not phases(tokens):
            raise UserError(f"drop --time-budget: how long {solver.name} takes here is not known beforehand")
        tokens = fitting(phases, tokens, work.seq_len, seconds, spent)
        terminal.note(f"{tokens:,} tokens of calibration fit into {budget}")
    found = phases(tokens)
    if total(found) >= _LONG:
        parts = ", ".join(f"{phase.name} {duration(phase.seconds)}" for phase in found)
        terminal.note(f"this will take about {duration(total(found))}: {parts}")
    return tokens, found


def fitting(phases: Callable[[int], list[Phase]], most: int, seq_len: int, seconds: float, spent: float) -> int:
    """The most tokens, whole sequences, whose phases fit into what is left of `seconds`.

    spent: what has gone already, and will go beside the phases. Raises: UserError where not even a sequence fits.
    """
    few, many = 0, max(most // seq_len, 1)
    while few < many:
        middle = (few + many + 1) // 2
        few, many = (middle, many) if spent + total(phases(middle * seq_len)) <= seconds else (few, middle - 1)
    if few == 0:
        needed = spent + total(phases(seq_len))
        raise UserError(
            f"a time budget of {seconds:.0f} s is too small: with one sequence of {seq_len} tokens it takes about "
            f"{needed:.0f} s here; give more, or take another --method, a shorter --seq-len or --answer-tokens 0"
        )
    return few * seq_len


def total(phases: Sequence[Phase]) -> float:
    return sum(phase.seconds for phase in phases)


def without_quick(options: Mapping[str, Any], training: object) -> dict[str, Any]:
    """The options of `prune` with what --quick stands for in its place. Raises: UserError where it says nothing."""
    if training is not None:
        for name in ("quick", "time_budget"):
            if options[name]:
                raise UserError(f"drop --{name.replace('_', '-')}: it goes with pruning at once, not with training")
    if options["time_budget"] and options["plan"]:
        raise UserError("drop --time-budget, or --plan, with which layers are only repaired: say --calibration-tokens")
    if options["quick"] and options["calibration_tokens"] is not None:
        raise UserError(f"drop --calibration-tokens, or --quick, which reads {QUICK_TOKENS:,} tokens")
    parse_budget(options["time_budget"])
    tokens = QUICK_TOKENS if options["quick"] else options["calibration_tokens"]
    return {**options, "quick": False, "calibration_tokens": tokens}
