"""Rotary positions as a GGUF file describes them: base, how many dimensions turn, and how frequencies are scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import UserError
from ..runtimes.gguf_file import GGUFFile
from .gguf_settings import Settings, tidy

_BASE = 10000.0
_FREQS, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
#: tensors that hold settings, and no parameter
ROPE_TENSORS = (_FREQS, _LONG, _SHORT)


def rope_parameters(file: GGUFFile, settings: Settings, default: Mapping[str, Any], head_size: int) -> dict[str, Any]:
    """The config's field. default: what its class says, for one kind of layer, or for each kind of layer.

    Raises: UserError for a scaling that transformers does not know.
    """
    theta = tidy(settings.take("rope.freq_base", _BASE))
    turning = settings.take("rope.dimension_count", head_size)
    kinds = list(default.values())
    each = all(isinstance(kind, Mapping) for kind in kinds)
    found: dict[str, Any] = {"rope_theta": theta, **_scaling(file, settings, theta, turning)}
    if turning != head_size or "partial_rotary_factor" in (kinds[0] if each else default):
        found["partial_rotary_factor"] = turning / head_size
    if settings.take("rope.dimension_count_swa", turning) != turning:
        raise settings.refused("rope.dimension_count_swa", f"but {turning} in other layers")
    if not each:
        if tidy(settings.take("rope.freq_base_swa", theta)) != theta:
            raise settings.refused("rope.freq_base_swa", f"but {theta} in other layers")
        return found
    thetas = {name: kind["rope_theta"] for name, kind in default.items()}
    same = len(set(thetas.values())) == 1
    local = tidy(settings.take("rope.freq_base_swa", theta if same else thetas["sliding_attention"]))
    plain = {"rope_theta": local, "rope_type": "default"}
    return {name: found if name == "full_attention" else plain for name in default}


def _scaling(file: GGUFFile, settings: Settings, theta: float, turning: int) -> dict[str, Any]:
    """`rope_type`, and what belongs to it."""
    kind = settings.take("rope.scaling.type", "linear")
    factor = tidy(settings.take("rope.scaling.factor") or settings.take("rope.scale_linear") or 1.0)
    context = settings.file.settings()["context_length"]
    original = settings.take("rope.scaling.original_context_length", context)
    attention = settings.take("rope.scaling.attn_factor", 1.0)
    if _LONG in file.tensors or _SHORT in file.tensors:
        return {
            "rope_type": "longrope",
            "long_factor": file.values(_LONG).tolist(),
            "short_factor": file.values(_SHORT).tolist(),
            "factor": context / original,
            "original_max_position_embeddings": original,
            "attention_factor": tidy(attention),
        }
    if kind == "yarn" and factor != 1.0:
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": tidy(settings.take("rope.scaling.yarn_beta_fast", 32.0)),
            "beta_slow": tidy(settings.take("rope.scaling.yarn_beta_slow", 1.0)),
            "attention_factor": tidy(attention * settings.take("rope.scaling.yarn_attn_factor", 1.0))
            * (0.1 * math.log(factor) + 1.0),
        }
    if kind not in ("none", "linear", "yarn"):
        raise settings.refused("rope.scaling.type", "which needs tensors that are not there")
    if attention != 1.0:
        raise settings.refused("rope.scaling.attn_factor", f"which {kind} scaling does not have")
    if _FREQS in file.tensors:
        if kind == "linear" and factor != 1.0:
            raise UserError(f"{file.path} scales its rotary frequencies twice: by a factor, and by {_FREQS}")
        return _by_factors(file.values(_FREQS), theta, turning, context)
    if kind == "linear" and factor != 1.0:
        return {"rope_type": "linear", "factor": factor}
    return {"rope_type": "default"}


def _by_factors(factors: np.ndarray, theta: float, turning: int, context: int) -> dict[str, Any]:
    """The kind of scaling that divides the frequencies by these: by one factor, as Llama 3 does, or by a list."""
    largest = tidy(float(factors.max()))
    if np.allclose(factors, largest):
        return {"rope_type": "default"} if largest == 1.0 else {"rope_type": "linear", "factor": largest}
    for original in (2**power for power in range(5, 21)):
        rule = {"factor": largest, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        if np.allclose(factors, _llama3(theta, turning, original, **rule), rtol=1e-4):
            return {"rope_type": "llama3", "original_max_position_embeddings": original, **rule}
    every = [float(factor) for factor in factors]
    return {
        "rope_type": "longrope",
        "long_factor": every,
        "short_factor": every,
        "factor": 1.0,
        "original_max_position_embeddings": context,
        "attention_factor": 1.0,
    }


def _llama3(
    theta: float, turning: int, original: int, *, factor: float, low_freq_factor: float, high_freq_factor: float
) -> np.ndarray:
    """What Llama 3 divides its frequencies by: nothing where waves are short, `factor` where they are long."""
    waves = 2 * math.pi * theta ** (np.arange(0, turning, 2) / turning)
    share = np.clip((original / waves - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return 1 / ((1 - share) / factor + share)
