"""Perplexity with its standard error, alone or paired with the dense model on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby, takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import UserError
from ..sites.limits import check_vocabulary, max_context

DEFAULT_CONTEXT = 1024
#: Tokens whose logits exist at once: 2,048 x V floats are 400 MB at V = 49k.
_TOKENS_AT_ONCE = 2048
#: Logits turned into fp32 log-probabilities at once: few enough for the cache, many enough for one call to be little.
_LOGITS_AT_ONCE = 2**20


@dataclass(frozen=True)
class PerplexityResult:
    """Means over the scored tokens, in nats except `bits_per_byte`; `_se` is a standard error (NaN from one window).

    tokens: how many were scored. With a baseline: `perplexity_ratio` = perplexity / baseline's; `nll_difference` =
    nll - baseline's, paired; `kl` = KL(baseline ‖ model); `top1_agreement` = share of tokens with the same first rank.
    """

    perplexity: float
    perplexity_se: float
    nll: float
    nll_se: float
    bits_per_byte: float | None
    word_perplexity: float | None
    tokens: int
    context: int
    stride: int | None
    baseline_perplexity: float | None = None
    perplexity_ratio: float | None = None
    nll_difference: float | None = None
    nll_difference_se: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    kl_se: float | None = None
    top1_agreement_se: float | None = None

    def to_dict(self) -> dict[str, float | int | None]:
        """For JSON: the baseline's keys only where there was one; None for what is not a finite number."""
        values = asdict(self)
        if self.baseline_perplexity is None:
            values = dict(takewhile(lambda item: item[0] != "baseline_perplexity", values.items()))
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class Window:
    """Tokens start…stop go in, behind what a text begins with; those from `scored` on count.

    Without a beginning scored > start: the first can't be predicted.
    """

    start: int
    scored: int
    stop: int


def windows(num_tokens: int, context: int, stride: int, *, begun: bool = False) -> list[Window]:
    """Cover the tokens so that each is scored at most once; all but the first of each block where stride = context,
    and that one too where the window has a beginning (`begun`) to predict it from.

    >>> windows(5, context=4, stride=2)
    [Window(start=0, scored=1, stop=4), Window(start=2, scored=4, stop=5)]
    """
    found, done = [], 0
    for start in range(0, num_tokens, stride):
        stop = min(start + context, num_tokens)
        if (scored := max(done, start + (not begun))) < stop:
            found.append(Window(start, scored, stop))
        done = stop
    return found


def default_context(config: Any) -> int:
    """1,024, or the model's maximum where that is less."""
    return min(DEFAULT_CONTEXT, max_context(config) or DEFAULT_CONTEXT)


@contextmanager
def inference(*models: Any) -> Iterator[None]:
    """Evaluation mode without gradients for the length of a `with` block."""
    training = [model for model in models if model.training]
    for model in training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model in training:
            model.train()


