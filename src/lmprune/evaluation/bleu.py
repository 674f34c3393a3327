"""BLEU and chrF of a corpus by `sacrebleu`, with its defaults (13a tokens, exponential smoothing; chrF2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from .intervals import Estimate, bootstrap


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Estimate]:
    """`bleu` and `chrf`, from 0 to 100, against all references of each item, whose numbers may differ."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    streams = [list(stream) for stream in zip_longest(*references)]  # sacrebleu skips the None of a missing one
    return {"bleu": _estimate(BLEU(), predictions, streams), "chrf": _estimate(CHRF(), predictions, streams)}


def _estimate(metric: Any, predictions: Sequence[str], streams: list[list[str | None]]) -> Estimate:
    value = metric.corpus_score(list(predictions), streams).score
    # its own bootstrap (2.6.0) raises where some resamples score a plain 0, so its two steps are taken here
    counts = np.array(metric._extract_corpus_statistics(list(predictions), streams), dtype=np.float64)
    return bootstrap(
        value, len(counts), lambda chosen: float(metric._compute_score_from_stats(counts[chosen].sum(0)).score)
    )
