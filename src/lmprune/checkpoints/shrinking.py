"""Carry out a plan: cut the model, and make its config say so."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..plan import PrunePlan
from ..sites.families import FFNSpec
from ..sites.ffn import FFN, find_ffns
from ..sites.limits import check_in_memory
from . import shim


def shrink(model: Any, plan: PrunePlan, spec: FFNSpec | None = None) -> Any:
    """Cut the model in place down to the plan's neurons, update its config, and return it.

    spec: paths to use instead of the FAMILIES row.
    Raises: UserError where the plan was made for a model of other widths; the model is then untouched.
    """
    ffns = find_ffns(model, spec)
    check_in_memory(model)
    check_plan(plan, ffns)
    for ffn, kept in zip(ffns, plan.indices(), strict=True):
        ffn.keep(kept)
    record_widths(model, ffns)
    return model


def check_plan(plan: PrunePlan, ffns: Sequence[FFN]) -> None:
    """Raises: UserError where the plan was made for a model of other widths."""
    if not isinstance(plan, PrunePlan):
        raise UserError(f"expected a PrunePlan, got {type(plan).__name__}; PrunePlan.load reads one from a file")
    widths = [ffn.width for ffn in ffns]
    if widths != list(plan.widths_before):
        raise UserError(
            f"the plan is for {_describe(plan.widths_before)}, but the model has {_describe(widths)}; "
            "apply it to the model it was made from"
        )


def record_widths(model: Any, ffns: Sequence[FFN]) -> None:
    """Make class and config describe the model's present FFN shapes, so that saving and reloading give them back.

    Where the stock class can build these shapes from its own config (one width in all layers, and a config field for
    it), the model is a plain one. Where it can't, `config.lmprune` holds the record that `shim` builds from,
    `config.per_layer_config` the widths in transformers' public schema (which also keeps the stock class from
    building a wrong model), and the model's class becomes `Pruned<Stock>`.
    Raises: UserError where a model whose code is not part of transformers would need the shim.
    """
    config, key = model.config, ffns[0].spec.width_key
    widths = [ffn.width for ffn in ffns]
    stock = shim.stock_class(type(model))
    native = stock.__module__.startswith("transformers.")
    plain = _plain(config, native)
    if key and len(set(widths)) == 1:
        setattr(plain, key, widths[0])
    if _shapes(_on_meta(stock, plain)) == _shapes(model):
        _adopt(model, stock, plain)
        return
    if not native:
        raise UserError(
            f"{stock.__name__} is not part of transformers, so a checkpoint with these FFN widths could not be loaded; "
            "prune with --scope local, and name the config field that holds the width with --ffn …,width_key=…"
        )
    pruned = _plain(config, native)
    spec = dataclasses.replace(ffns[0].spec, blocks=_path_of_blocks(model, ffns))
    down_bias = [ffn.reader_bias() is not None for ffn in ffns]
    pruned.lmprune = {"spec": dataclasses.asdict(spec), "widths": widths, "down_bias": down_bias}
    if key:
        if set(widths) == {getattr(pruned, key)}:  # nothing would differ from the global width, and the stock class
            setattr(pruned, key, widths[0] + 1)  # would load the rest without the readers' biases
        pruned.per_layer_config = {layer: {key: width} for layer, width in enumerate(widths)}
    _adopt(model, shim.pruned_class(stock), pruned)


def stock_width(model: Any, spec: FFNSpec) -> int | None:
    """F where the model's stock class hard-codes it, else None."""
    if spec.width_key:
        return None
    stock = shim.stock_class(type(model))
    native = stock.__module__.startswith("transformers.")
    return find_ffns(_on_meta(stock, _plain(model.config, native)), spec)[0].width


def _plain(config: Any, native: bool) -> Any:
    """A copy without anything that lmprune wrote. `auto_map` names code: the shim's (written anew by every save), or
    what the model was published with, which a native class of transformers does not need."""
    plain = copy.deepcopy(config)
    plain.per_layer_config = None
    for key in ("lmprune", *(("auto_map",) if native else ())):
        plain.__dict__.pop(key, None)
    return plain


def _adopt(model: Any, cls: type[Any], config: Any) -> None:
    # Submodules share the model's config object, so its contents change, not its identity. The parameters are in
    # place already; the class only decides what `save_pretrained` writes.
    model.config.__dict__.clear()
    model.config.__dict__.update(config.__dict__)
    model.__class__ = cls


def _on_meta(cls: type[Any], config: Any) -> nn.Module:
    with torch.device("meta"):
        return cls(copy.deepcopy(config))


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}


def _path_of_blocks(model: nn.Module, ffns: Sequence[FFN]) -> str:
    """The list of blocks by its name in the model; a hand-made spec may leave it to be found."""
    return next(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and module[0] is ffns[0].block
    )


def _describe(widths: Sequence[int]) -> str:
    sizes = sorted(set(widths))
    span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{len(widths)} layers of {span} neurons"
