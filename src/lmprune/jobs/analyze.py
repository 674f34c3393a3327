"""What `lmprune analyze` does: check, load, measure, write; its record is in docs/json.md."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from .. import data as texts
from .. import pruning
from ..checkpoints import models
from ..checkpoints.writing import check_folder, written_aside
from ..data.tokens import sequences
from ..evaluation.memory import peak_memory_mb
from ..progress import Teller
from ..report import raster, svg
from ..scores import redundancy
from ..sites.families import parse_spec
from ..sites.find import find_sites
from ..sites.limits import max_context
from . import analysis, inspection
from .evaluate import told_if_read_before
from .opening import check_tokenizer, open_model
from .reproduce import data_record

ANALYSIS_FILE = "analysis.json"


def analyze(
    terminal: Teller, *, model: str, data: str, out: Path, baseline: str | None, data_dir: Path | None, split: str,
    seq_len: int | None, max_tokens: int, dtype: str, device: str, force: bool, ffn: str | None, chat_template: bool,
    trust_remote_code: bool,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune analyze`, whose options these are. Raises: UserError; nothing is written then."""
    out = out.expanduser().resolve()
    check_out(out, force=force)
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    spec = parse_spec(ffn) if ffn else None
    dense_ffns = None
    if baseline is not None:
        dense_ffns = find_sites(models.skeleton(baseline, trust_remote_code=trust_remote_code), spec=spec)
    read = partial(texts.load, data, split, data_dir=data_dir, chat_template=chat_template, num_tokens=max_tokens)
    loaded, tokenizer, text = open_model(terminal, model, data, read, **how)
    assert text is not None
    ffns = find_sites(loaded, spec=spec)
    if dense_ffns is not None:
        analysis.check_baseline(ffns, dense_ffns)
    seq_len = seq_len or min(512, max_context(loaded.config) or 512)
    ids = sequences(tokenizer, text, seq_len=seq_len, num_tokens=max(max_tokens, seq_len), seed=None)
    pruning.check_tokens(ids, loaded)
    seen = told_if_read_before(terminal, model, text)
    if baseline is not None:
        check_tokenizer(terminal, tokenizer, baseline, text, "the baseline", trust_remote_code)
    terminal.note(f"analysing {ids.numel():,} tokens of {text.name}")

    start = time.perf_counter()
    with terminal.stages() as stages:
        found = redundancy.measure(loaded, ffns, ids, num_peaks=analysis.NUM_EXAMPLES, stages=stages)
    seconds = time.perf_counter() - start
    dense = None
    if baseline is not None:
        del loaded, ffns  # one model at a time
        with terminal.busy(f"loading {baseline}"):
            loaded = models.load(baseline, note=terminal.note, **how)
        pruning.check_tokens(ids, loaded)
        with terminal.stages() as stages:
            dense = redundancy.measure(loaded, find_sites(loaded, spec=spec), ids, stages=stages)
    plan = inspection.find_plan(model)
    record = {
        "model": model,
        **({"baseline": baseline} if baseline else {}),
        **analysis.summary(found, dense=dense, widths_before=plan and plan.widths_before),
        "advice": analysis.advice(found),
        "clusters": analysis.clusters(found, ids, tokenizer),
        "tokens": ids.numel(),
        "seq_len": seq_len,
        "data": data_record(text, tokenizer),
        "read_before": seen,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "out": str(out),
    }
    with terminal.busy(f"writing {out}"):
        _write(out, record, analysis.neurons(found))
    return record


def _write(out: Path, record: dict[str, Any], neurons: Any) -> None:
    with written_aside(out) as folder:
        whole = json.dumps({**record, "neurons": neurons}, allow_nan=False)
        (folder / ANALYSIS_FILE).write_text(whole, encoding="utf-8")
        for chart in analysis.charts(record):
            (folder / f"{chart.id}.svg").write_text(svg.standalone(chart), encoding="utf-8")
            raster.write_png(chart, folder / f"{chart.id}.png")


def check_out(out: Path, *, force: bool) -> None:
    """Raises: UserError where an analysis can't be written there."""
    check_folder(out.expanduser().resolve(), "an analysis", _is_analysis, force=force)


def _is_analysis(folder: Path) -> bool:
    return (folder / ANALYSIS_FILE).is_file() and not any(entry.is_dir() for entry in folder.iterdir())
