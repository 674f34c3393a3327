"""Find the sites of a model: where its table row, or the caller's, says that units are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast, overload

from torch import nn

from ..checkpoints.shim import is_gone
from ..errors import UserError
from .address import LAYER_KINDS, Kind, LayerKind, SeamKind, check_kind
from .expert_neurons import expert_neurons
from .experts import experts
from .families import FFNSpec, attention_of, family_of
from .heads import heads
from .layers import Layers, layers, leaving
from .mixtures import MixtureSpec, mixture_of
from .neurons import neurons
from .place import Place
from .site import Site


@overload
def find_sites(
    model: nn.Module, units: Sequence[SeamKind] = ("neurons",), spec: FFNSpec | None = None
) -> list[Site]: ...
@overload
def find_sites(model: nn.Module, units: Sequence[Kind], spec: FFNSpec | None = None) -> Sequence[Place]: ...
def find_sites(
    model: nn.Module, units: Sequence[Kind] = ("neurons",), spec: FFNSpec | None = None
) -> Sequence[Place] | list[Site]:
    """The model's sites of these kinds, in the order in which a forward pass meets them.

    model: a causal-LM model. spec: paths to use instead of the FAMILIES row of `model.config.model_type`.
    Raises: UserError where it is no model, a kind is unknown or can't be removed from it, or a path does not exist.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"expected a model, such as lmprune.load returns, got {type(model).__name__} {model!r:.50}")
    wanted: dict[Kind, None] = dict.fromkeys(check_kind(kind) for kind in units)
    found: list[Place] = []
    for kind in wanted:
        if kind not in FINDERS:
            raise UserError(f"lmprune can't remove {kind} yet; it can {' and '.join(FINDERS)}")
        try:
            found += FINDERS[kind](model, getattr(model, "config", None), spec)
        except AttributeError as error:
            raise UserError(f"{type(model).__name__} does not have the layer that was named: {error}") from None
    return sorted(found, key=lambda place: place.address.order())


def _neurons(model: nn.Module, config: Any, spec: FFNSpec | None) -> list[Site]:
    spec = spec or family_of(config)
    blocks = blocks_of(model, spec)
    leaves, found = leaving(blocks, config, "ffns"), enumerate(blocks)
    return [neurons(block, spec, layer, leaves) for layer, block in found if not is_gone(block, spec.down)]


def _heads(model: nn.Module, config: Any, spec: FFNSpec | None) -> list[Site]:
    blocks, attention = blocks_of(model, spec or family_of(config)), attention_of(config)
    leaves, found = leaving(blocks, config, "attentions"), enumerate(blocks)
    return [heads(block, attention, config, layer, leaves) for layer, block in found if not is_gone(block, attention.o)]


def _layers(kind: LayerKind, model: nn.Module, config: Any, spec: FFNSpec | None) -> list[Layers]:
    return [layers(blocks_of(model, spec or family_of(config)), config, kind)]


def _in_mixture(
    make: Callable[[nn.Module, MixtureSpec, int], Place | None], model: nn.Module, config: Any, _spec: FFNSpec | None
) -> list[Place]:
    mixture = mixture_of(config)
    blocks = cast(Sequence[nn.Module], model.get_submodule(mixture.blocks))
    found = [make(block, mixture, layer) for layer, block in enumerate(blocks)]
    return [place for place in found if place is not None]


#: A kind of units, and the function that finds them in a model with this config, by the caller's spec or the tables.
#: Raises: UserError where the model has none, AttributeError where it lacks a path.
FINDERS: Mapping[Kind, Callable[[nn.Module, Any, FFNSpec | None], Sequence[Place]]] = {
    "neurons": _neurons,
    "heads": _heads,
    "experts": partial(_in_mixture, experts),
    "expert_neurons": partial(_in_mixture, expert_neurons),
    **{kind: partial(_layers, kind) for kind in LAYER_KINDS},
}


def blocks_of(model: nn.Module, spec: FFNSpec) -> nn.ModuleList:
    """The model's list of blocks. Raises: UserError where it can't be found."""
    if spec.blocks:
        try:
            return cast(nn.ModuleList, model.get_submodule(spec.blocks))
        except AttributeError as error:
            raise UserError(f"{type(model).__name__} has no list of blocks at {spec.blocks!r}: {error}") from None
    every = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    lists = [m for m in every if _has(m[0], spec)]
    if not lists:
        block = max(every, key=len)[0] if every else model
        there = [name for name, module in block.named_modules() if name and not any(module.children())]
        raise UserError(
            f"no block of {type(model).__name__} holds {spec.up!r} and {spec.down!r}; one holds {', '.join(there)}"
        )
    if len(lists) > 1:
        raise UserError(
            f"{len(lists)} lists of blocks in {type(model).__name__} hold {spec.up!r} and {spec.down!r}; "
            "name the one to prune with --ffn blocks=…"
        )
    return lists[0]


def _has(block: nn.Module, spec: FFNSpec) -> bool:
    names = {name for name, _ in block.named_modules()}
    return spec.up in names and spec.down in names
