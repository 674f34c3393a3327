"""Whether a model is the one that was saved: every tensor has its place, every place its tensor, as it was stored."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch

from ..errors import UserError
from . import stored
from .stored import FLOATS, Stored

#: heads that guess further tokens ahead, by what tensors and config fields are called in the models that have them
_MTP = re.compile(r"(^|[._])(mtp|nextn)([._]|$)")
_BLOCK = re.compile(r"\.(\d+)\.(.+)")  # the number of a block, and what follows
_MASKED = -1000.0  # scores of what must not be seen were set to a number below this


def check(model: Any, info: Mapping[str, Any], tensors: Mapping[str, Stored], place: object) -> list[str]:
    """Compare a model with the files it was loaded from; its config is made to say what is true.

    info: `from_pretrained`'s. tensors: of all its files, by name.
    Returns: what the user should know: sentences about what was rightly left out, and a head that the config denies.
    Raises: UserError, naming the first tensor, for what has no place, is lacking, does not fit, or is no float.
    """
    left_out = {name: tensor for name, tensor in tensors.items() if not tensor.used}
    further_heads = _mtp_heads(model, left_out)
    unplaced = set(info["unexpected_keys"]) - further_heads - _computed(model, left_out)
    _refuse_quantised(model, [t for name, t in tensors.items() if t.used or name in unplaced], place)
    check_filled(info, place)
    _refuse_doubles(model, tensors, place)
    if unplaced:
        raise UserError(
            f"{place}: the model that config.json describes has no place for {_count(unplaced)} of the checkpoint, "
            f"first {_first(unplaced)}; config and weights don't belong together"
        )
    notes = (
        *_without_mtp(model, further_heads),
        *_left_out(left_out.keys() - further_heads),
        *_untied(model),
    )
    return [f"{place}: {note}" for note in notes]


def check_filled(info: Mapping[str, Any], place: object) -> None:
    """Raises: UserError for parameters that the files don't hold, or hold in another shape."""
    if mismatched := sorted(info["mismatched_keys"]):
        name, in_file, in_model = mismatched[0]
        raise UserError(
            f"{place}: {len(mismatched)} tensors don't fit the config, first {name}: {tuple(in_file)} in the file, "
            f"{tuple(in_model)} by config.json"
        )
    if missing := info["missing_keys"]:
        raise UserError(
            f"{place}: the checkpoint lacks {_count(missing)} that the model needs, first {_first(missing)}"
        )


def check_finite(model: Any, place: object) -> None:
    """Raises: UserError where a weight is NaN or infinite."""
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:  # of a block that stays in its files: looked at when it comes
            check_finite_tensor(name, parameter, place)


def check_finite_tensor(name: str, values: torch.Tensor, place: object) -> None:
    """Raises: UserError where one is NaN or infinite."""
    if values.is_floating_point() and values.numel() and not torch.stack(values.aminmax()).isfinite().all():
        bad = int((~values.isfinite()).sum())  # aminmax: both are NaN where one value is
        raise UserError(f"{place}: {name} holds {bad} NaN or infinite values; the checkpoint is broken")


def tie_blank(model: Any, tensors: Mapping[str, Stored]) -> None:
    """Tie what `from_pretrained` ties, in a model without weights: there it can't see whether two of them are equal."""
    for target, source in list(model.all_tied_weights_keys.items()):
        one, other = (_find(model, name, tensors) for name in (target, source))
        if one is not None and other is not None and stored.same(one, other):
            model.tie_weights(missing_keys={target}, recompute_mapping=False)


def _refuse_quantised(model: Any, tensors: list[Stored], place: object) -> None:
    numbers = {name for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    for tensor in tensors:
        if tensor.kind not in FLOATS and not numbers & set(_names(model, tensor.name)):
            raise UserError(
                f"{place} is quantised or packed: {tensor.name} is stored as {tensor.kind}, not as float16, bfloat16, "
                "float32 or float64; start from the original model"
            )


def _refuse_doubles(model: Any, tensors: Mapping[str, Stored], place: object) -> None:
    """Two tensors for one place: with and without the part of the name that stands for the whole model."""
    short = {name: _names(model, name)[1] for name in tensors}
    for name in short:
        if name != short[name] and short[name] in tensors:
            raise UserError(f"{place}: the checkpoint holds both {name} and {short[name]}, which have one place")


def _computed(model: Any, left_out: Mapping[str, Stored]) -> set[str]:
    """Those that a model makes itself: its own buffers, and causal masks, which older transformers stored."""
    kept = model.state_dict().keys()
    made = {name for buffer, _ in model.named_buffers() if buffer not in kept for name in _names(model, buffer)}
    return {name for name, tensor in left_out.items() if name in made or _is_mask(tensor)}


def _is_mask(tensor: Stored) -> bool:
    if len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1):
        mask = tensor.values[...].float()[0, 0]
        return torch.equal(mask, torch.ones_like(mask).tril())
    return tensor.shape in ((), (1,)) and float(tensor.values[...]) < _MASKED


def _mtp_layers(config: Any) -> dict[str, int]:
    """The config's fields that count the layers of multi-token-prediction heads."""
    return {key: n for key, n in config.to_dict().items() if _MTP.search(key) and type(n) is int and n > 0}


def _mtp_heads(model: Any, left_out: Iterable[str]) -> set[str]:
    """Tensors of such heads, where the config has any: by name, or in further blocks, of another kind."""
    if not _mtp_layers(model.config):
        return set()
    ordinary = {match[2] for name in model.state_dict() if (match := _BLOCK.search(name))}
    blocks = {name: match for name in left_out if (match := _BLOCK.search(name))}
    of_heads = {match[1] for match in blocks.values() if match[2] not in ordinary}
    return {name for name in left_out if _MTP.search(name) or (name in blocks and blocks[name][1] in of_heads)}


def _without_mtp(model: Any, heads: set[str]) -> Iterator[str]:
    fields = _mtp_layers(model.config)
    for field in fields:
        setattr(model.config, field, 0)
    if heads:
        yield (
            f"the multi-token-prediction head was left out ({_count(heads)}, first {_first(heads)}): transformers does "
            f"not run it; the config's {', '.join(fields)} is 0 now"
        )


def _left_out(names: set[str]) -> Iterator[str]:
    if names:
        yield f"{_count(names)} left out that the model makes itself or does not use, first {_first(names)}"


def _untied(model: Any) -> Iterator[str]:
    """Make the config say so where a checkpoint has an output head of its own."""
    head = model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
        yield (
            "config.json says that the output head is the embedding, but the weights have a head of their own: "
            "it is kept, and the config's tie_word_embeddings is false now"
        )


def _find(model: Any, name: str, tensors: Mapping[str, Stored]) -> Stored | None:
    return next((tensors[stored_as] for stored_as in _names(model, name) if stored_as in tensors), None)


def _names(model: Any, name: str) -> tuple[str, ...]:
    """A tensor's name in the model as it may be in a file: with or without the part for the whole model."""
    whole = f"{model.base_model_prefix}."
    return name, name.removeprefix(whole), whole + name


def _count(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"


def _first(names: Iterable[str]) -> str:
    """Layer 2 before layer 10."""
    return min(names, key=lambda name: [(not part.isdigit(), part.zfill(9), part) for part in name.split(".")])
