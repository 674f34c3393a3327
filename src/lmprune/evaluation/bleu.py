"""BLEU and chrF of a corpus by `sacrebleu`, with its defaults (13a tokens, chrF2) and its own bootstrap."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from .intervals import RESAMPLES, Estimate


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Estimate]:
    """`bleu` and `chrf`, from 0 to 100, against all references of each item, whose numbers may differ."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    streams = [list(stream) for stream in zip_longest(*references)]  # sacrebleu skips the None of a missing one
    return {"bleu": _estimate(BLEU(), predictions, streams), "chrf": _estimate(CHRF(), predictions, streams)}


def _estimate(metric: Any, predictions: Sequence[str], streams: list[list[str | None]]) -> Estimate:
    found = metric.corpus_score(list(predictions), streams, n_bootstrap=RESAMPLES)
    record = json.loads(found.format(width=6, signature=str(metric.get_signature()), is_json=True))
    # the interval is there unless every resample scores 0
    middle, half = record.get("confidence_mean", found.score), record.get("confidence_var", 0.0)
    return Estimate(found.score, middle - half, middle + half)
