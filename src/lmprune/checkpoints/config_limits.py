"""What a config may ask for, seen before anything is built by it: a number in it costs its writer nothing."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, shown
from ..foreign import reading, text_of

#: layers that a model has at most, and how often a pattern of them is repeated
_LAYERS = 10_000
#: ends of the names of what a model has at least none of; -1 says "no window" elsewhere
_COUNTS = (
    "heads", "n_head", "hidden_size", "intermediate_size", "vocab_size", "n_embd", "d_model",
    "position_embeddings", "n_positions", "n_ctx", "max_seq_len",
)  # fmt: skip
#: names of the number of experts, and of how many of them a token goes to
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk")
#: no config counts anything beyond
_COUNT = 2**63
#: numbers in parameters, and bytes in buffers, that a model may have whatever its files hold
_PARAMETERS, _BUFFERS = 2**26, 2**30
_SECONDS, _MEGABYTES = 15, 2048
#: classes and configs that were seen to go through with a text
_GO_THROUGH: set[tuple[type[Any], str]] = set()


def short(what: str) -> AbstractContextManager[None]:
    """What is done by a config alone is over in a moment, or never."""
    return reading(what, seconds=_SECONDS, megabytes=_MEGABYTES)


def check_raw(file: str | None, place: object) -> None:
    """Raises: UserError for a config.json that is no object, and for numbers that no model has."""
    if file is None:
        return
    with reading(f"can't load the model of {place}: config.json"):
        config = json.loads(text_of(Path(file)))  # with Infinity, which transformers writes
        if not isinstance(config, dict):
            raise UserError(f"can't load the model of {place}: config.json holds {type(config).__name__}, no object")
        for key, value in config.items():
            _check(key, value, place)
        _check_experts(config, place)


def _check(key: str, value: Any, place: object, most: int | None = None) -> None:
    """most: what a whole number may be, where its name doesn't say."""
    if _is_no_number(value) or _is_out_of_reach(key, value, most):
        raise UserError(f"{place}: config.json has {shown(key)} = {shown(value)}; no model has that")
    if isinstance(value, dict):
        for inner, each in value.items():
            _check(inner, each, place)
    if isinstance(value, list):
        repeats = any(isinstance(each, list | dict) for each in value)  # as in [["global", "local"], 12]
        for each in value:
            _check(key, each, place, _LAYERS if repeats else _COUNT)


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_out_of_reach(key: str, value: Any, most: int | None) -> bool:
    if not isinstance(value, int):
        return False
    limit = most or (_LAYERS if key.endswith(("layer", "layers")) else _COUNT)
    return abs(value) > limit or (value < 0 and key.endswith(_COUNTS))


def check_layers(config: Any, num_tensors: int, place: object) -> None:
    """Raises: UserError where there are more layers than tensors, or none."""
    number = getattr(config, "num_hidden_layers", None)
    if isinstance(number, int) and not 1 <= number <= max(num_tensors, 1):
        raise UserError(f"{place}: config.json says {number:,} layers, and the weights are {num_tensors:,} tensors")


def _check_experts(config: dict[str, Any], place: object) -> None:
    """Raises: UserError where a token goes to more experts than there are, or to none."""
    of, few = (
        next((n for name in names if isinstance(n := config.get(name), int)), None) for names in (_EXPERTS, _CHOSEN)
    )
    if of and few is not None and not 1 <= few <= of:
        raise UserError(f"{place}: by its config {shown(few)} of {shown(of)} experts see a token; no model has that")


def check_size(outline: Any, stored: int, place: object) -> None:
    """Before memory is taken for it. outline: on the meta device. stored: numbers that the files hold.

    Raises: UserError where the config's model is another size altogether; smaller misfits are named later, one by one.
    """
    numbers = sum(parameter.numel() for parameter in outline.parameters())
    made = sum(buffer.nbytes for buffer in outline.buffers())
    if numbers > max(2 * stored, _PARAMETERS) or made > max(8 * stored, _BUFFERS):
        raise UserError(
            f"{place}: by config.json the model has {numbers:,} parameters and {made:,} bytes of tables, and its files "
            f"hold {stored:,} numbers; config and weights don't belong together"
        )


def reads(outline: Any) -> bool:
    """Whether a model without weights goes through with a text: where it does, nothing in its config stops it. Where it
    does not, that may be an operation that can't do without: then `check_reads` tells. A config is asked once."""
    try:
        with short("no text is read"):
            about = type(outline), outline.config.to_json_string(use_diff=False)
            if about not in _GO_THROUGH:
                _read(outline.eval())
    except UserError:
        return False
    _GO_THROUGH.add(about)
    return True


def check_reads(model: Any, place: object) -> None:
    """Raises: UserError where the model of a config can't read a text: of two tokens, which takes no time."""
    with reading(f"{place}: the model that config.json describes can't read a text"), suppress(NotImplementedError):
        _read(model)  # what is not implemented here may be where it goes


@torch.no_grad()
def _read(model: Any) -> None:
    model(torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device))
