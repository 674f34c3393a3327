"""What `lmprune prune` and `lmprune eval` do: check, load, work, write; each returns its record (docs/json.md)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from . import checkpoint, inspection, models, pruning, sources
from . import data as texts
from .card import model_card
from .console import Terminal
from .data import TextData
from .data.tokens import stream
from .errors import UserError, unknown
from .evaluation.perplexity import perplexity
from .families import parse_spec
from .ffn import find_ffns
from .methods import get_method, needs_text
from .plan import PrunePlan
from .selection import SCOPES, check_keep


def prune(
    terminal: Terminal, *, model: str, out: Path, method: str, keep: float, scope: Any, data: str,
    data_dir: Path | None, calibration_tokens: int, seq_len: int, multiple_of: int, plan: Path | None, dtype: str,
    device: str, seed: int, force: bool, ffn: str | None, chat_template: bool, trust_remote_code: bool,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune prune`, whose options these are. What can be checked is checked before the long work.

    Raises: UserError; nothing is written then.
    """
    options = {name: value for name, value in locals().items() if name != "terminal"}
    chosen = PrunePlan.load(plan) if plan else None
    row = get_method(chosen.settings.get("method", method) if chosen else method)
    check_keep(keep)
    if scope not in (None, *SCOPES):
        raise unknown("scope", scope, SCOPES)
    checkpoint.check_out(out, force=force)
    spec = parse_spec(ffn) if ffn else None
    read = None
    if needs_text(row, chosen=chosen is not None):
        read = partial(
            texts.load, data, "train", data_dir=data_dir, chat_template=chat_template, seed=seed,
            num_tokens=calibration_tokens,
        )  # fmt: skip
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    dense, tokenizer, text = open_model(terminal, model, data, read, **how)
    if text is not None:
        terminal.note(f"calibrating on {text.name}")
        if chosen is not None and chosen.provenance.get("calibration", {}).get("sha256") != text.provenance["sha256"]:
            terminal.note("that is not the text the plan was made on, so the refit will differ from the plan's own")
    ffns = find_ffns(dense, spec)
    before = inspection.sizes(dense, ffns)

    start = time.perf_counter()
    with terminal.stages() as stages:
        done = pruning.prune(
            dense, tokenizer, method=row.name, keep=keep, scope=scope, data=text or data, plan=chosen, spec=spec,
            calibration_tokens=calibration_tokens, seq_len=seq_len, multiple_of=multiple_of, seed=seed, stages=stages,
            provenance={"model": origin(model), "command": command("prune", options)},
        )  # fmt: skip
    seconds = time.perf_counter() - start
    if chosen is None and text is not None and done.settings["calibration_tokens"] <= calibration_tokens - seq_len:
        terminal.note(f"that text has only {done.settings['calibration_tokens']} tokens in whole sequences")

    record = {
        "model": model,
        "method": row.name,
        "keep": done.settings.get("keep"),
        "scope": done.settings.get("scope"),
        **inspection.pruning(dense, ffns, before, done),
        "data": text and data_record(text),
    }
    with terminal.busy(f"writing {out}"):
        card = model_card(done, record)
        folder = checkpoint.save(dense, out, tokenizer=tokenizer, plan=done, card=card, spec=spec, force=force)
    return record | {
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "out": str(folder),
        "command": command("prune", options),
    }


def evaluate(
    terminal: Terminal, *, model: str, data: str, data_dir: Path | None, split: str, context: int | None,
    stride: int | None, max_tokens: int | None, baseline: str | None, dtype: str, device: str, chat_template: bool,
    trust_remote_code: bool,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune eval`, whose options these are. Raises: UserError."""
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    if baseline is not None:
        sources.resolve(baseline)
    read = partial(
        texts.load, data, split, data_dir=data_dir, chat_template=chat_template, num_tokens=max_tokens
    )  # fmt: skip
    pruned, tokenizer, text = open_model(terminal, model, data, read, **how)
    assert text is not None
    terminal.note(f"evaluating on {text.name}")
    dense = None
    if baseline is not None:
        with terminal.busy(f"loading {baseline}"):
            dense = models.load(baseline, **how)
    input_ids, num_bytes = stream(tokenizer, text, max_tokens)

    start = time.perf_counter()
    with terminal.stages() as stages:
        result = perplexity(
            pruned, input_ids, context=context, stride=stride, num_bytes=num_bytes, baseline=dense,
            progress=stages("windows"),
        )  # fmt: skip
    return {
        "model": model,
        **({"baseline": baseline} if baseline else {}),
        **result.to_dict(),
        "data": data_record(text),
        "dtype": str(pruned.dtype).removeprefix("torch."),
        "seconds": time.perf_counter() - start,
    }


def origin(model: str) -> dict[str, str]:
    """Where a model comes from, for the plan: `sources.describe`, and `base_model` where the hub has the original."""
    base = sources.base_model(model)
    return {**sources.describe(model), **({"base_model": base} if base else {})}


def command(verb: str, options: Mapping[str, Any]) -> list[str]:
    """The command line that does a job again, every setting spelt out; a plan stands for what it has decided."""
    implied = {"method", "keep", "scope", "multiple_of"} if options.get("plan") else set()
    line = ["lmprune", verb, options["model"]]
    for name, value in options.items():
        if name in {"model", "force", *implied} or value is None or value is False:
            continue
        line += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    return line


def after_prune(options: Mapping[str, Any]) -> list[list[str]]:
    """Commands to try on the checkpoint, arguments only; text that was calibrated on is not evaluated on."""
    data = ["python-docs"]
    if options["data"].startswith("wikitext"):
        data = [options["data"], *(["--data-dir", str(options["data_dir"])] if options["data_dir"] else [])]
    trust = ["--trust-remote-code"] if options["trust_remote_code"] else []
    compare = ["--max-tokens", "8192", "--baseline", options["model"]]
    return [
        ["eval", str(options["out"]), "--data", *data, *compare, *trust],
        ["inspect", str(options["out"]), *trust],
    ]


def peak_memory_mb() -> float:
    """The most memory that this process has held so far, in 10⁶ bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kibibytes, but bytes on macOS
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def open_model(
    terminal: Terminal, source: str, data: str, read: Callable[..., TextData] | None, **how: Any
) -> tuple[Any, Any, TextData | None]:
    """(model, tokenizer, text). The text comes first, as it is the quicker to be wrong, but for what a model writes.

    read: `texts.load` but for model and tokenizer; None where no text is needed, and a tokenizer only to pass it on.
    """
    models.check_device(how["device"])
    models.check_dtype(how["dtype"])
    tokenizer = text = None
    try:
        tokenizer = models.load_tokenizer(source, trust_remote_code=how["trust_remote_code"])
    except UserError as error:
        if read is not None:
            raise
        missing = error
    else:
        missing = None
    if read is not None and data != "self":
        with terminal.busy(f"reading {data}"):
            text = read(tokenizer=tokenizer)
    with terminal.busy(f"loading {source}"):
        model = models.load(source, **how)
    if missing is not None:
        terminal.note(f"{missing}; the checkpoint will have none either")
    if read is not None and text is None:
        with terminal.busy("the model writes its own text"):
            text = read(model=model, tokenizer=tokenizer)
    return model, tokenizer, text


def data_record(text: TextData) -> dict[str, Any]:
    return {"name": text.name, **text.provenance}
