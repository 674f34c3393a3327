"""The guard: what was exported is run where it will be run, and compared with the model it was made of.

A few dozen tokens are scored at two lengths, the second beyond any window or length that the model was trained at, as
far as that is affordable. The comparison is with the model as its numbers are in the file, rounded or quantised, in
float32. What the engine's own arithmetic adds is measured too: the same model with the inputs of each matrix rounded
as the engine rounds them. So a quantised file is held to as much as one in f32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..sites.limits import max_context
from ..sites.mixtures import is_mixture
from . import Order
from .arithmetic import log_probs
from .readers import READERS

#: positions scored at each length, and tokens compared at each of them
LAST, TOP = 24, 64
#: of a forward in multiplications: what a longer text may cost
AFFORDABLE = 5e11
#: in nats, root mean square: what two float32 programs differ in (llama.cpp looks GELU up in a table of f16)
FLOOR = 3e-4
#: an engine rounds like the model that is measured beside it, but not the same values
TIMES = 3.0


@dataclass(frozen=True)
class Guard:
    """What the model computes, kept from before it is written: writing may change it.

    texts: ids. wanted: for each, log probabilities (LAST, V). noise: what rounding each matrix's inputs changes in
    them, in nats. unreached: a length beyond which it might differ, and that was too dear. routed: see `distance`.
    """

    texts: tuple[tuple[int, ...], ...]
    wanted: tuple[Tensor, ...]
    noise: float
    unreached: int | None
    routed: bool = False


def not_verified(why: str) -> dict[str, Any]:
    return {"verified": False, "why": why, "engine": None, "lengths": None, "difference": None, "allowed": None}


def prepare(order: Order, to: str) -> Guard | str:
    """The guard; or why there can't be one here."""
    reader = READERS[to]
    if why := reader.missing(order):
        return why
    rounding = reader.rounding(order)
    texts, unreached = _texts(order)
    wanted = tuple(log_probs(order.model, ids, last=LAST, rounding=rounding) for ids in texts)
    rough = log_probs(order.model, texts[0], last=LAST, rounding=rounding, rounded_inputs=True)
    routed = is_mixture(order.model.config)
    noise = distance(wanted[0], *rough.topk(min(TOP, rough.shape[1])), routed=routed)
    return Guard(texts, wanted, noise, unreached, routed)


def check(guard: Guard | str, order: Order, to: str, path: Path) -> dict[str, Any]:
    """How far what was written is from the model, for the record. Raises: UserError where that is too far."""
    if isinstance(guard, str):
        return not_verified(guard)
    reader = READERS[to]
    found = reader.scores(order, path, guard.texts, LAST, TOP)
    allowed = FLOOR + TIMES * guard.noise
    apart = {
        len(ids): distance(wanted, *theirs, routed=guard.routed)
        for ids, wanted, theirs in zip(guard.texts, guard.wanted, found, strict=True)
        if theirs is not None
    }
    if not apart:
        return not_verified("what was written takes fewer tokens than were to be scored")
    for length, difference in apart.items():
        if not difference <= allowed:  # NaN too
            raise UserError(
                f"{reader.engine} computes something else from what was exported than transformers from the model: "
                f"log probabilities after {length} tokens differ by {difference:.2g}, and its arithmetic explains "
                f"{allowed:.2g}; nothing was written (--no-verify writes it nevertheless)"
            )
    return {
        "verified": True,
        "why": None if guard.unreached is None else f"not beyond the {guard.unreached:,} tokens where it may change",
        "engine": reader.engine,
        "lengths": list(apart),
        "difference": max(apart.values()),
        "allowed": allowed,
    }


def sentence(verdict: dict[str, Any]) -> str:
    """For people, and for the card."""
    if not verdict["verified"]:
        return f"not verified: {verdict['why']}"
    lengths = " and ".join(f"{length:,}" for length in verdict["lengths"])
    beside = f" ({verdict['why']})" if verdict["why"] else ""
    return (
        f"verified in {verdict['engine']} after {lengths} tokens{beside}: log probabilities differ by "
        f"{verdict['difference']:.1g} from transformers', and its arithmetic explains {verdict['allowed']:.1g}"
    )


def distance(wanted: Tensor, values: Tensor, ids: Tensor, *, routed: bool = False) -> float:
    """Root mean square of what log probabilities (P, V) differ by from the engine's `values` (P, K) of tokens `ids`.

    The tokens are the engine's likeliest: where all of them agree, so does what is left for the others.
    routed: three quarters of the positions decide, and the worst of those counts: where two experts are as good as
    each other for a token, the last bit of rounding says which of them it goes to.
    """
    squares_P = (wanted.gather(1, ids) - values).square().mean(1)
    found = squares_P.sort().values[-(len(squares_P) // 4) - 1] if routed else squares_P.mean()
    return found.sqrt().item()


def _texts(order: Order) -> tuple[tuple[tuple[int, ...], ...], int | None]:
    """Two texts of random tokens, after the tokenizer's first one, of which the first is within all windows; and what
    length was not affordable."""
    model, tokenizer = order.model, order.tokenizer
    most = max_context(model.config) or 2048
    steps = [step for step in _turning_points(model.config) if _stretches(model.config) or step < most]
    wanted = max([2 * LAST, *(step + LAST for step in steps)])
    wanted = wanted if _stretches(model.config) else min(wanted, most - 1)  # llama.cpp wants room for one more
    affordable = max(2 * LAST, int(AFFORDABLE / model.num_parameters()))
    length = min(wanted, affordable)
    number = model.get_input_embeddings().weight.shape[0]
    number = min(number, len(tokenizer)) if tokenizer is not None else number
    ids = torch.randint(0, number, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    if (first := getattr(tokenizer, "bos_token_id", None)) is not None:
        if first >= (known := model.get_input_embeddings().weight.shape[0]):
            raise UserError(
                f"the tokenizer begins texts with token {first}, and the model knows {known} tokens; "
                "is it the model's own?"
            )
        ids[0] = first
    unreached = min((step for step in steps if step >= length), default=None)
    return (tuple(ids[: min([LAST, length, *(step - 1 for step in steps)])]), tuple(ids)), unreached


def _turning_points(config: Any) -> list[int]:
    """Lengths beyond which a model computes by another rule: windows, and what rotary positions are scaled from."""
    found = [getattr(config, "window_size", None)]
    if getattr(config, "use_sliding_window", True):
        found.append(getattr(config, "sliding_window", None))
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_theta" in rope else list(rope.values())
    found += [kind.get("original_max_position_embeddings") for kind in kinds]
    found += [max_context(config)] if _stretches(config) else []
    return [step for step in found if isinstance(step, int)]


def _stretches(config: Any) -> bool:
    """Whether it is made for more positions than its config names."""
    return (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "dynamic"
