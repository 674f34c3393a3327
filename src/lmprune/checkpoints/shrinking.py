"""Carry out a plan: cut the model, and make its config say so."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from ..errors import UserError
from ..plan import PrunePlan
from ..sites.address import Address, check_apart
from ..sites.branches import CACHE_INDICES, MADE_OF_INDEX
from ..sites.families import ATTENTION, AttentionSpec, FFNSpec, family_of
from ..sites.find import blocks_of, find_sites
from ..sites.heads import head_counts, heads
from ..sites.layers import check_left
from ..sites.limits import check_in_memory
from ..sites.mixtures import MIXTURES, mixture_of
from ..sites.pages import here
from ..sites.place import Place
from ..sites.site import Site
from . import shim


def shrink(model: Any, plan: PrunePlan, spec: FFNSpec | None = None) -> Any:
    """Cut the model in place down to the plan's units, update its config, and return it.

    spec: paths to use instead of the FAMILIES row.
    Raises: UserError where the plan was made for a model of other shapes; the model is then untouched.
    """
    if not isinstance(plan, PrunePlan):
        raise UserError(f"expected a PrunePlan, got {type(plan).__name__}; PrunePlan.load reads one from a file")
    sites = find_sites(model, plan.kinds, spec)
    check_in_memory(model)
    check_plan(plan, sites)
    kept = plan.indices(site.address for site in sites)
    check_left(sites, kept)
    for site, units in zip(sites, kept, strict=True):
        here(site.block)
        site.keep(units)
    record_shapes(model, spec)
    return model


def check_plan(plan: PrunePlan, sites: Sequence[Place]) -> None:
    """Raises: UserError where the plan was made for a model of other shapes, or for other kinds of units."""
    counts = {site.address: site.count for site in sites}
    if counts != dict(plan.counts_before):
        raise UserError(
            f"the plan is for {_describe(plan.counts_before)}, but the model has {_describe(counts)}; "
            "apply it to the model it was made from"
        )
    check_apart(plan.kinds)
    for site, kept in zip(sites, plan.indices(site.address for site in sites), strict=True):
        site.check(kept)


def record_shapes(model: Any, spec: FFNSpec | None = None) -> None:
    """Make class and config describe the model's present shapes, so that saving and reloading give them back.

    Where the stock class can build these shapes from its own config (one width, or number of heads, in all layers, and
    a config field for it; nothing missing inside a layer), the model is a plain one. Where it can't, `config.lmprune`
    holds the record that `shim` builds from, `config.per_layer_config` the widths in transformers' public schema (which
    also keeps the stock class from building a wrong model), and the model's class becomes `Pruned<Stock>`.
    spec: paths to use instead of the FAMILIES row.
    Raises: UserError where a model whose code is not part of transformers would need the shim.
    """
    config, stock = model.config, shim.stock_class(type(model))
    if spec is None and config.model_type not in MIXTURES:
        spec = family_of(config)
    told = _told_of_layers(model, spec)
    native = stock.__module__.startswith("transformers.")
    plain = _plain(config, native)
    for key, counts in told.items():
        count, *others = set(counts.values()) - {0}
        if not others:
            setattr(plain, key, count)
    if spec is not None:
        _record_heads(model, plain, spec)
    as_stock = _on_meta(stock, plain)
    if _shapes(as_stock) == _shapes(model) and not _placed(model, as_stock, spec):
        _adopt(model, stock, plain)
        return
    if not native:
        raise UserError(
            f"{stock.__name__} is not part of transformers, so a checkpoint with these FFN widths could not be loaded; "
            "prune with --scope local, and name the config field that holds the width with --ffn …,width_key=…"
        )
    pruned = _plain(config, native)
    telling = {key: counts for key, counts in told.items() if set(counts.values()) != {getattr(pruned, key)}}
    if told and not telling:  # nothing would differ from the global number, and the stock class would load the rest
        key, counts = next(iter(told.items()))  # without what it has no place for
        setattr(pruned, key, getattr(pruned, key) + 1)
        telling = {key: counts}
    pruned.lmprune = _record(model, _on_meta(stock, pruned), spec)
    if spec is not None:
        # not for the shim: whoever prunes it again needs to know where its FFN is, where no table knows the type
        pruned.lmprune["spec"] = dataclasses.asdict(dataclasses.replace(spec, blocks=_path_of_blocks(model, spec)))
    if telling:
        layers = next(iter(telling.values()))
        pruned.per_layer_config = {n: {key: counts[n] for key, counts in telling.items()} for n in layers}
    _adopt(model, shim.pruned_class(stock), pruned)


def is_stock(model: Any) -> bool:
    """Whether transformers' own class opens its checkpoint."""
    return type(model).__module__.startswith("transformers.")


