"""The options of `prune` about a target instead of a ratio, and about how it is spread over the layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

_PANEL = "A target instead of --keep, and where it is spent"


def _option(kind: Any, metavar: str, text: str, shown: str | bool = False) -> Any:
    return Annotated[kind, typer.Option(metavar=metavar, help=text, show_default=shown, rich_help_panel=_PANEL)]


TARGETS = ("target_params", "target_bytes", "target_speedup", "target_latency")
#: what says how much is left, in place of --keep
AIMS = (*TARGETS, "max_ppl_ratio")
#: name -> its type, and its default
_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "target_params": (_option(str | None, "N", "At most so many parameters, like 100M."), None),
    "target_bytes": (_option(str | None, "SIZE", "Weights of at most so many bytes in the file, like 80MB."), None),
    "target_speedup": (_option(str | None, "X", "So many times as fast, like 1.5."), None),
    "target_latency": (_option(str | None, "TIME", "At most so long, like 20ms."), None),
    "latency_table": (
        _option(Path | None, "FILE", "Seconds, as `lmprune latency` measured them; for the last two."),
        None,
    ),
    "latency_of": (
        _option(str, "PHASE", "What is to be fast: prefill, decode, or whole: both, of the table's tokens.", "whole"),
        "whole",
    ),
    "max_ppl_ratio": (
        _option(float | None, "X", "The smallest model with at most X times the perplexity on held-out text."),
        None,
    ),
    "budget": (
        _option(
            str | None,
            "NAME",
            "uniform: the same share of every layer. By obs's error curves: ranking, dp, evolution (docs/budgets.md).",
            "uniform",
        ),
        None,
    ),
    "search_minutes": (_option(float | None, "N", "End the search after so long."), None),
    "survivors": (
        _option(int | None, "N", "So many of the search's best choices are really cut for a try; the best stays.", "1"),
        None,
    ),
    "tune_survivors": (
        _option(int | None, "N", "Train each of these for N passes before they are compared.", "none"),
        None,
    ),
    "levels": (
        _option(Path | None, "DIR", "Keep what a search is made of in this folder, and use what is there already."),
        None,
    ),
}


def spends(command: Callable[..., None]) -> Callable[..., None]:
    """Of a command that takes any keywords: it takes these options."""
    own = list(inspect.signature(command).parameters.values())
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]
    command.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    return command
