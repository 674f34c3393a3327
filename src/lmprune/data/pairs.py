"""Contexts with completions: to train on, to decode from, and as plain text to calibrate on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError, unknown
from . import e2e, files, holdout, samsum, wikisql
from .beginning import Beginning
from .records import Pair, PairData
from .splits import check_split, filled_field

#: What `load` takes, as a message shows it.
SOURCES = ("wikisql", "samsum", "e2e", "FILE.jsonl with context and completion")
LossOn = Literal["completion", "sequence"]
LOSS_ON = ("completion", "sequence")
IGNORED = -100  # the label that torch's cross-entropy leaves out


def is_source(source: str) -> bool:
    """Whether `source` names pairs rather than text; of a .jsonl, the first line tells."""
    return source.partition(":")[0] in ("wikisql", "samsum", "e2e") or is_file(source)


def load(
    source: str, split: str = "validation", *, data_dir: Path | str | None = None, held_out: float | None = None
) -> PairData:
    """Load the pairs of `source`.

    source: `wikisql[:types]`, `samsum`, `e2e`, or a .jsonl with `context` and `completion` on every line.
    split: train, validation or test; a single file is the same for every split.
    data_dir: a folder with the source's own files (docs/tasks.md); None = the hub.
    held_out: as in `data.load`; pairs with the same context are on one side.
    Raises: UserError for an unknown source or split, a broken line or field (it is named), an unreachable hub.
    """
    data_dir = Path(data_dir) if data_dir else None
    check_options(source, data_dir, held_out)
    base, _, variant = source.partition(":")
    if base == "wikisql":
        found = wikisql.load(variant or None, split, data_dir)
    elif base == "samsum":
        found = samsum.load(split, data_dir)
    elif base == "e2e":
        found = e2e.load(split, data_dir)
    elif Path(source).suffix == ".jsonl":
        check_split(split)
        found = _from_file(Path(source), split, held_out)
    else:
        raise unknown("source of pairs", source, SOURCES)
    if not found.pairs:
        raise UserError(f"there are no pairs in {found.name}")
    digest = hashlib.sha256()
    for pair in found.pairs:
        digest.update(f"{pair.context}\0{pair.completion}\0".encode())
    common = {"source": source, "split": split, **found.provenance, "documents": len(found.pairs)}
    return replace(found, provenance={**common, "sha256": digest.hexdigest()})


def check_options(source: str, data_dir: Path | None, held_out: float | None) -> None:
    """Raises: UserError for what does not go with the source."""
    base, _, variant = source.partition(":")
    if variant and base != "wikisql":
        raise unknown("data source", source, SOURCES)
    is_file = Path(source).suffix == ".jsonl"
    if held_out is not None and not is_file:
        raise UserError(f"--holdout goes with a file of your own; {source} has splits")
    if data_dir is not None and is_file:
        raise UserError(f"--data-dir does not go with a file; {source} is one")


def is_file(source: str) -> bool:
    """Whether `source` is a .jsonl of pairs."""
    path = Path(source)
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = next(filter(str.strip, file), "")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False  # whoever reads it as text will say what is wrong
    return isinstance(row, dict) and {"context", "completion"} <= set(row)


def _from_file(path: Path, split: str, share: float | None) -> PairData:
    fields = ("context", "completion")
    pairs = [Pair(*(filled_field(row, name, where) for name in fields)) for where, row in files.rows(path)]
    if share is None:
        return PairData(str(path), pairs, {"file": str(path), "split": "the whole file"})
    sides = holdout.held_out(pairs, share, lambda pair: pair.context, str(path))
    chosen = [pair for pair, side in zip(pairs, sides, strict=True) if side == (split != "train")]
    told = holdout.split_name(split, share)
    return PairData(f"{path}, {told['split']}", chosen, {"file": str(path), **told})


@dataclass(frozen=True)
class Item:
    """One context to write after, and every completion that is right. record: as in `Pair`."""

    context: str
    references: tuple[str, ...]
    record: Any = None


def items_of(pairs: Sequence[Pair], *, merged: bool) -> list[Item]:
    """merged: one item for each context, in the order of their first pairs; else one for each pair."""
    if not merged:
        return [Item(pair.context, (pair.completion,), pair.record) for pair in pairs]
    references: dict[str, list[str]] = {}
    for pair in pairs:
        references.setdefault(pair.context, []).append(pair.completion)
    return [Item(context, tuple(right)) for context, right in references.items()]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one pair. context: with what the tokenizer puts before a text, `begins` tokens. completion: with
    eos. cut: how many tokens of the context were left out."""

    context: list[int]
    completion: list[int]
    cut: int
    begins: int = 0


