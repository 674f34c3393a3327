"""Text that the model writes itself: calibration without any data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoints.generation import continued, ends_of, without_end
from ..errors import UserError
from ..sites.limits import max_context
from .beginning import Beginning
from .prompts import has_template
from .records import Records, rendered
from .tokens import encode

#: texts at once, at most; how long one is at most, and a conversation may be expected to be, in tokens
_BATCH, _LENGTH, _LIKELY = 32, 512, 256
#: of a conversation, how long the user's message is at most
_MESSAGE = 128
#: stands for what a user says: letters and digits, which no template changes or trims
_MARK = "lmprune7user7says"


def load(model: Any, tokenizer: Any, num_tokens: int | None, seed: int) -> Records:
    """What the model writes at temperature 1, each text to its end or 512 tokens, until there are `num_tokens`.

    A model with a chat template writes conversations of two turns: first what a user would say, behind what the
    template puts before that, and then the answer, behind what it puts after it (Magpie: Xu et al. 2024, arXiv
    2406.08464). Another begins with what the tokenizer puts before a text, else with its bos, or eos.
    The same seed gives the same text, on the same machine and versions; torch's global random state is left alone.
    Raises: UserError without a model, a tokenizer or a number of tokens, or where the model has no start token.
    """
    if model is None or tokenizer is None or num_tokens is None:
        raise UserError("the source self needs a model and its tokenizer to write the text, and num_tokens")
    writer = _Writer(model, tokenizer, min(_LENGTH, max_context(model.config) or _LENGTH))
    write = _conversations if has_template(tokenizer) else _texts
    device = model.device
    documents: list[str] = []
    written = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        while written < num_tokens:
            batch = write(writer, num_tokens - written)
            lengths = [len(encode(tokenizer, text).input_ids) for text in batch]  # as they will be read again
            if not sum(lengths):
                raise UserError("the model ends every text before its first word, so it can't write calibration text")
            for text, length in zip(batch, lengths, strict=True):
                if written < num_tokens and length:
                    documents.append(text)
                    written += length
    provenance = {
        "split": "written by the model",
        "model": str(model.config._name_or_path),
        "seed": seed,
        "tokens": written,
    }
    what = "texts" if write is _texts else "conversations"
    return Records(f"self ({len(documents)} {what} the model wrote, seed {seed})", documents, provenance)


@dataclass(frozen=True)
class _Writer:
    """length: of a text, at most."""

    model: Any
    tokenizer: Any
    length: int

    def sampled(self, contexts: Sequence[Sequence[int]], longest: int, ends: Sequence[int]) -> list[str]:
        """What the model writes after each context, up to a token of `ends` or where the two are `longest` together."""
        room = longest - max(map(len, contexts))
        rows = continued(  # top_k 0: the model's plain distribution
            self.model, contexts, ends=ends, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=room
        )
        return self.tokenizer.batch_decode([without_end(row, ends) for row in rows], skip_special_tokens=True)


def _texts(writer: _Writer, _wanted: int) -> list[str]:
    """As many whatever is wanted: the less of a seed's text is the beginning of the more.

    Raises: UserError where nothing says how a text begins.
    """
    tokenizer = writer.tokenizer
    named = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    start = Beginning.of(tokenizer).ids or named[:1]
    if not start:
        raise UserError("the source self needs a start token, and this tokenizer has neither bos nor eos")
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return writer.sampled([start] * _BATCH, writer.length, ends)


def _conversations(writer: _Writer, wanted: int) -> list[str]:
    """So many as `wanted` tokens may take, as the template writes them; fewer where a user's message is empty, or
    leaves no room for an answer.

    Raises: UserError where the template changes what a user says, or is as long as a text may be.
    """
    tokenizer = writer.tokenizer

    def asking(message: str) -> str:
        return rendered(tokenizer, [{"role": "user", "content": message}], "a message", ask=True)

    before, mark, after = asking(_MARK).partition(_MARK)
    start, end = (encode(tokenizer, text).input_ids for text in (before, after))
    longest = min(_MESSAGE, (writer.length - len(start) - len(end)) // 2)
    if not mark or longest < 1:
        why = "changes what a user says" if not mark else f"leaves no room for a conversation in {writer.length} tokens"
        raise UserError(
            f"the model's chat template {why}, so the model can't write its own text (self); "
            "calibrate on --data python-docs, or on a text of yours"
        )
    number, ends = min(-(-wanted // _LIKELY), _BATCH), ends_of(writer.model, tokenizer)
    said = [text.strip() for text in writer.sampled([start] * number, len(start) + longest, ends)]
    asked = {text: encode(tokenizer, asking(text)).input_ids for text in said if text}
    asked = {text: ids for text, ids in asked.items() if len(ids) < writer.length}
    answers = writer.sampled([*asked.values()], writer.length, ends) if asked else []
    conversations = (
        [{"role": "user", "content": text}, {"role": "assistant", "content": answer.strip()}]
        for text, answer in zip(asked, answers, strict=True)
    )
    return [rendered(tokenizer, each, "a conversation", ask=False) for each in conversations]
