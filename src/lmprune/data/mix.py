"""Text of several kinds in stated shares, so that what is fitted to it is good for more than one of them.

`mix` alone is an equal share of each kind: of a folder's (`kinds`), else of the hub's PARTS, else, without a network,
OFFLINE. `mix:c4=0.4,mine.jsonl=0.6` names kinds and sources, and their shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from . import hub, kinds
from .records import Records
from .tokens import encode, text_of_first


@dataclass(frozen=True)
class HubPart:
    """splits: ours -> (data set id, config, split there). field: of a row, None = its `text` or `messages`."""

    splits: Mapping[str, tuple[str, str | None, str]]
    field: str | None = None
    chats: bool = False


_C4, _CODE, _CHAT, _WIKI = "allenai/c4", "codeparrot/codeparrot-clean", "HuggingFaceH4/ultrachat_200k", "wikitext"
#: the kinds that `mix` is made of where the hub can be reached: web pages, code, conversations, an encyclopaedia
PARTS = {
    "c4": HubPart({"train": (_C4, "en", "train"), "validation": (_C4, "en", "validation")}),
    "code": HubPart({"train": (_CODE, None, "train"), "validation": (f"{_CODE}-valid", None, "train")}, "content"),
    "chat": HubPart({"train": (_CHAT, None, "train_sft"), "validation": (_CHAT, None, "test_sft")}, chats=True),
    "wiki": HubPart(
        {split: (f"Salesforce/{_WIKI}", "wikitext-103-raw-v1", split) for split in ("train", "validation")}
    ),
}
#: what every machine has: CPython's manual and library, and what the model itself writes
OFFLINE = {"python-docs": 0.3, "python-code": 0.3, "self": 0.4}
_SUM = 1e-6


def is_mix(source: str) -> bool:
    return source.partition(":")[0] == "mix"


def shares_of(source: str, data_dir: Path | None) -> dict[str, float]:
    """Name -> share, which sum to 1. Raises: UserError for shares that are none, and a kind that is not there."""
    named = source.partition(":")[2]
    if source == "mix":
        return _usual(data_dir)
    shares: dict[str, float] = {}
    for part in named.split(","):
        name, _, share = part.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not name or not 0 < value <= 1:
            raise UserError(
                f"a mix is named as mix:c4=0.4,mine.jsonl=0.6, each share above 0; {part!r} is not like that"
            )
        if name in shares:
            raise UserError(f"the mix names {name} twice; give it one share")
        shares[name] = value
    if abs(sum(shares.values()) - 1) > _SUM:
        raise UserError(f"the shares of a mix must sum to 1; those of {source} sum to {sum(shares.values()):g}")
    return shares


def _usual(data_dir: Path | None) -> dict[str, float]:
    if data_dir is not None:
        found = kinds.in_folder(data_dir, "train")
        return {kind: 1 / len(found) for kind in found}
    return {kind: 1 / len(PARTS) for kind in PARTS} if _hub_is_there() else OFFLINE


@cache
def _hub_is_there() -> bool:
    """Asked once: a sentence about the network is no reason to wait for it twice."""
    try:
        hub.find(_C4, "en", "train")
    except UserError:
        return False
    return True


def needs_model(source: str, data_dir: Path | None) -> bool:
    """Whether the model has to write a part of it."""
    return is_mix(source) and "self" in shares_of(source, data_dir)


#: reads a source that is no kind of the mix's own: `data.load` but for the model, whose part has so many tokens
ReadOther = Callable[[str, int], Records]


def load(
    source: str,
    split: str,
    *,
    data_dir: Path | None,
    tokenizer: Any,
    seed: int,
    num_tokens: int | None,
    other: ReadOther,
) -> Records:
    """Pieces of each part, drawn at random until it has its share of `num_tokens`, and shuffled together.

    Raises: UserError for a part that is missing or too short, or where nobody said how many tokens.
    """
    if tokenizer is None or num_tokens is None:
        raise UserError("a mix is as long as you like, and is measured by a tokenizer; say how many tokens")
    shares = shares_of(source, data_dir)
    generator = torch.Generator().manual_seed(seed)
    documents: list[str] = []
    told: dict[str, Any] = {}
    notes: list[str] = []
    for name, share in shares.items():
        wanted = math.ceil(share * num_tokens)
        found = kinds.as_texts(_part(name, split, data_dir, tokenizer, wanted, other), tokenizer)
        texts = [text for text in found.records if isinstance(text, str)]
        drawn, number = _drawn(kinds.pieces(texts), tokenizer, wanted, generator)
        if number < wanted:
            raise UserError(
                f"{found.name} has {number:,} tokens, and {share:.0%} of {num_tokens:,} are {wanted:,}; "
                f"ask for fewer tokens, or give it a smaller share{_or_hold_out_more(found.provenance, split)}"
            )
        documents += drawn
        told[name] = {"source": name, "split": split, **found.provenance}
        told[name] |= {"share": round(share, 6), "tokens": number, "sha256": kinds.digest(texts)}
        notes += found.notes
    if source == "mix" and shares == OFFLINE:
        notes.insert(0, "the hub can't be reached: the mix is Python's manual and library, and text of the model's own")
    order = torch.randperm(len(documents), generator=generator).tolist()
    name = "mix of " + ", ".join(f"{share:.0%} {part}" for part, share in shares.items())
    return Records(f"{name}, {split}", [documents[i] for i in order], {"parts": told}, tuple(notes))


def _or_hold_out_more(provenance: Mapping[str, Any], split: str) -> str:
    return ", or hold out more of it" if "holdout" in provenance and split != "train" else ""


def every_kind(
    split: str, *, data_dir: Path | None, tokenizer: Any, num_tokens: int, other: ReadOther
) -> dict[str, Records]:
    """Kind -> its text of a split: what `mix` reads, but for what a model would write."""
    names = names_of_kinds(split, data_dir)
    found = {name: _part(name, split, data_dir, tokenizer, num_tokens, other) for name in names}
    return {name: kinds.as_texts(records, tokenizer) for name, records in found.items()}


def names_of_kinds(split: str, data_dir: Path | None) -> list[str]:
    """Raises: UserError where a folder has none of that split."""
    names = kinds.in_folder(data_dir, split) if data_dir is not None else _usual(None)
    return [name for name in names if name != "self"]


def _part(name: str, split: str, data_dir: Path | None, tokenizer: Any, num_tokens: int, other: ReadOther) -> Records:
    there = {} if data_dir is None else kinds.in_folder(data_dir, split)
    if name in there:
        return kinds.load(there[name], tokenizer)
    if name not in PARTS and not (data_dir is not None and kinds.is_kind(data_dir, name)):
        return other(name, num_tokens)
    if data_dir is not None:
        beside = ", ".join(there)
        raise UserError(f"no {name}.{split}.txt or .jsonl in {data_dir}, a part of the mix; it has: {beside}")
    part = PARTS[name]
    if split not in part.splits:
        raise UserError(f"the mix has no split {split}; take one of {', '.join(part.splits)}")
    return hub.load(*part.splits[split], chat_template=part.chats, num_tokens=num_tokens, field=part.field)


def _drawn(texts: list[str], tokenizer: Any, num_tokens: int, generator: torch.Generator) -> tuple[list[str], int]:
    """Pieces in random order until they are so many tokens, the last one cut, or all; and how many they are."""
    found: list[str] = []
    number = 0
    for i in torch.randperm(len(texts), generator=generator).tolist():
        encoding = encode(tokenizer, texts[i])
        room = min(num_tokens - number, len(encoding.input_ids))
        if room < len(encoding.input_ids):
            found += [text_of_first(tokenizer, texts[i], encoding, room)] if room else []
            return found, num_tokens
        found.append(texts[i])
        number += room
    return found, number
