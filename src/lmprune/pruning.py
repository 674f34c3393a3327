"""The main job: calibrate, score or solve, cut. One function, for the command line and for Python alike."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from . import data as text
from .budget.selection import SCOPES, Scope, check_keep, check_multiple_of, select
from .checkpoints.shrinking import check_plan, record_shapes
from .data import TextData
from .data.beginning import Beginning
from .data.tokens import sequences
from .errors import UserError, unknown
from .methods import Method, get_method, must_train, needs_text
from .plan import PrunePlan
from .progress import Stages, silent
from .scores.criteria import get_criterion, score_from
from .scores.statistics import SeamStatistics, collect
from .sites.families import FFNSpec
from .sites.find import find_sites
from .sites.limits import check_in_memory, max_context
from .sites.proof import check_ffns
from .sites.site import Site
from .solve.bias import bias_compensation
from .solve.obs import PLAIN, ObsSettings, obs, obs_refit

#: how many of the calibration tokens a criterion that needs gradients reads
GRADIENT_TOKENS = 16384

_OBS: Mapping[str, ObsSettings] = {"obs": ObsSettings(), "plain_obs": PLAIN}


def prune(
    model: Any,
    tokenizer: Any = None,
    *,
    method: str = "obs",
    keep: float = 0.75,
    scope: Scope | None = None,
    data: str | TextData | Sequence[str] | Tensor = "wikitext",
    data_dir: Path | None = None,
    chat_template: bool = False,
    calibration_tokens: int = 65536,
    seq_len: int = 512,
    multiple_of: int = 32,
    seed: int = 0,
    plan: PrunePlan | None = None,
    spec: FFNSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
    stages: Stages = silent,
) -> PrunePlan:
    """Prune the model's feed-forward neurons in place, and return the plan of what stayed.

    model: a transformers causal-LM model. tokenizer: needed where the method reads text.
    method: a name in METHODS. keep: the ratio of neurons that stay, in (0, 1]. scope: `local` or `global`; by default
        the method's own. multiple_of: every layer's width becomes a multiple of it.
    data: a source name (see `lmprune.data.load`; its train split is read), a list of texts, a TextData, or token
        ids (sequences, T).
        A text is cut into sequences of `seq_len`, `calibration_tokens` in all, documents in an order drawn from `seed`.
    plan: neurons chosen before: they stay, and the layers are repaired as the plan's method does it.
    spec: where the FFN is, for models that lmprune's table does not know; it is proved on the model first.
    Raises: UserError; where the arguments or the data were wrong, the model is untouched.
    """
    row = get_method(plan.settings.get("method", method) if plan else method)
    if row.learned and plan is None:
        raise must_train(row)
    check_keep(keep)
    if scope not in (None, *SCOPES):
        raise unknown("scope", scope, SCOPES)
    sites = find_sites(model, plan.kinds if plan else ("neurons",), spec)
    check_in_memory(model)
    if spec is not None:
        check_ffns(model, sites)
    if plan is not None:
        check_plan(plan, sites)
    counts_before = [site.count for site in sites]
    check_multiple_of(multiple_of, keep if plan is None else 1, counts_before)
    settings: dict[str, Any] = {
        "method": row.name, "keep": keep, "scope": scope or row.scope, "multiple_of": multiple_of, "seed": seed
    }  # fmt: skip
    origin: dict[str, Any] = {"versions": versions()}
    input_ids = None
    if needs_text(row, chosen=plan is not None):
        if not isinstance(data, Tensor):
            found = _text(data, model, tokenizer, data_dir, chat_template, calibration_tokens, seed)
            origin["calibration"] = {**found.provenance, "bos": Beginning.of(tokenizer).text or None}
            data = sequences(tokenizer, found, seq_len=seq_len, num_tokens=calibration_tokens, seed=seed)
        input_ids = check_tokens(data, model)
        settings |= {"calibration_tokens": input_ids.numel(), "seq_len": input_ids.shape[1]}

    if plan is not None:
        settings |= plan.chosen
        origin["plan"] = plan.record()
        kept = plan.indices(site.address for site in sites)
        if row.refit == "obs":
            assert input_ids is not None
            obs_refit(model, sites, input_ids, kept, settings=_OBS[row.name], stages=stages)
        else:
            _cut(sites, kept, row, _statistics(model, sites, row, input_ids, stages))
    elif row.refit == "obs":
        assert input_ids is not None
        kept = obs(
            model, sites, input_ids, keep,
            scope=scope or row.scope, multiple_of=multiple_of, seed=seed, settings=_OBS[row.name], stages=stages,
        )  # fmt: skip
    else:
        statistics = _statistics(model, sites, row, input_ids, stages)
        scores = score_from(sites, row.criterion, statistics, seed=seed)
        kept = select(scores, keep, scope=scope or row.scope, multiple_of=multiple_of, seed=seed)
        _cut(sites, kept, row, statistics)
    record_shapes(model, spec)
    addresses = [site.address for site in sites]
    return PrunePlan.of(addresses, kept, counts_before, settings, {**origin, **(provenance or {})})


def versions() -> dict[str, str]:
    """What a number depends on: the versions of lmprune, torch, transformers and Python."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("lmprune", "torch", "transformers")},
    }