def _told_of_layers(model: Any, spec: FFNSpec | None) -> dict[str, dict[int, int]]:
    """Config fields that number units, and how many each layer has: neurons, or experts and the neurons in them."""
    if spec is None:
        mixture = mixture_of(model.config)
        experts, inside = find_sites(model, ("experts",)), find_sites(model, ("expert_neurons",))
        return {
            mixture.count_key: {place.address.layer: place.count for place in experts},
            mixture.width_key: {place.address.layer: place.count // place.parts for place in inside},
        }
    widths = {site.layer: site.count for site in find_sites(model, spec=spec)}
    by_layer = {layer: widths.get(layer, 0) for layer in range(len(blocks_of(model, spec)))}
    return {spec.width_key: by_layer} if spec.width_key else {}


def _record_heads(model: Any, plain: Any, spec: FFNSpec) -> None:
    """The number of heads, where all layers have one that is not the config's. The head size is written out: it is no
    longer what a config without it implies."""
    attention = ATTENTION.get(model.config.model_type)
    if attention is None or not attention.in_config:
        return
    found = {head_counts(block, attention) for _, block in _attending(model, attention, spec)}
    if len(found) != 1 or (counts := found.pop()).queries == plain.num_attention_heads:
        return
    before = dict(plain.__dict__)
    plain.head_dim, plain.num_attention_heads, plain.num_key_value_heads = counts.dim, counts.queries, counts.groups
    try:
        plain.validate()
    except StrictDataclassError:  # some want a number of heads that divides the model's width
        plain.__dict__.clear()
        plain.__dict__.update(before)


def _attending(model: Any, attention: AttentionSpec, spec: FFNSpec) -> Iterator[tuple[int, nn.Module]]:
    """The blocks that have an attention, with their numbers."""
    return ((layer, b) for layer, b in enumerate(blocks_of(model, spec)) if not shim.is_gone(b, attention.o))


def _counts(model: Any, stock: nn.Module, spec: FFNSpec | None) -> dict[str, dict[str, Any]]:
    """Path of a module -> its attributes that count heads or experts, or follow from a place, where they aren't the
    stock model's."""
    found = _placed(model, stock, spec)
    paths = {module: path for path, module in model.named_modules()}
    for place in _counted(model, spec):
        for module, name in place.scaled:
            count = shim.count_of(module, name)
            if count != shim.count_of(stock.get_submodule(paths[module]), name):
                found.setdefault(paths[module], {})[name] = count
    return found


def _placed(model: Any, stock: nn.Module, spec: FFNSpec | None) -> dict[str, dict[str, Any]]:
    """Path of a module -> its attributes that follow from the number of its block, where they aren't the stock
    model's, because blocks or attentions before it are gone."""
    found: dict[str, dict[str, Any]] = {}
    if spec is None:  # a mixture, whose blocks all stay
        return found
    for path, module in blocks_of(model, spec).named_modules(prefix=_path_of_blocks(model, spec)):
        for name in (*CACHE_INDICES, *MADE_OF_INDEX):
            value = getattr(module, name, None)
            if isinstance(value, int | float) and value != getattr(stock.get_submodule(path), name):
                found.setdefault(path, {})[name] = value
    return found


def _counted(model: Any, spec: FFNSpec | None) -> Sequence[Place]:
    """Where attributes of modules count units."""
    return find_sites(model, ("experts", "expert_neurons")) if spec is None else head_sites(model, spec)


def head_sites(model: Any, spec: FFNSpec) -> list[Site]:
    """The heads of each layer that has an attention; [] where the model's are not known."""
    attention = ATTENTION.get(model.config.model_type)
    if attention is None:
        return []
    return [heads(block, attention, model.config, layer) for layer, block in _attending(model, attention, spec)]


def _record(model: nn.Module, stock: nn.Module, spec: FFNSpec | None) -> dict[str, Any]:
    """What `shim.resize` makes of the stock model to give it the model's shapes."""
    before = {path: shim.linear_shape(module) for path, module in stock.named_modules() if _is_linear(module)}
    after = {path: shim.linear_shape(module) for path, module in model.named_modules() if _is_linear(module)}
    linears = {path: after[path] for path in after if after[path] != before.get(path)}
    gone, stored = shim.gone_in(model), {name: [*tensor.shape] for name, tensor in stock.state_dict().items()}
    others = ((name, [*tensor.shape]) for name, tensor in model.state_dict().items() if _home(name) not in after)
    tensors = {name: shape for name, shape in others if shape != stored[name]}
    told = {"linears": linears, "counts": _counts(model, stock, spec), **({"tensors": tensors} if tensors else {})}
    return {"format": 3, **told, "gone": gone} if gone else {"format": 2, **told}


def _home(name: str) -> str:
    """The path of the module that holds a parameter."""
    return name.rpartition(".")[0]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or hasattr(module, "nf")


def stock_model(model: Any) -> Any:
    """What the model's stock class builds of its config, without values."""
    stock = shim.stock_class(type(model))
    return _on_meta(stock, _plain(model.config, stock.__module__.startswith("transformers.")))


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
    own = copy.deepcopy(config)
    if isinstance(own.dtype, str):  # which saving a model makes of it, and not every class can be built with
        own.dtype = getattr(torch, own.dtype)
    with torch.device("meta"):
        return cls(own)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}


def _path_of_blocks(model: nn.Module, spec: FFNSpec) -> str:
    """The list of blocks by its name in the model; a hand-made spec may leave it to be found."""
    first = blocks_of(model, spec)[0]
    return next(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and module[0] is first
    )


def _describe(counts: Mapping[Address, int]) -> str:
    """Such as: 30 layers of 1536 neurons.

    >>> _describe({Address("neurons", 0): 8, Address("neurons", 1): 6})
    '2 layers of 6 to 8 neurons'
    """
    told = []
    for kind in dict.fromkeys(address.kind for address in counts):
        sizes = sorted(count for address, count in counts.items() if address.kind == kind)
        span = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
        told.append(f"{len(sizes)} layers of {span} {kind}")
    return " and ".join(told)
