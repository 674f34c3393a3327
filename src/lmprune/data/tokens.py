"""From documents to token ids: random sequences to calibrate on, a stream in order to evaluate on.

What the tokenizer puts before a text (`beginning`) begins every sequence, and nothing is put between documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UserError
from .beginning import Beginning
from .token_cache import cached

if TYPE_CHECKING:
    from . import TextData

#: characters that are enough to tell two tokenizers apart
SAMPLE = 20_000
_MOST_A_CHARACTER = 4  # tokens: the bytes of one in UTF-8


def encode(tokenizer: Any, text: str) -> Any:
    """The tokenizer's encoding of a whole document, nothing added; in pieces, the tokens at the joints would differ."""
    return tokenizer(text, add_special_tokens=False, verbose=False)  # verbose would warn of more than the context


def check_same(tokenizer: Any, other: Any, sample: str, whose: str) -> None:
    """Raises: UserError where the two read a text as other tokens, though they may have as many of them.

    whose: what a message calls the other one's model.
    """
    ours, theirs = ({i: token for token, i in each.get_vocab().items()} for each in (tokenizer, other))
    differ = next((i for i in sorted(ours.keys() & theirs.keys()) if ours[i] != theirs[i]), None)
    if differ is not None:
        raise UserError(
            f"{whose} has another tokenizer: token {differ} is {theirs[differ]!r} there and {ours[differ]!r} here; "
            "take the model before pruning"
        )
    if encode(tokenizer, sample).input_ids != encode(other, sample).input_ids:
        raise UserError(
            f"{whose} has another tokenizer, which cuts this text differently; take the model before pruning"
        )


def sequences(tokenizer: Any, data: TextData, *, seq_len: int, num_tokens: int, seed: int | None) -> Tensor:
    """Calibration sequences (n, seq_len), int64: documents in random order, concatenated and cut; no remainder.

    Each begins as the tokenizer's texts do (see `Beginning`), which counts. n = num_tokens // seq_len, or fewer where
    the text is shorter: look at the shape.
    seed: of the order of documents; None = as they come. Only as many documents as needed are tokenised; where that
    is all of a large text as it comes, they are kept for the next time (see `token_cache`).
    Raises: UserError where the text, or num_tokens, is shorter than one sequence.
    """
    check_lengths(seq_len, num_tokens)
    beginning = Beginning.of(tokenizer)
    wanted = num_tokens // seq_len * beginning.room(seq_len)
    documents = list(map(beginning.strip, data.documents))
    if seed is not None:
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
        documents = [documents[i] for i in order]

    def read() -> list[int]:
        ids: list[int] = []
        for document in documents:
            ids += encode(tokenizer, document).input_ids
            if len(ids) >= wanted:
                break
        return ids

    everything = seed is None and num_tokens >= _MOST_A_CHARACTER * sum(map(len, documents))
    ids = cached(tokenizer, documents, read) if everything else torch.tensor(read(), dtype=torch.int64)
    rows = beginning.rows(ids[:wanted], seq_len)
    if not len(rows):
        raise UserError(
            f"{data.name} has {len(ids)} tokens, fewer than one sequence of {seq_len}; "
            "give a longer text or a smaller --seq-len"
        )
    return rows


def check_lengths(seq_len: int, num_tokens: int) -> None:
    """Raises: UserError for a sequence in which nothing can be predicted, or where so many tokens are less than one."""
    if seq_len == 1:
        raise UserError("nothing can be predicted in a sequence of 1 token; use a --seq-len of at least 2")
    if not 1 <= seq_len <= num_tokens:
        raise UserError(f"{num_tokens} tokens don't hold one sequence of {seq_len}; ask for more, or shorter sequences")


def stream(tokenizer: Any, data: TextData, max_tokens: int | None = None) -> tuple[Tensor, int]:
    """As `cover`, but with the UTF-8 bytes of the text alone."""
    ids, documents = cover(tokenizer, data, max_tokens)
    return ids, sum(len(document.encode()) for document in documents)


def cover(tokenizer: Any, data: TextData, max_tokens: int | None = None) -> tuple[Tensor, list[str]]:
    """The first `max_tokens` tokens (N,), int64, of the documents in order, and the documents that they cover.

    None = all. A BOS of the documents' own (`Beginning`) is left out. A tokenizer without character offsets (a pure
    Python one) is asked to decode the last, cut document.
    Raises: UserError where there are fewer than two tokens, so that nothing can be predicted.
    """
    ids: list[int] = []
    covered: list[str] = []
    for document in map(Beginning.of(tokenizer).strip, data.documents):
        encoding = encode(tokenizer, document)
        room = len(encoding.input_ids) if max_tokens is None else max_tokens - len(ids)
        ids += encoding.input_ids[:room]
        if room >= len(encoding.input_ids):
            covered.append(document)
        elif room > 0:
            covered.append(text_of_first(tokenizer, document, encoding, room))
        if len(ids) == max_tokens:
            break
    if len(ids) < 2:
        raise UserError(f"{len(ids)} tokens of {data.name} are too few to evaluate on; at least 2 are needed")
    return torch.tensor(ids), covered


def text_of_first(tokenizer: Any, document: str, encoding: Any, num_tokens: int) -> str:
    """The part of `document` that its first `num_tokens` tokens stand for."""
    if tokenizer.is_fast and (span := encoding.token_to_chars(num_tokens - 1)) is not None:
        return document[: span.end]
    return tokenizer.decode(encoding.input_ids[:num_tokens])
