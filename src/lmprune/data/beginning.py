"""What stands before a text: the one place that decides whether a model reads a BOS first, and the one that puts it.

The tokenizer's behaviour decides, not its settings: many name a BOS that they never write (GPT-2, SmolLM2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Beginning:
    """ids: what the tokenizer itself puts before a text: `<bos>`, OPT's `</s>`, GLM's `[gMASK]<sop>`, mostly nothing.

    text: the same, spelt.
    """

    ids: tuple[int, ...] = ()
    text: str = ""

    @classmethod
    def of(cls, tokenizer: Any) -> Beginning:
        plain = tokenizer("a", add_special_tokens=False).input_ids
        whole = tokenizer("a").input_ids
        number = next((k for k in range(len(whole)) if whole[k : k + len(plain)] == plain), 0)
        ids = tuple(whole[:number])
        return cls(ids, "".join(tokenizer.convert_ids_to_tokens(list(ids)))) if ids else cls()

    def strip(self, document: str) -> str:
        """The document without a beginning of its own, as chat templates write one: it would stand there twice."""
        return document.removeprefix(self.text)

    def room(self, length: int) -> int:
        """How many tokens of text a sequence of `length` has room for. Raises: UserError where it has none."""
        if length <= len(self.ids):
            raise UserError(f"a sequence of {length} has no room for text behind {self.text}; take a longer one")
        return length - len(self.ids)

    def rows(self, ids_N: Tensor, length: int) -> Tensor:
        """Sequences (n, length), each with the beginning before its share of the tokens; no remainder."""
        room = self.room(length)
        rows = ids_N[: len(ids_N) // room * room].view(-1, room)
        return torch.cat([torch.tensor(self.ids, dtype=rows.dtype).expand(len(rows), -1), rows], dim=1)
