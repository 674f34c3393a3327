"""What `lmprune analyze` does: check, load, measure, write; its record is in docs/json.md."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import data as texts
from ..budget.keeps import parse_units
from ..checkpoints import models
from ..checkpoints.writing import Destination, check_folder, written_aside
from ..data.tokens import sequences
from ..errors import UserError
from ..evaluation.memory import peak_memory_mb
from ..plan import PrunePlan
from ..progress import Teller
from ..report import raster, svg
from ..report.charts import csv_of
from ..scores import redundancy
from ..scores.redundancy import Redundancy
from ..sites.address import Kind
from ..sites.families import FFNSpec, parse_spec
from ..sites.find import find_sites
from ..sites.limits import check_tokens, max_context
from ..sites.place import Place
from ..sites.site import seams
from . import analysis, inspection, unit_readings
from .evaluate import told_if_read_before
from .opening import check_tokenizer, open_model, streaming
from .reproduce import data_record

ANALYSIS_FILE = "analysis.json"


def analyze(
    terminal: Teller, *, model: str, data: str, out: Path, units: str, baseline: str | None, data_dir: Path | None,
    split: str, seq_len: int | None, max_tokens: int, dtype: str, device: str, force: bool, ffn: str | None,
    chat_template: bool, stream: bool, trust_remote_code: bool,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune analyze`, whose options these are. Raises: UserError; nothing is written then."""
    destination = check_out(out, force=force)
    kinds = check_kinds(units, baseline)
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code, "stream": stream}
    spec = parse_spec(ffn) if ffn else None
    blank = dense_ffns = None
    if baseline is not None:
        blank = models.skeleton(baseline, trust_remote_code=trust_remote_code)
        dense_ffns = seams(find_sites(blank, spec=spec), "analyze")
    read = partial(texts.load, data, split, data_dir=data_dir, chat_template=chat_template, num_tokens=max_tokens)
    loaded, tokenizer, text = open_model(terminal, model, data, read, data_dir=data_dir, **how)
    assert text is not None
    sites: dict[Kind, Sequence[Place]] = {kind: find_sites(loaded, [kind], spec) for kind in kinds}
    ffns = seams(sites.get("neurons", ()), "analyze")
    if dense_ffns is not None:
        analysis.check_baseline(loaded, ffns, blank, dense_ffns)
    seq_len = seq_len or min(512, max_context(loaded.config) or 512)
    ids = sequences(tokenizer, text, seq_len=seq_len, num_tokens=max(max_tokens, seq_len), seed=None)
    check_tokens(ids, loaded)
    seen = told_if_read_before(terminal, model, text)
    if baseline is not None:
        check_tokenizer(terminal, tokenizer, baseline, text, "the baseline", trust_remote_code)
    terminal.note(f"analysing {ids.numel():,} tokens of {text.name}")

    start = time.perf_counter()
    found = dense = None
    with terminal.stages() as stages:
        if ffns:
            found = redundancy.measure(loaded, ffns, ids, num_peaks=analysis.NUM_EXAMPLES, stages=stages)
        readings = unit_readings.read_units(loaded, kinds, sites, ids, stages)
    seconds = time.perf_counter() - start
    kept_as = loaded.dtype
    if baseline is not None:
        del loaded, ffns, sites  # one model at a time
        dense = _of_baseline(terminal, baseline, spec, ids, how)
    record = {
        "model": model,
        **({"baseline": baseline} if baseline else {}),
        **(_of_neurons(found, dense, inspection.find_plan(model), ids, tokenizer) if found else {}),
        "units": readings,
        "tokens": ids.numel(),
        "seq_len": seq_len,
        "data": data_record(text, tokenizer),
        "read_before": seen,
        "dtype": str(kept_as).removeprefix("torch."),
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "out": str(destination.path),
    }
    with terminal.busy(f"writing {out}"):
        _write(destination, record, analysis.neurons(found) if found else None)
    return record


def check_kinds(units: str, baseline: str | None) -> tuple[Kind, ...]:
    """The kinds that `--units` names. Raises: UserError for one that is not read, or not compared with a baseline."""
    kinds = parse_units(units)
    unit_readings.check_readable(kinds)
    if baseline is not None and "neurons" not in kinds:
        raise UserError("with a baseline the neurons of both are compared; name neurons among --units, or no baseline")
    return kinds


def _of_baseline(
    terminal: Teller, baseline: str, spec: FFNSpec | None, ids: Tensor, how: Mapping[str, Any]
) -> Redundancy:
    with terminal.busy(f"loading {baseline}"):
        dense = models.load(baseline, note=terminal.note, **streaming(terminal, baseline, how))
    check_tokens(ids, dense)
    with terminal.stages() as stages:
        return redundancy.measure(dense, find_sites(dense, spec=spec), ids, stages=stages)


def _of_neurons(
    found: redundancy.Redundancy,
    dense: redundancy.Redundancy | None,
    plan: PrunePlan | None,
    ids: Tensor,
    tokenizer: Any,
) -> dict[str, Any]:
    return {
        **analysis.summary(found, dense=dense, widths_before=_before(plan, found)),
        "advice": analysis.advice(found),
        "clusters": analysis.clusters(found, ids, tokenizer),
    }


def _before(plan: PrunePlan | None, found: redundancy.Redundancy) -> list[int] | None:
    """Neurons of each layer before pruning, where the plan tells of just these layers."""
    there = [at for at in plan.addresses if at.kind == "neurons" and plan.kept[at]] if plan else []
    if plan and [at.layer for at in there] == [layer.layer for layer in found.layers]:
        return [plan.counts_before[at] for at in there]
    return None


def _write(out: Destination, record: dict[str, Any], neurons: Any) -> None:
    with written_aside(out) as folder:
        whole = json.dumps({**record, **({"neurons": neurons} if neurons is not None else {})}, allow_nan=False)
        (folder / ANALYSIS_FILE).write_text(whole, encoding="utf-8")
        figures = analysis.charts(record) if neurons is not None else []
        for kind, found in record["units"].items():
            figures += unit_readings.unit_charts(kind, found)
        for chart in figures:
            (folder / f"{chart.id}.svg").write_text(svg.standalone(chart), encoding="utf-8")
            (folder / f"{chart.id}.csv").write_text(csv_of(chart), encoding="utf-8")
            raster.write_png(chart, folder / f"{chart.id}.png")


def check_out(out: Path, *, force: bool) -> Destination:
    """Raises: UserError where an analysis can't be written there."""
    return check_folder(out, "an analysis", _no_analysis, force=force)


def _no_analysis(folder: Path) -> str | None:
    """Why a folder is no analysis, or more than one."""
    if not (folder / ANALYSIS_FILE).is_file():
        return f"it has no {ANALYSIS_FILE}"
    written = (entry.name == ANALYSIS_FILE or entry.suffix in (".svg", ".png", ".csv") for entry in folder.iterdir())
    return None if all(written) else "it holds more than that"
