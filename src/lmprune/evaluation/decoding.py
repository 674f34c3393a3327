"""What a model writes after a context: greedy, or the paper's beam search; many at once, padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoints.generation import continued, without_end
from ..data.pairs import IGNORED, Encoded, eos_id
from .perplexity import inference


@dataclass(frozen=True)
class Decoding:
    """num_beams: 1 = greedy. length_penalty: exponent of the length that a beam's log-probability is divided by.

    no_repeat_ngram: no n tokens in a row may occur twice, the context included; 0 = they may.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0


#: `beam` is that of GUM's code (docs/methods.md, "Sources"; beam_decode.py there).
DECODINGS = {"greedy": Decoding(), "beam": Decoding(num_beams=10, length_penalty=0.9, no_repeat_ngram=4)}


@dataclass(frozen=True)
class Output:
    """text: without the token that ended it, stripped. finished: whether it ended before the limit.

    ids: what was written, the token that ended it included.
    """

    text: str
    finished: bool
    ids: tuple[int, ...] = ()


def decode(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    max_new_tokens: int,
    batch_size: int,
    ends: Sequence[int] | None = None,
) -> Iterator[dict[int, Output]]:
    """What the model writes after each context (token ids), batch by batch, by the contexts' positions in the list.

    ends: the tokens that end it, if any; None = the tokenizer's own.

    Contexts of like length share a batch, the longest first, so that little is padding and memory runs out at once
    or never.
    """
    ends = (eos_id(tokenizer),) if ends is None else ends
    order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        outputs = _generate(model, tokenizer, [contexts[i] for i in batch], decoding, max_new_tokens, ends)
        yield dict(zip(batch, outputs, strict=True))


def _generate(
    model: Any, tokenizer: Any, contexts: Sequence[Sequence[int]], decoding: Decoding, max_new_tokens: int,
    ends: Sequence[int],
) -> list[Output]:  # fmt: skip
    with inference(model):
        rows = continued(
            model, contexts, ends=ends, do_sample=False, num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty, no_repeat_ngram_size=decoding.no_repeat_ngram, early_stopping=False,
            max_new_tokens=max_new_tokens,
        )  # fmt: skip
    outputs = []
    for ids in rows:
        said = without_end(ids, ends)
        text = tokenizer.decode(said, skip_special_tokens=True).strip()
        outputs.append(Output(text, len(said) < len(ids), ids))
    return outputs


def first_choices_right(
    model: Any,
    encoded: Sequence[Encoded | None],
    *,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[bool]:
    """For each pair, whether the model's first choice is right at every token of the completion, end included.

    The right tokens before it are given each time (teacher forcing): the accuracy that GUM's code tells in training.
    None, a completion that does not fit, is wrong.
    """
    right = [False] * len(encoded)
    fitting = [(i, each) for i, each in enumerate(encoded) if each is not None]
    fitting.sort(key=lambda pair: -len(pair[1].context) - len(pair[1].completion))
    with inference(model):
        for start in range(0, len(fitting), batch_size):
            positions, batch = zip(*fitting[start : start + batch_size], strict=True)
            for i, ok in zip(positions, _all_right(model, batch), strict=True):
                right[i] = ok
            if progress is not None:
                progress(start + len(batch), len(fitting))
    return right


def _all_right(model: Any, batch: Sequence[Encoded]) -> list[bool]:
    length = max(len(each.context) + len(each.completion) for each in batch)
    ids_BT, labels_BT = torch.zeros(len(batch), length, dtype=torch.int64), torch.full((len(batch), length), IGNORED)
    mask_BT = torch.zeros_like(ids_BT)
    for row, each in enumerate(batch):
        ids = torch.tensor(each.context + each.completion)
        ids_BT[row, : len(ids)], mask_BT[row, : len(ids)] = ids, 1
        labels_BT[row, len(each.context) : len(ids)] = torch.tensor(each.completion)
    output = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), use_cache=False)
    first_BT = output.logits[:, :-1].argmax(-1).cpu()
    right_BT = (first_BT == labels_BT[:, 1:]) | (labels_BT[:, 1:] == IGNORED)
    return right_BT.all(1).tolist()
