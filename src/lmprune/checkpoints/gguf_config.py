"""The config that a GGUF file's metadata describes: every hyper-parameter has its field, or the file is refused."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING

from ..errors import UserError, shown
from ..foreign import misfit
from ..runtimes.architectures import KEYS
from ..runtimes.gguf_file import GGUFFile
from ..runtimes.gguf_keys import IRRELEVANT, NEUTRAL, READ_KEYS, UNTOLD
from ..runtimes.gguf_spec import GGUFSpec
from ..runtimes.mixtures import ROWS, TOP_K
from ..sites.families import FAMILIES
from ..sites.mixtures import MIXTURES
from .gguf_rope import rope_parameters
from .gguf_settings import Settings, tidy

_REQUIRED = ("embedding_length", "block_count", "attention.head_count", "feed_forward_length")
_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_HEADS = ("attention.head_count", "attention.head_count_kv")
_SLIDING, _FULL = "sliding_attention", "full_attention"


def model_types(file: GGUFFile) -> list[str]:
    """The rows of GGUF that are written as the file's architecture.

    Raises: UserError where there is none, and for a part of a model, of which only the first says what it is.
    """
    if (parts := file.metadata.get("split.count", 1)) > 1:
        raise UserError(f"{file.path} is one of {parts} parts; join them with llama-gguf-split --merge first")
    found = [name for name, spec in ROWS.items() if file.arch in (spec.arch, spec.per_layer)]
    if not found:
        known = ", ".join(sorted({spec.arch for spec in ROWS.values()}))
        raise UserError(
            f"{file.path} is of GGUF architecture {file.arch}, and lmprune reads {known}; "
            "start from the model's safetensors"
        )
    return found


def widths(file: GGUFFile) -> list[int]:
    """Neurons of each layer."""
    settings = file.settings()
    return _by_layer(settings, settings["feed_forward_length"])


def groups(file: GGUFFile) -> list[int]:
    """Groups of heads of each layer. Raises: UserError where layers have none, or groups of other sizes."""
    settings = file.settings()
    heads, few = _HEADS
    queries = _by_layer(settings, settings[heads])
    found = _by_layer(settings, settings.get(few, settings[heads]))
    if 0 in queries or 0 in found:
        raise Settings(file).refused(_HEADS[0], "and layers without an attention are written, and not read")
    if len({a / b for a, b in zip(queries, found, strict=True)}) > 1:
        raise Settings(file).refused(_HEADS[0], "which is not as many for each key/value head in every layer")
    return found


def _by_layer(settings: Mapping[str, Any], found: Any) -> list[int]:
    """A setting of each layer: it is a list, or one number for all."""
    return list(found) if isinstance(found, Sequence) else [found] * settings["block_count"]


def config_of(file: GGUFFile, model_type: str) -> Any:
    """The config, as far as the metadata tells; which biases there are, the tensors say.

    Raises: UserError for a hyper-parameter that the model type has no place for, naming it.
    """
    settings, spec = _checked(file), ROWS[model_type]
    cls = CONFIG_MAPPING[model_type]
    names = _Names(cls)
    rows = file.tensors["token_embd.weight"].shape[0]
    if settings.take("vocab_size", rows) != rows:
        raise settings.refused("vocab_size", f"but its token_embd.weight has {rows} rows")
    fields: dict[str, Any] = {"vocab_size": rows, **_ids(file)}
    if model_type in MIXTURES:
        _experts(settings, names, model_type, fields)
    elif key := FAMILIES[model_type].width_key:
        fields[key] = max(widths(file))
    settings.take("feed_forward_length")
    head_size = _heads(settings, names, fields)
    _taken(settings, names, spec, fields)
    _windows(settings, names, fields)
    if plain := getattr(cls(**fields), "rope_parameters", None):
        fields["rope_parameters"] = rope_parameters(file, settings, plain, head_size)
    for key, value in settings.left.items():
        if key not in IRRELEVANT and value not in NEUTRAL.get(key, ()):
            raise settings.refused(key, f"which a model of type {model_type} has no place for")
    config = cls(**fields)
    for key, own in spec.counts.items():
        expected = own(config) if callable(own) else own
        if not isinstance(own, str) and file.settings().get(key, expected) != expected:
            raise settings.refused(key, f"but lmprune knows this architecture with {expected} only")
    _take_for_granted(config, spec, file)
    return config


def _checked(file: GGUFFile) -> Settings:
    """Its settings, of which those that every model has are there. Raises: UserError for a file that is no model."""
    if (kind := file.metadata.get("general.type", "model")) != "model":
        raise UserError(f"{file.path} is no model, but a GGUF file of type {kind}")
    settings = Settings(file)
    for key in _REQUIRED:
        if key not in settings.left:
            raise UserError(f"{file.path} lacks {file.arch}.{key}")
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{file.path} lacks the tensor token_embd.weight")
    if wrong := misfit(settings.left, dict.fromkeys(("block_count", "embedding_length"), int)):
        raise settings.refused(wrong, "which is no whole number")
    if not 1 <= settings.left["block_count"] <= len(file.tensors):
        raise settings.refused("block_count", f"but {len(file.tensors)} tensors")
    neurons = widths(file)
    if len(neurons) != settings.left["block_count"] or min(neurons) < 1:
        raise settings.refused("feed_forward_length", f"but {settings.left['block_count']} layers, each with an FFN")
    return settings


def _ids(file: GGUFFile) -> dict[str, Any]:
    """Of special tokens; a class's defaults are another model's."""
    return {name: file.metadata.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in _IDS.items()}


def _experts(settings: Settings, names: _Names, model_type: str, fields: dict[str, Any]) -> None:
    """Fill in the experts: how many, how wide, and how many of them a token goes to."""
    mixture, whole = MIXTURES[model_type], settings.number("feed_forward_length")
    if not (number := settings.take("expert_count", 0)):
        raise UserError(f"{settings.file.path} has no experts, and {model_type} is a mixture")
    if (few := settings.take("expert_used_count")) is None:
        raise UserError(f"{settings.file.path} lacks {settings.file.arch}.expert_used_count")
    if not 1 <= few <= number:
        raise UserError(f"{settings.file.path}: {shown(few)} of {shown(number)} experts see a token; no model has that")
    used = names.find(TOP_K)
    assert used, "every mixture has one of them"
    fields |= {mixture.count_key: number, used: few}
    fields["intermediate_size"] = whole
    fields[mixture.width_key] = settings.take("expert_feed_forward_length", whole)
    for key, own in ROWS[model_type].counts.items():
        value = settings.take(key)
        if isinstance(own, str) and value is not None:
            fields[own] = value


def _heads(settings: Settings, names: _Names, fields: dict[str, Any]) -> int:
    """Fill in the heads, and return the size of one."""
    found = groups(settings.file)
    each = _by_layer(settings.left, settings.left[_HEADS[0]])[0] // found[0]
    most = _sayable(settings, names, max(found), each)
    heads = most * each
    for key in _HEADS:
        settings.take(key)
    name = names.find(("num_attention_heads",))
    assert name
    fields[name] = heads
    if name := names.find(("num_key_value_heads", "num_kv_heads")):
        fields[name] = most
    if name := names.find(("multi_query",)):
        fields[name] = most == 1
    elif most != heads and not names.find(("num_key_value_heads", "num_kv_heads")):
        raise settings.refused("attention.head_count_kv", f"but as many heads as {heads} are all there can be")
    usual = settings.left["embedding_length"] // heads
    size = settings.take("attention.key_length", usual)
    if settings.take("attention.value_length", size) != size:
        raise settings.refused("attention.value_length", f"but keys of length {size}")
    if name := names.find(("head_dim",)):
        fields[name] = size
    elif size != usual:
        raise settings.refused("attention.key_length", f"but a model of this type has heads of {usual}")
    return size


def _sayable(settings: Settings, names: _Names, least: int, each: int) -> int:
    """The next number of groups, of `each` heads, that a config may have: some want the width to be a multiple."""
    wide, size = settings.left["embedding_length"], settings.left.get("attention.key_length")
    for number in range(least, wide + 1):
        said = {
            "hidden_size": wide,
            "num_attention_heads": number * each,
            "num_key_value_heads": number,
            "head_dim": size,
        }
        try:
            names.cls(**{name: value for key, value in said.items() if (name := names.find((key,))) and value})
        except Exception:  # of strict dataclasses
            continue
        return number
    return least


def _taken(settings: Settings, names: _Names, spec: GGUFSpec, fields: dict[str, Any]) -> None:
    """Fill in what is one key here and one field there."""
    for key, own in spec.keys.items():
        if key not in settings.left:
            continue
        value = tidy(settings.number(key))
        if isinstance(own, str):
            name, _, inner = own.partition(".")
            fields[name] = {inner: value} if inner else value
        elif value != own:
            raise settings.refused(key, f"but lmprune knows this architecture with {own} only")
    for key, options in {**KEYS, **READ_KEYS}.items():
        name = names.find(options)
        if name and name not in fields and key in settings.left:
            fields[name] = tidy(settings.number(key))


def _take_for_granted(config: Any, spec: GGUFSpec, file: GGUFFile) -> None:
    """Make the config say what llama.cpp computes in any case. Raises: UserError where the file's sizes forbid it."""
    for name, only in spec.assumes.items():
        *path, last = name.split(".")
        holder = functools.reduce(lambda part, step: getattr(part, step, None), path, config)
        if not hasattr(holder, last) or only.fits(getattr(holder, last), config):
            continue
        values = [*only.values, *(value(config) for value in UNTOLD.get(name, ()))]
        fitting = [value for value in values if only.fits(value, config)]
        if not fitting:
            raise UserError(
                f"{file.path}: llama.cpp runs {file.arch} with {name} {only.words}, and this file is another"
            )
        setattr(holder, last, fitting[0])


def _windows(settings: Settings, names: _Names, fields: dict[str, Any]) -> None:
    """Fill in the window of local attention, and which layers have one."""
    layers, pattern = settings.file.settings()["block_count"], settings.take("attention.sliding_window_pattern")
    if names.find(("sliding_window",)):
        fields["sliding_window"] = fields.get("sliding_window") or None
    if not names.find(("layer_types",)):
        if pattern is not None:
            raise settings.refused("attention.sliding_window_pattern", "and a model of this type has no such pattern")
    elif fields.get("sliding_window") is None:  # some classes make the mask in any case
        fields |= {"layer_types": [_FULL] * layers, "sliding_window": settings.file.settings()["context_length"]}
    elif pattern is not None:
        if isinstance(pattern, int):
            pattern = [layer % pattern < pattern - 1 for layer in range(layers)]
        fields["layer_types"] = [_SLIDING if local else _FULL for local in pattern]


class _Names:
    """The fields of a config class, with their defaults."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.fields = {field.name: field.default for field in dataclasses.fields(cls)}

    def find(self, names: tuple[str, ...]) -> str | None:
        """The first of these that there is."""
        known = (self.cls.attribute_map.get(name, name) for name in names)
        return next((name for name in known if name in self.fields), None)