def encode_pairs(pairs: Sequence[Pair], tokenizer: Any, *, max_len: int) -> list[Encoded | None]:
    """Context and completion of each pair, together at most `max_len` tokens.

    They are tokenised apart, so that training and decoding see the same context. A context that is too long loses
    its first tokens, not its BOS; None stands for a completion that does not fit with one token of context.
    Raises: UserError where the tokenizer has no end-of-text token.
    """
    eos = eos_id(tokenizer)
    begin = Beginning.of(tokenizer)
    contexts = token_ids(tokenizer, [begin.strip(pair.context) for pair in pairs])
    completions = token_ids(tokenizer, [pair.completion for pair in pairs])
    found: list[Encoded | None] = []
    for context, completion in zip(contexts, completions, strict=True):
        room = max_len - len(begin.ids) - len(completion) - 1
        whole, cut = begun(begin, context, room)
        found.append(Encoded(whole, [*completion, eos], cut, len(begin.ids)) if room >= 1 else None)
    return found


def begun(begin: Beginning, context: list[int], room: int) -> tuple[list[int], int]:
    """The last `room` tokens of a context behind what a text begins with, and how many were cut off."""
    cut = max(len(context) - room, 0)
    return [*begin.ids, *context[cut:]], cut


def examples(
    pairs: Sequence[Pair],
    tokenizer: Any,
    *,
    max_len: int,
    loss_on: LossOn = "completion",
    note: Callable[[str], None] | None = None,
) -> list[dict[str, list[int]]]:
    """Training examples, unpadded: `input_ids` and `labels` of the same length, at most `max_len`, eos at the end.

    loss_on: `completion` gives IGNORED labels to the context; `sequence` only to its BOS.
    note: told, in a sentence each, how many contexts were cut (see `encode_pairs`) and how many pairs left out.
    Raises: UserError as `encode_pairs`, or where no pair is left.
    """
    check_loss_on(loss_on)
    encoded = encode_pairs(pairs, tokenizer, max_len=max_len)
    fitting = [each for each in encoded if each is not None]
    if not fitting:
        raise UserError(f"none of the {len(pairs)} completions fits into {max_len} tokens with its context")
    if note is not None and (dropped := len(encoded) - len(fitting)):
        note(f"{dropped} of {len(pairs)} completions do not fit into {max_len} tokens and were left out")
    if note is not None and (cut := sum(each.cut > 0 for each in fitting)):
        note(f"{cut} of {len(pairs)} contexts lost their beginning to fit into {max_len} tokens")
    return [
        {
            "input_ids": each.context + each.completion,
            "labels": _labels(each, loss_on),
        }
        for each in fitting
    ]


def _labels(each: Encoded, loss_on: LossOn) -> list[int]:
    ignored = len(each.context) if loss_on == "completion" else each.begins
    return [IGNORED] * ignored + each.context[ignored:] + each.completion


def check_loss_on(name: str) -> None:
    """Raises: UserError where `examples` would not know it."""
    if name not in LOSS_ON:
        raise unknown("loss_on", name, LOSS_ON)


def eos_id(tokenizer: Any) -> int:
    """The token that ends a completion. Raises: UserError where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token (eos), which ends a completion; set its eos_token")
    return tokenizer.eos_token_id


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Each text's tokens, no special ones added."""
    return tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
