"""What a model is made of, and what pruning would save: pure functions from a model's shapes to a record.

Only shapes are read, so the model may be one without weights (`models.skeleton`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..budget.selection import num_kept
from ..checkpoints import downloads, dtypes
from ..checkpoints.shrinking import is_stock
from ..checkpoints.sources import resolve
from ..plan import PLAN_FILE, PrunePlan
from ..runtimes.gguf_file import read_gguf
from ..runtimes.gguf_keys import PLAN_KEY
from ..sites.families import FFNSpec
from ..sites.find import find_sites
from ..sites.mixtures import beside_experts, is_mixture, mixture_of
from ..sites.place import Place
from ..sites.site import Site
from ..sites.walk import list_of
from .unit_kinds import cached_numbers, unit_kinds

#: the keep ratios that `inspect` tells about
KEEPS = (0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.25)

PARTS = ("embeddings", "attention", "ffn", "norms_and_other", "output_head")


def feed_forward(model: nn.Module, spec: FFNSpec | None = None) -> Sequence[Place]:
    """The model's feed-forward layers: sites of neurons or, in a mixture, of experts. Raises: UserError."""
    if not is_mixture(model.config):
        return find_sites(model, spec=spec)
    return find_sites(model, ["experts"])


def sizes(model: nn.Module, ffns: Sequence[Place]) -> dict[str, int]:
    """`params` and `ffn_params` of the model, parameters shared by two modules counted once."""
    parts = parameters_by_part(model, ffns)
    return {"params": sum(parts.values()), "ffn_params": parts["ffn"]}


def parameters_by_part(model: nn.Module, ffns: Sequence[Place]) -> dict[str, int]:
    """Parameters of each of PARTS; a head that is tied to the embedding counts as embedding.

    No part is found by name: within a block, and outside its FFN, modules with a matrix are attention. Dense layers
    and shared experts of a mixture are feed-forward, too.
    """
    blocks = list_of(model, ffns[0].block)
    in_ffn = {id(p) for ffn in ffns for module in ffn.modules for p in module.parameters()}
    if is_mixture(model.config):
        beside = [module for block in blocks for module in beside_experts(block, mixture_of(model.config))]
        in_ffn |= {id(p) for module in beside for p in module.parameters()}
    in_block = {id(p) for p in blocks.parameters()}
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    parts: dict[str, int] = dict.fromkeys(PARTS, 0)
    seen: set[int] = set()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        for parameter in own:
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if id(parameter) in in_ffn:
                part = "ffn"
            elif isinstance(module, nn.Embedding):
                part = "embeddings"
            elif module is head:
                part = "output_head"
            elif id(parameter) in in_block and any(p.ndim > 1 for p in own):
                part = "attention"
            else:
                part = "norms_and_other"
            parts[part] += parameter.numel()
    return parts


def neuron_size(ffn: Site) -> int:
    """Parameters of one neuron: its row in every writer, its entries in their biases, its column in `down`."""
    return sum(w.shape[1] for w in ffn.writers()) + len(ffn.writer_biases()) + ffn.reader().shape[1]


def saving(ffns: Sequence[Site], params: int, keep: float, *, multiple_of: int, bytes_per_param: int) -> dict[str, Any]:
    """What is left of a model of `params` parameters at a keep ratio, every layer cut alike (local scope)."""
    widths = [num_kept(ffn.width, keep, multiple_of=multiple_of) for ffn in ffns]
    saved = sum((ffn.width - width) * neuron_size(ffn) for ffn, width in zip(ffns, widths, strict=True))
    return {
        "keep": keep,
        "widths": widths,
        "params": params - saved,
        "params_saved": saved,
        "megabytes": (params - saved) * bytes_per_param / 1e6,
        "megabytes_saved": saved * bytes_per_param / 1e6,
    }


