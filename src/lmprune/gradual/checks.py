"""What can't be pruned while it trains, in a sentence each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import UserError
from ..methods import Method, check_scope, needs_text
from .settings import GradualSettings


def check_trainable(method: Method, scope: str | None, settings: GradualSettings, calibration: Tensor | None) -> None:
    """scope: as it was given. Raises: UserError where the method can't prune a model in training, or not like this."""
    check_scope(method, scope)
    if settings.warm_start and not method.learned:
        raise UserError(f"method {method.name!r} has no learned scores to warm-start; leave out --warm-start")
    if (needs_text(method) or settings.warm_start) and calibration is None:
        raise UserError(f"method {method.name!r} scores neurons on text while it prunes; pass calibration tokens")
    if method.solver.adds_bias:
        raise UserError(
            f"method {method.name!r} gives layers a bias, which an optimizer at work can't take in; "
            f"use --schedule oneshot, or --method {method.solver.name}"
        )


def check_loss(loss: Any) -> None:
    """Raises: UserError for what is no loss."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"expected the loss, a tensor with one number in it, got {what}")