def _text(
    data: str | TextData | Sequence[str],
    model: Any,
    tokenizer: Any,
    data_dir: Path | None,
    chat_template: bool,
    num_tokens: int,
    seed: int,
) -> TextData:
    if tokenizer is None:
        raise UserError("calibration text needs a tokenizer; pass one, or give token ids of shape (sequences, T)")
    if isinstance(data, TextData):
        return data
    if not isinstance(data, str):
        return text.from_texts(data)
    return text.load(
        data, "train", data_dir=data_dir, model=model, tokenizer=tokenizer,
        chat_template=chat_template, seed=seed, num_tokens=num_tokens,
    )  # fmt: skip


def check_seq_len(model: Any, seq_len: int, whose: str = "the model") -> int:
    """`seq_len` as given, if the model has so many positions. whose: what a message calls the model."""
    limit = max_context(model.config)
    if limit is not None and seq_len > limit:
        raise UserError(f"seq_len {seq_len} is more than {whose}'s {limit} positions; use {limit} or less")
    return seq_len


def check_tokens(input_ids: Tensor, model: Any) -> Tensor:
    """The calibration tokens (sequences, T), if the model can read them."""
    if input_ids.ndim != 2:
        raise UserError(f"calibration tokens must be of shape (sequences, T), got {tuple(input_ids.shape)}")
    check_seq_len(model, input_ids.shape[1])
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if input_ids.min() < 0 or input_ids.max() >= vocabulary:
        raise UserError(
            f"the text has token id {int(input_ids.max())}, but the model knows {vocabulary} tokens; "
            "is this the model's own tokenizer?"
        )
    return input_ids


def _statistics(
    model: Any, sites: Sequence[Site], row: Method, input_ids: Tensor | None, stages: Stages
) -> list[SeamStatistics] | None:
    if input_ids is None:
        return None
    criterion = get_criterion(row.criterion)
    if criterion.needs_gradients:
        input_ids = input_ids[: max(GRADIENT_TOKENS // input_ids.shape[1], 1)]
    return collect(model, sites, input_ids, needs=criterion.needs, progress=stages("calibrating"))


def _cut(
    sites: Sequence[Site], kept: Sequence[Tensor], row: Method, statistics: Sequence[SeamStatistics] | None
) -> None:
    for place, (site, units) in enumerate(zip(sites, kept, strict=True)):
        if row.refit == "bias" and len(units) < site.count:  # a bias of zeros would only make the layer another kind
            assert statistics is not None
            reader_KD, bias_D = bias_compensation(site, units, statistics[place].per_token("sum_h"))
            site.keep(units)
            site.set_reader(reader_KD, bias_D)
        else:
            site.keep(units)