def inspect(
    model: Any, ffns: Sequence[Place], *, bytes_per_param: int, multiple_of: int = 32, plan: PrunePlan | None = None
) -> dict[str, Any]:
    """The record that `lmprune inspect` shows; its keys are documented in docs/json.md.

    bytes_per_param: of the dtype that megabytes are told in. multiple_of: what widths are rounded to.
    plan: how the model was pruned, if it was.
    """
    parts = parameters_by_part(model, ffns)
    params, cached = sum(parts.values()), cached_numbers(model)
    neurons = [ffn for ffn in ffns if isinstance(ffn, Site)]  # a mixture has none
    options: dict[str, Any] = {"multiple_of": multiple_of, "bytes_per_param": bytes_per_param}
    return {
        "family": model.config.model_type,
        "layers": len(list_of(model, ffns[0].block)),
        "hidden_size": model.get_input_embeddings().weight.shape[1] if not neurons else neurons[0].reader().shape[1],
        "widths": [ffn.width for ffn in neurons],
        "gated": len(neurons[0].writers()) > 1 if neurons else None,
        "params": params,
        "megabytes": params * bytes_per_param / 1e6,
        "parts": parts,
        "tied_embedding": parts["output_head"] == 0,
        "multiple_of": multiple_of,
        "units": unit_kinds(model, params=params, cache_itemsize=bytes_per_param),
        "cache_bytes_per_token": None if cached is None else sum(cached) * bytes_per_param,
        "keep": [saving(neurons, params, keep, **options) for keep in KEEPS] if neurons else [],
        "plan": None if plan is None else plan_summary(plan),
    }


def pruning(
    model: Any, ffns: Sequence[Place], before: Mapping[str, int], plan: PrunePlan, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """What `plan` did to the model, which was of the sizes `before` (see `sizes`) and is now as it is.

    dtype: as for `checkpoint.save`. stock: whether transformers' own class opens the checkpoint, without the code that
    is written with it.
    """
    after, shares = sizes(model, ffns), plan.shares()
    return {
        "units": {
            kind: {"before": before, "after": left, "kept": shares[kind]}
            for kind in plan.kinds
            for before, left in [plan.counts(kind)]
        },
        "kept": plan.keep,
        "widths": [ffn.width for ffn in ffns if isinstance(ffn, Site)],
        "params_before": before["params"],
        "params_after": after["params"],
        "ffn_params_before": before["ffn_params"],
        "ffn_params_after": after["ffn_params"],
        "dtype": dtypes.name_of(dtypes.main(model, dtype)),
        "stock": is_stock(model),
    }


def find_plan(source: str) -> PrunePlan | None:
    """The plan that lies beside the model, in a folder or on the hub, or in a GGUF file, if lmprune wrote it."""
    found = resolve(source)
    if found.gguf:
        told = read_gguf(Path(str(found))).metadata.get(PLAN_KEY)
        return PrunePlan.from_json(told, name=f"{PLAN_KEY} of {found}") if told else None
    try:
        files = downloads.files_of(found, reachable=found.on_hub and downloads.hub_is_reachable())
    except OSError:  # no such model on the hub: whoever loads it says so
        return None
    return PrunePlan.load(files.path_of(PLAN_FILE)) if PLAN_FILE in files.names else None


def plan_summary(plan: PrunePlan) -> dict[str, Any]:
    """How a checkpoint was made: its settings, the model it came from, the one whose neurons were chosen among, the
    text it was calibrated on, the text it was trained on."""
    model = plan.provenance.get("model") or {}
    calibration, trained_on = plan.provenance.get("calibration") or {}, plan.provenance.get("training") or {}
    return {
        **plan.settings,
        "shares": plan.shares(),
        "widths_before": list(plan.widths_before),
        "widths": plan.widths,
        "kept": plan.keep,
        "model": {key: value for key, value in model.items() if key != "record"},
        "chosen_from": plan.first_source(),
        "calibration": dict(calibration),
        "training_text": dict(trained_on),
    }
