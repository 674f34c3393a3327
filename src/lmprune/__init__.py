"""lmprune: prune the feed-forward neurons of generative language models.

>>> import lmprune  # doctest: +SKIP
>>> model, tokenizer = lmprune.load("smollm2-135m"), lmprune.load_tokenizer("smollm2-135m")  # doctest: +SKIP
>>> plan = lmprune.prune(model, tokenizer, keep=0.75, data="python-docs")  # doctest: +SKIP
>>> lmprune.save(model, "smaller", tokenizer=tokenizer, plan=plan)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints.checkpoint import save
    from .checkpoints.models import load, load_tokenizer
    from .checkpoints.shrinking import shrink
    from .errors import UserError
    from .gradual import GradualPruner, GradualSettings
    from .plan import PrunePlan
    from .pruning import prune
    from .sites.families import FFNSpec, register_family
    from .training.prune_callback import PruneCallback

__all__ = [
    "FFNSpec",
    "GradualPruner",
    "GradualSettings",
    "PruneCallback",
    "PrunePlan",
    "UserError",
    "load",
    "load_tokenizer",
    "prune",
    "register_family",
    "save",
    "shrink",
]

_HOME = {
    "FFNSpec": "sites.families",
    "GradualPruner": "gradual.pruner",
    "GradualSettings": "gradual.pruner",
    "PruneCallback": "training.prune_callback",
    "PrunePlan": "plan",
    "UserError": "errors",
    "load": "checkpoints.models",
    "load_tokenizer": "checkpoints.models",
    "prune": "pruning",
    "register_family": "sites.families",
    "save": "checkpoints.checkpoint",
    "shrink": "checkpoints.shrinking",
}


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when something of them is used, so that `lmprune --help` is instant."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
