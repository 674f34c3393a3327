"""Rotary positions as llama.cpp is told of them, checked against the frequencies that the model really turns by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..runtimes.gguf_spec import GGUFSpec
from ..runtimes.mixtures import elsewhere

_FULL, _SLIDING = "full_attention", "sliding_attention"


def rotary(model: Any, spec: GGUFSpec) -> tuple[dict[str, Any], Tensor | None]:
    """(metadata keys after `{arch}.`, what each frequency is divided by, where that has to be said one by one).

    Raises: UserError where llama.cpp would turn by other frequencies.
    """
    settings = getattr(model.config, "rope_parameters", None)
    if not settings:
        return {}, None
    by_kind = settings if _FULL in settings else {_FULL: settings, _SLIDING: settings}
    full, sliding = by_kind[_FULL], by_kind[_SLIDING]
    frequencies = _frequencies(model)
    turning = 2 * len(next(iter(frequencies.values())))  # many families take no notice of partial_rotary_factor
    kind = full.get("rope_type", "default")
    found = {"rope.freq_base": _theta(full, turning), "rope.dimension_count": turning}
    if spec.windows:
        found["rope.freq_base_swa"] = _theta(sliding, turning)
    factors = None
    if kind in ("linear", "llama3") and spec.rope_factors:
        factors = (_plain(found["rope.freq_base"], turning) / frequencies[_FULL].double()).float()
    elif kind == "linear":
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(full["factor"])}
    _check(model.config, spec, frequencies, found, factors, by_kind)
    return found, factors


def _check(
    config: Any,
    spec: GGUFSpec,
    frequencies: Mapping[str, Tensor],
    found: Mapping[str, Any],
    factors: Tensor | None,
    by_kind: Mapping[str, Any],
) -> None:
    turning = found["rope.dimension_count"]
    scale = found.get("rope.scaling.factor", 1.0) if factors is None else factors
    scales = {_FULL: scale, _SLIDING: 1.0}  # only models with settings of their own for each kind tell the second
    for kind, theirs in frequencies.items():
        rope_type = by_kind[kind].get("rope_type", "default")
        base = found["rope.freq_base" if kind == _FULL else "rope.freq_base_swa"]
        ours = _plain(base, turning) / scales[kind]
        static = rope_type in ("default", "linear", "llama3") or "alpha" in by_kind[kind]
        if not static or not torch.allclose(ours, theirs.double(), rtol=1e-4, atol=0):
            raise UserError(
                f"lmprune can't write {spec.arch} with rotary positions of type {rope_type} to GGUF; "
                f"{elsewhere(config)}"
            )


def _theta(rope: Mapping[str, Any], turning: int) -> float:
    """The base; Hunyuan's `alpha` makes it a larger one for good."""
    alpha = rope.get("alpha") if rope.get("rope_type") == "dynamic" else None
    return float(rope["rope_theta"]) * (alpha ** (turning / (turning - 2)) if alpha else 1.0)


def _plain(theta: float, turning: int) -> Tensor:
    return theta ** (-torch.arange(0, turning, 2, dtype=torch.float64) / turning)


def _frequencies(model: Any) -> dict[str, Tensor]:
    """What the model turns by in layers with and without a window, as far as it tells, (turning values / 2,) each."""
    names = {"inv_freq": _FULL, **{f"{kind}_inv_freq": kind for kind in (_FULL, _SLIDING)}}
    buffers = ((name.rpartition(".")[2], buffer) for name, buffer in model.named_buffers())
    return {names[name]: buffer for name, buffer in buffers if name in names}
