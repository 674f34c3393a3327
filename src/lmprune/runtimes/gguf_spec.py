"""What a row about an architecture of llama.cpp says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import MODEL_TENSOR


@dataclass(frozen=True)
class Only:
    """The values of a config field that llama.cpp's graph is right for. fits: of a value and its config. values: all
    of them, where they can be listed."""

    words: str
    fits: Callable[[Any, Any], bool]
    values: tuple[Any, ...] = ()


def one_of(*values: Any) -> Only:
    return Only(" or ".join(map(str, values)), lambda value, config: value in values, values)


OFF = one_of(False, None)
NUMBER = Only("a number", lambda value, config: isinstance(value, int | float) and value > 0)


@dataclass(frozen=True)
class GGUFSpec:
    """How llama.cpp stores and runs a model type.

    arch: `general.architecture`. per_layer: the architecture that runs the same block with a width for each layer (and
        any bias in the FFN); None where llama.cpp has none.
    assumes: config fields and the values that llama.cpp's graph is right for; a field that a config lacks is fine.
    keys: metadata beside KEYS, `{arch}.` + key -> config field (or a.b, a field of a field), or the value itself.
    counts: metadata that is a whole number, `{arch}.` + key -> config field, what follows from the config, or the
        number itself.
    splits: the end of a parameter's name -> the kinds of tensor that its rows are, one after the other.
    scalars: metadata key -> the end of the name of a parameter of one number, which goes there, one a layer.
    head: "own" where llama.cpp insists on an output head in the file, "tied" where it knows none, else "either".
    biases: what llama.cpp insists on, zeros where the model has none. takes: what it adds where it is there, beside
        biases of q, k and v, which all do. A model's other biases have no place.
    square: all heads together are as wide as the model.
    interleaved_rope: rotary pairs are neighbours (x0, x1) there and not here, so the rows of q and k change places.
    rope_factors: it reads one factor for each rotary frequency, which covers every static kind of rope scaling.
    windows: its graph has sliding windows for single layers; a number: where a model has that many layers only.
    qkv_by_group: the fused projection holds the queries of one key, that key, its value, and so on, where llama.cpp
        wants all queries first.
    norm_offset: what the model adds to its norms' weights.
    """

    arch: str
    per_layer: str | None = None
    assumes: Mapping[str, Only] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, str | int | Callable[[Any], int]] = field(default_factory=dict)
    splits: Mapping[str, tuple[MODEL_TENSOR, ...]] = field(default_factory=dict)
    scalars: Mapping[str, str] = field(default_factory=dict)
    head: str = "either"
    biases: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    square: bool = False
    interleaved_rope: bool = False
    rope_factors: bool = False
    windows: bool | int = False
    qkv_by_group: bool = False
    norm_offset: float = 0.0
