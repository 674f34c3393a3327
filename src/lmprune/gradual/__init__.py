"""Pruning while a model trains; knows no trainer. `GradualPruner` is all that a training loop needs."""

from .pruner import GradualPruner
from .settings import GradualSettings

__all__ = ["GradualPruner", "GradualSettings"]