def perplexity(
    model: Any,
    input_ids: Tensor,
    *,
    begin: Sequence[int] = (),
    context: int | None = None,
    stride: int | None = None,
    num_bytes: int | None = None,
    num_words: int | None = None,
    baseline: Any = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """exp of the mean NLL of the tokens of one long text.

    input_ids: (N,) int64. begin: what the tokenizer puts before a text (`Beginning.ids`): every window begins with it,
        and it is not scored itself. context: tokens a window, those included; None = `default_context`.
    stride: None = disjoint windows, the first token of each not scored unless there is a beginning; else windows start
        every `stride` tokens, and after the first window each scores only the tokens that none before it has scored.
    num_bytes: UTF-8 bytes of all N tokens; bits per byte = nll / ln 2 · N / num_bytes.
    num_words: words of the text (between white space); word perplexity = exp(nll · N / num_words), which does not
        depend on how the tokenizer cuts words.
    baseline: the dense model, run on the same windows.
    batch_size: windows at once; None = as many as keep the logits under 2,048 x V floats (one window at least).
    progress: called with (windows done, windows in all) after each batch.
    Standard errors take a window as the unit (tokens within it are correlated); the perplexity's by the delta method.
    Raises: UserError where context exceeds the model's, for ids that the model does not have, and for NaN.
    """
    context = default_context(model.config) if context is None else context
    models = [model] if baseline is None else [model, baseline]
    for each in models:
        _check(each, input_ids, context - len(begin), stride, len(begin))
    batch_size = batch_size or max(1, _TOKENS_AT_ONCE // len(models) // context)
    room = context - len(begin)
    todo = windows(len(input_ids), room, stride or room, begun=bool(begin))
    sums: list[Tensor] = []
    with inference(*models):
        for batch in _batches(todo, batch_size):
            sums += _window_sums(models, input_ids, begin, batch)
            if progress is not None:
                progress(len(sums), len(todo))
    return _result(torch.stack(sums), todo, len(input_ids), num_bytes, num_words, context, stride)


def _check(model: Any, input_ids: Tensor, room: int, stride: int | None, begins: int) -> None:
    context, behind = room + begins, f" without its {begins} for the beginning of text" if begins else ""
    if (limit := max_context(model.config)) is not None and context > limit:
        raise UserError(f"context {context} is more than the model's {limit} positions; use --context {limit} or less")
    if context < 2 or room < 1:
        raise UserError(f"context must be at least {max(2, begins + 1)} tokens, got {context}")
    if stride is not None and not 1 <= stride <= room:
        raise UserError(f"stride must be from 1 to the context ({room}{behind}), got {stride}")
    if input_ids.ndim != 1 or len(input_ids) < 2:
        raise UserError(f"perplexity needs at least 2 tokens in one row, got shape {tuple(input_ids.shape)}")
    check_vocabulary(int(input_ids.max()), model)


def _batches(todo: list[Window], batch_size: int) -> Iterator[list[Window]]:
    """Neighbouring windows of one length."""
    for _, group in groupby(todo, lambda w: w.stop - w.start):
        alike = list(group)
        yield from (alike[i : i + batch_size] for i in range(0, len(alike), batch_size))


def _window_sums(models: list[Any], input_ids: Tensor, begin: Sequence[int], batch: list[Window]) -> list[Tensor]:
    """One row of `_score_rows` a window, added up in float64."""
    first_ids = torch.tensor(begin, dtype=input_ids.dtype)
    ids_BT = torch.stack([torch.cat([first_ids, input_ids[w.start : w.stop]]) for w in batch])
    # the whole model, not its base and head: some families scale or cap the logits after the head
    logits = [model(input_ids=ids_BT.to(model.device), use_cache=False).logits for model in models]
    if len({x.shape[-1] for x in logits}) > 1:
        raise UserError(
            f"model and baseline have vocabularies of {logits[0].shape[-1]} and {logits[1].shape[-1]} tokens; "
            "a baseline must be the same model before pruning"
        )
    sums = []
    for row, window in enumerate(batch):
        first, last = len(begin) + window.scored - window.start, len(begin) + window.stop - window.start
        targets_N = ids_BT[row, first:last].to(logits[0].device)
        logits_NV = [x[row, first - 1 : last - 1] for x in logits]
        rows = max(1, _LOGITS_AT_ONCE // logits_NV[0].shape[-1])
        pieces = zip(targets_N.split(rows), *(x.split(rows) for x in logits_NV), strict=True)
        total = torch.stack([_score_rows(*piece) for piece in pieces]).sum(0).cpu()
        if not total.isfinite().all():
            raise UserError(
                f"the loss on tokens {window.scored} to {window.stop - 1} is not a finite number; "
                "the checkpoint is broken, or the dtype too narrow (try --dtype float32)"
            )
        sums.append(total)
    return sums


def _score_rows(targets_N: Tensor, logits_NV: Tensor, baseline_NV: Tensor | None = None) -> Tensor:
    """Sums over the rows, float64: nll (1,), or with a baseline nll, baseline's nll, KL, agreement (4,)."""
    if baseline_NV is None:  # the log probabilities need not be written down
        return functional.cross_entropy(logits_NV.float(), targets_N, reduction="none").double().sum()[None]
    logp_NV = logits_NV.float().log_softmax(-1)
    nll_N = -logp_NV.gather(1, targets_N[:, None])[:, 0]
    base_NV = baseline_NV.to(logits_NV.device).float().log_softmax(-1)
    base_nll_N = -base_NV.gather(1, targets_N[:, None])[:, 0]
    agree_N = logp_NV.argmax(-1) == base_NV.argmax(-1)
    kl_N = (base_NV.exp() * (base_NV - logp_NV)).sum(-1)
    return torch.stack([nll_N.double(), base_nll_N.double(), kl_N.double(), agree_N.double()]).sum(1)


def _result(
    sums: Tensor, todo: list[Window], num_tokens: int, num_bytes: int | None, num_words: int | None, context: int,
    stride: int | None,
) -> PerplexityResult:  # fmt: skip
    counts = torch.tensor([w.stop - w.scored for w in todo], dtype=torch.float64)
    nll, nll_se = ratio_estimate(sums[:, 0], counts)
    paired: dict[str, float] = {}
    if sums.shape[1] > 1:
        difference, difference_se = ratio_estimate(sums[:, 0] - sums[:, 1], counts)
        base_nll = float(sums[:, 1].sum() / counts.sum())
        (kl, kl_se), (agreement, agreement_se) = (ratio_estimate(sums[:, column], counts) for column in (2, 3))
        paired = {
            "baseline_perplexity": _exp(base_nll),
            "perplexity_ratio": _exp(difference),
            "nll_difference": difference,
            "nll_difference_se": difference_se,
            "kl": kl,
            "top1_agreement": agreement,
            "kl_se": kl_se,
            "top1_agreement_se": agreement_se,
        }
    return PerplexityResult(
        perplexity=_exp(nll),
        perplexity_se=_exp(nll) * nll_se,
        nll=nll,
        nll_se=nll_se,
        bits_per_byte=None if num_bytes is None else nll / math.log(2) * num_tokens / num_bytes,
        word_perplexity=None if not num_words else _exp(nll * num_tokens / num_words),
        tokens=int(counts.sum()),
        context=context,
        stride=stride,
        **paired,
    )


def ratio_estimate(sums_B: Tensor, counts_B: Tensor) -> tuple[float, float]:
    """Σ sums / Σ counts and its standard error over the B units; NaN where B = 1.

    Linearised: var = B/(B-1) · Σ_b (sum_b - ratio · count_b)² / (Σ counts)² (Cochran, Sampling Techniques, ch. 6).
    """
    number, total = len(sums_B), counts_B.sum()
    ratio = sums_B.sum() / total
    variance = (sums_B - ratio * counts_B).square().sum() / total**2
    return ratio.item(), math.sqrt(number / (number - 1) * variance.item()) if number > 1 else math.nan


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 709 else math.inf  # where math.exp would raise
