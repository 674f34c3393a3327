"""`lmprune demo`: the main job on a real model, with nothing but what packages ship, and what came of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import data as texts
from .. import pruning
from ..budget.selection import check_keep
from ..checkpoints import checkpoint, dtypes, models
from ..checkpoints.licences import find_licence
from ..data.beginning import Beginning
from ..data.tokens import stream
from ..errors import UserError
from ..evaluation.perplexity import PerplexityResult, perplexity
from ..evaluation.speed import measure_speed
from ..plan import PLAN_FILE, PrunePlan
from ..progress import Teller
from ..sites.find import find_sites
from . import inspection, reproduce
from .answers import answers, compared
from .card import model_card


@dataclass(frozen=True)
class Sizes:
    """How much of everything: minutes on two slow cores."""

    calibration_tokens: int = 16384
    seq_len: int = 512
    eval_tokens: int = 8192
    context: int = 512
    prompt_tokens: int = 512
    new_tokens: int = 24
    repeats: int = 7  # the median of fewer is noise on a shared machine
    answer_tokens: int = 48


def run_demo(
    terminal: Teller,
    *,
    out: Path,
    keep: float = 0.95,
    force: bool = False,
    model: str = "smollm2-135m",
    sizes: Sizes = Sizes(),
) -> dict[str, Any]:
    """Measure, prune with `obs`, measure again, write the checkpoint, and return the record (docs/json.md).

    It may replace its own earlier output; anything else at `out` only as `lmprune prune --force` would.
    Raises: UserError.
    """
    start = time.perf_counter()
    check_keep(keep)
    force = force or _is_own(out)
    checkpoint.check_out(out, force=force)
    terminal.note(f"{model}: keeping {keep:.0%} of its feed-forward neurons with obs; this takes a few minutes")
    calibration, held_out = texts.load("python-docs", "train"), texts.load("python-docs", "validation")
    with terminal.busy(f"loading {model}"):
        licence = find_licence(model)
        origin = reproduce.origin(model, licence)
        tokenizer, dense = models.load_tokenizer(model), models.load(model, note=terminal.note)
        pruned = copy.deepcopy(dense)
    how = {
        "method": "obs", "keep": keep, "calibration_tokens": sizes.calibration_tokens, "seq_len": sizes.seq_len,
        "multiple_of": 32, "seed": 0,
    }  # fmt: skip
    command = reproduce.command("prune", {"model": model, "out": out, "data": "python-docs", **how})
    provenance = {"model": origin, "command": command, "demo": True}
    before = inspection.sizes(pruned, find_sites(pruned))
    begin = Beginning.of(tokenizer)
    eval_ids, num_bytes = stream(tokenizer, held_out, sizes.eval_tokens)
    measured = {"context": sizes.context, "num_bytes": num_bytes, "begin": begin.ids}
    with terminal.stages() as stages:
        quality = [perplexity(dense, eval_ids, progress=stages("perplexity before"), **measured)]
        plan = pruning.prune(pruned, tokenizer, data=calibration, stages=stages, provenance=provenance, **how)
        dtypes.round_to_saved(pruned)  # so that what is measured is what is written
        quality += [perplexity(pruned, eval_ids, progress=stages("perplexity after"), **measured)]
    report, tokens = inspection.pruning(pruned, find_sites(pruned), before, plan), plan.settings["calibration_tokens"]
    record = {
        "model": model,
        "dtype": report["dtype"],
        "dequantised_from": origin.get("dequantised_from"),
        "method": "obs",
        "keep": keep,
        "calibration": {"name": calibration.name, **calibration.provenance, "tokens": tokens},
        "evaluation": {
            "name": held_out.name, **held_out.provenance, "tokens": quality[0].tokens, "context": sizes.context,
            "bos": begin.text or None,
        },
        "answers": compared(terminal, answers(terminal, dense, tokenizer, None, sizes.answer_tokens), pruned),
        **_sides(terminal, {"before": dense, "after": pruned}, quality, report, tokenizer, sizes),
    }  # fmt: skip
    measured = {"evaluation": {key: record[key] for key in ("evaluation", "before", "after")}}
    card = model_card(plan, report | measured | {"answers": record["answers"]})
    folder = checkpoint.save(pruned, out, tokenizer=tokenizer, plan=plan, card=card, files=licence.files, force=force)
    seconds = time.perf_counter() - start
    return record | {"seconds": seconds, "out": str(folder), "commands": _next(model, out, sizes)}


def _sides(
    terminal: Teller, pair: Mapping[str, Any], quality: Sequence[PerplexityResult], report: Mapping[str, Any],
    tokenizer: Any, sizes: Sizes,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """What there is to tell of the model before and after. report: as of `lmprune prune`."""
    with terminal.busy("measuring the speed"):
        speed = measure_speed(
            pair, tokenizer, prompt_tokens=sizes.prompt_tokens, new_tokens=sizes.new_tokens, repeats=sizes.repeats
        )
    bytes_per_param = dtypes.main(pair["after"]).itemsize
    return {
        side: {
            "params": report[f"params_{side}"],
            "megabytes": report[f"params_{side}"] * bytes_per_param / 1e6,
            "perplexity": result.perplexity,
            "perplexity_se": result.perplexity_se,
            "bits_per_byte": result.bits_per_byte,
            "prefill_tokens_per_second": speed[side].prefill.median,
            "decode_tokens_per_second": speed[side].decode.median,
        }
        for side, result in zip(pair, quality, strict=True)
    }


def _next(model: str, out: Path, sizes: Sizes) -> list[list[str]]:
    """Arguments of three commands that need nothing but what the demo needed."""
    data = ["--data", "python-docs"]
    as_here = ["--max-tokens", str(sizes.eval_tokens), "--context", str(sizes.context)]
    calibration = ["--calibration-tokens", str(sizes.calibration_tokens), "--seq-len", str(sizes.seq_len)]
    harder = out.with_name(f"{out.name}-half")
    return [
        ["inspect", str(out)],
        ["eval", str(out), *data, *as_here, "--baseline", model],
        ["prune", model, *data, "--keep", "0.5", *calibration, "--out", str(harder)],
    ]


def _is_own(out: Path) -> bool:
    """Whether a demo before this one wrote it."""
    try:
        return bool(PrunePlan.load(out / PLAN_FILE).provenance.get("demo"))
    except UserError:
        return False
