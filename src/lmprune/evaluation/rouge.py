"""ROUGE-1, -2, -L and -Lsum by `rouge-score`: F1 with stemming, times 100, as summarisation papers quote them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .intervals import Estimate, mean

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Estimate]:
    """Means over the items; of several references of an item the best counts, for each type apart."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(TYPES), use_stemmer=True)
    scores = [
        scorer.score_multi([sentences(r) for r in right], sentences(text))
        for text, right in zip(predictions, references, strict=True)
    ]
    return {kind: mean([each[kind].fmeasure for each in scores], scale=100) for kind in TYPES}


def sentences(text: str) -> str:
    """A sentence a line, which ROUGE-Lsum asks for; the other types see no difference.

    >>> sentences("Who? Me. At 3.30 p.m.")
    'Who?\\nMe.\\nAt 3.30 p.m.'
    """
    return _SENTENCE_END.sub("\n", text.strip())
