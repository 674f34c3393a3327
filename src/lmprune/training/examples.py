"""From a data source to training examples: token_blocks of a text, or pairs with the loss on the completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import data
from ..data import TextData, pairs
from ..data.tokens import sequences
from ..errors import UserError
from ..sites.limits import check_tokens

_EVERYTHING = 2**62


@dataclass(frozen=True)
class Corpus:
    """A source as `data.load` knows it, and how it is read.

    seed: of a text that the model writes itself. loss_on: of pairs, see `pairs.examples`. held_out: see `data.load`.
    """

    source: str
    data_dir: Path | None = None
    chat_template: bool = False
    seed: int = 0
    loss_on: pairs.LossOn = "completion"
    held_out: float | None = None

    def check(self) -> None:
        """Raises: UserError for all that can be found wrong before a text is read."""
        data.check_options(self.source, self.data_dir, self.chat_template, self.held_out)

    def text(self, split: str, num_tokens: int | None = None, **whose: Any) -> TextData:
        """whose: tokenizer, and for the source `self` model."""
        return data.load(
            self.source, split, data_dir=self.data_dir, chat_template=self.chat_template, seed=self.seed,
            num_tokens=num_tokens, held_out=self.held_out, **whose,
        )  # fmt: skip

    def examples(
        self,
        split: str,
        tokenizer: Any,
        *,
        seq_len: int,
        num_tokens: int | None = None,
        text: TextData | None = None,
        note: Callable[[str], None] | None = None,
    ) -> list[dict[str, Any]]:
        """`input_ids`, at most seq_len of them, and for pairs `labels`; the first `num_tokens` tokens, None = all.

        text: what `text` gave for the split, if it was read already. note: told which pairs are too long.
        Raises: UserError where not one fits into `num_tokens`, or nothing of one can be predicted.
        """
        if not pairs.is_source(self.source):
            return token_blocks(
                tokenizer, text or self.text(split, num_tokens, tokenizer=tokenizer), seq_len, num_tokens
            )
        found = pairs.load(self.source, split, data_dir=self.data_dir, held_out=self.held_out)
        examples = pairs.examples(found.pairs, tokenizer, max_len=seq_len, loss_on=self.loss_on, note=note)
        return examples if num_tokens is None else _first(examples, num_tokens)


def check_examples(examples: Sequence[dict[str, Any]], model: Any) -> None:
    """Raises: UserError where a token is not one of the model's."""
    for example in examples:
        check_tokens(torch.as_tensor(example["input_ids"])[None], model)


def token_blocks(tokenizer: Any, text: TextData, seq_len: int, num_tokens: int | None) -> list[dict[str, Tensor]]:
    """The text's tokens in order, in token_blocks of `seq_len`, without a remainder."""
    rows = sequences(tokenizer, text, seq_len=seq_len, num_tokens=num_tokens or _EVERYTHING, seed=None)
    return [{"input_ids": row} for row in rows]


def _first(examples: list[dict[str, Any]], num_tokens: int) -> list[dict[str, Any]]:
    seen, found = 0, []
    for example in examples:
        seen += len(example["input_ids"])
        if seen > num_tokens:
            break
        found.append(example)
    if not found:
        raise UserError(f"{num_tokens} tokens don't hold the first pair, which has {seen}; ask for more")
    return found
