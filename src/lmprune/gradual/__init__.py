"""Pruning while a model trains; knows no trainer. `GradualPruner` is all that a training loop needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pruner import GradualPruner, GradualSettings

__all__ = ["GradualPruner", "GradualSettings"]


def __getattr__(name: str) -> Any:
    """Only when it is asked for: the pruner reads the table of methods, and that table the penalties here."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import pruner

    return getattr(pruner, name)
