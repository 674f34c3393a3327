"""The tasks: what is decoded, and how it is scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..checkpoints.fingerprint import weights_fingerprint
from ..data.beginning import Beginning
from ..data.pairs import Item, begun, encode_pairs, eos_id, items_of, token_ids
from ..data.records import PairData
from ..errors import UserError
from ..progress import Stages, silent
from ..sites.limits import check_vocabulary, max_context
from . import bleu, rouge, wikisql
from .decoding import Decoding, decode, first_choices_right
from .intervals import Estimate, share
from .predictions import Predictions

_ENDLESS = 10**9  # tokens, for a model that names no limit


@dataclass(frozen=True)
class Task:
    """max_new_tokens: by default; beyond what 4,096-token vocabularies need for nearly all references.

    score: outputs and their items -> metrics. one_answer: whether a completion is right or wrong as a whole, so that
    the model's first choices are checked too. merged: pairs with the same context are one item.
    """

    max_new_tokens: int
    score: Callable[[Sequence[str], Sequence[Item]], dict[str, Estimate]]
    one_answer: bool = False
    merged: bool = False


def _wikisql(texts: Sequence[str], items: Sequence[Item]) -> dict[str, Estimate]:
    return wikisql.score(texts, [item.record for item in items])


def _samsum(texts: Sequence[str], items: Sequence[Item]) -> dict[str, Estimate]:
    return rouge.score(texts, [item.references for item in items])


def _e2e(texts: Sequence[str], items: Sequence[Item]) -> dict[str, Estimate]:
    return bleu.score(texts, [item.references for item in items])


def _own(texts: Sequence[str], items: Sequence[Item]) -> dict[str, Estimate]:
    right = [text in map(str.strip, item.references) for text, item in zip(texts, items, strict=True)]
    return {"exact_match": share(right), **_samsum(texts, items)}


TASKS = {
    "wikisql": Task(160, _wikisql, one_answer=True),
    "samsum": Task(128, _samsum),
    "e2e": Task(128, _e2e, merged=True),
}
OWN = Task(128, _own, one_answer=True)


def task_of(source: str) -> Task:
    """The task of a source of pairs; a file of the user's own is scored as one with right and wrong answers."""
    return TASKS.get(source.partition(":")[0], OWN)


@dataclass(frozen=True)
class TaskResult:
    """metrics: by name. items: how many were scored. decoded: how many of them now, the rest having been there.

    contexts_cut: how many contexts lost their beginning. unfinished: outputs that met the limit of new tokens.
    seconds: of decoding.
    """

    metrics: Mapping[str, Estimate]
    items: int
    decoded: int
    contexts_cut: int
    unfinished: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: each metric `name` with its interval `name_ci`."""
        metrics: dict[str, Any] = {}
        for name, found in self.metrics.items():
            metrics |= {name: found.value, f"{name}_ci": [found.low, found.high]}
        rate = self.decoded / self.seconds if self.decoded else None
        counts = {name: getattr(self, name) for name in ("items", "decoded", "contexts_cut", "unfinished")}
        return {**metrics, **counts, "sequences_per_second": rate}


def evaluate(
    model: Any,
    tokenizer: Any,
    data: PairData,
    decoding: Decoding,
    *,
    task: Task,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    folder: Path | None = None,
    stages: Stages = silent,
) -> TaskResult:
    """Decode the first `limit` items of `data` (None = all), and score them.

    max_new_tokens: None = the task's. folder: where predictions are kept and found again (see `Predictions`).
    Raises: UserError where the model has no room for a context, for its tokenizer (also one with tokens that the model
    does not have), or for the folder.
    """
    max_new_tokens = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    pairs = data.pairs if task.merged else data.pairs[:limit]
    items = items_of(pairs, merged=task.merged)[:limit]
    contexts, cut = _contexts(model, tokenizer, items, max_new_tokens)
    room = max_context(model.config) or _ENDLESS
    encoded = encode_pairs(pairs, tokenizer, max_len=room) if task.one_answer else []
    completions = [each.completion for each in encoded if each is not None]
    check_vocabulary(max(chain([eos_id(tokenizer)], *contexts, *completions)), model)
    predictions = Predictions(
        folder,
        {
            "weights": weights_fingerprint(model) if folder else None,
            "data": data.provenance.get("sha256"),
            "decoding": vars(decoding),
            "max_new_tokens": max_new_tokens,
            "dtype": str(model.dtype),
        },
    )
    todo = [i for i in range(len(items)) if i not in predictions.outputs]
    start, progress = time.perf_counter(), stages("decoding")
    for batch in decode(
        model, tokenizer, [contexts[i] for i in todo], decoding, max_new_tokens=max_new_tokens, batch_size=batch_size
    ):
        predictions.add({todo[at]: output for at, output in batch.items()}, items)
        if progress is not None:
            progress(len(predictions.outputs), len(items))
    seconds = time.perf_counter() - start
    outputs = [predictions.outputs[i] for i in range(len(items))]
    metrics = task.score([output.text for output in outputs], items)
    if task.one_answer:
        right = first_choices_right(model, encoded, batch_size=batch_size, progress=stages("first choices"))
        metrics["first_choices"] = share(right)
    return TaskResult(metrics, len(items), len(todo), cut, sum(not output.finished for output in outputs), seconds)


def _contexts(model: Any, tokenizer: Any, items: Sequence[Item], max_new_tokens: int) -> tuple[list[list[int]], int]:
    """Token ids of each context, and how many lost their beginning so that there is room for what is to be written."""
    limit = max_context(model.config) or _ENDLESS
    begin = Beginning.of(tokenizer)
    room = limit - max_new_tokens - len(begin.ids)
    if room < 1:
        raise UserError(f"{max_new_tokens} new tokens leave no room for a context in the model's {limit} positions")
    contexts = token_ids(tokenizer, [begin.strip(item.context) for item in items])
    whole, cuts = zip(*(begun(begin, ids, room) for ids in contexts), strict=True)
    return list(whole), sum(cut > 0 for cut in cuts)
