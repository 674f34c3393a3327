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
    from .methods import Method, register_method
    from .plan import PrunePlan
    from .pruning import prune
    from .scores import redundancy, statistics
    from .scores.criteria import Criterion, criterion
    from .sites import masks
    from .sites.families import FFNSpec, register_family
    from .sites.find import find_sites
    from .training.prune_callback import PruneCallback

#: name -> the module it is in, which is imported when the name is asked for
_HOME = {
    "Criterion": "scores.criteria",
    "FFNSpec": "sites.families",
    "GradualPruner": "gradual.pruner",
    "GradualSettings": "gradual.settings",
    "Method": "methods",
    "PruneCallback": "training.prune_callback",
    "PrunePlan": "plan",
    "UserError": "errors",
    "criterion": "scores.criteria",
    "find_sites": "sites.find",
    "load": "checkpoints.models",
    "load_tokenizer": "checkpoints.models",
    "prune": "pruning",
    "register_family": "sites.families",
    "register_method": "methods",
    "save": "checkpoints.checkpoint",
    "shrink": "checkpoints.shrinking",
}
#: modules by their short names: `from lmprune import masks`
_MODULES = {
    "masks": "sites.masks",
    "redundancy": "scores.redundancy",
    "statistics": "scores.statistics",
}

__all__ = [
    "Criterion",
    "FFNSpec",
    "GradualPruner",
    "GradualSettings",
    "Method",
    "PruneCallback",
    "PrunePlan",
    "UserError",
    "criterion",
    "find_sites",
    "load",
    "load_tokenizer",
    "masks",
    "prune",
    "redundancy",
    "register_family",
    "register_method",
    "save",
    "shrink",
    "statistics",
]


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()})


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when something of them is used, so that `lmprune --help` is instant."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
