"""What `lmprune export` does: check, load, write; it returns its record (docs/json.md)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import export as exporting
from ..budget.budget import num_params
from ..checkpoints import models
from ..checkpoints.checkpoint import CARD_FILE
from ..checkpoints.licences import find_licence
from ..checkpoints.sources import called, resolve
from ..checkpoints.writing import Destination, begins, check_file, check_not_read, resolved, written_aside
from ..errors import UserError
from ..evaluation.memory import peak_memory_mb
from ..export import modelfile as ollama
from ..export.folder import FLOATS
from ..foreign import reading, text_of
from ..plan import PLAN_FILE
from ..progress import Teller
from ..runtimes.gguf_file import read_gguf
from ..sites.families import known, parse_spec
from ..sites.find import find_sites
from ..sites.mixtures import is_mixture
from ..sites.proof import check_ffns
from . import inspection
from .card import card_of_copy, exported
from .kept import staging
from .opening import check_streams, streaming
from .reproduce import command, origin


def export(
    terminal: Teller, *, model: str, out: Path, to: str, dtype: str | None, force: bool, trust_remote_code: bool,
    no_verify: bool = False, modelfile: Path | None = None, ffn: str | None = None, stream: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """`lmprune export`, whose options these are. Raises: UserError; nothing is written then."""
    options = {name: value for name, value in locals().items() if name != "terminal"}
    start = time.perf_counter()
    target = exporting.get_target(to)
    spec = parse_spec(ffn) if ffn else None
    check_not_read(out, model)
    place = exporting.check_target(target, out, dtype, force=force)
    listing = _check_modelfile(modelfile, to, place.path, force=force)
    _check_streams(stream, to, ffn)
    how = {"dtype": target.load_as, "trust_remote_code": trust_remote_code, "stream": stream}
    with terminal.busy(f"loading {model}"):
        how = streaming(terminal, model, how) if target.streams and spec is None else how
        loaded = models.load(model, note=terminal.note, **how)
        tokenizer = _tokenizer(terminal, model, trust_remote_code)
    plan, licence = inspection.find_plan(model), find_licence(model)
    source = origin(model, licence)
    with known(loaded.config.model_type, spec):
        ffns = [] if is_mixture(loaded.config) else find_sites(loaded)
        if spec is not None:
            check_ffns(loaded, ffns)
    job = exporting.Order(
        loaded,
        ffns,
        tokenizer,
        dtype,
        name=source.get("base_model") or called(model),
        plan=plan,
        origin=source,
        papers=partial(papers_of_copy, model, to),
        licence=licence,
    )
    saved = FLOATS.get(dtype or "")
    with terminal.busy(f"writing {out}"), known(loaded.config.model_type, spec), staging(loaded, None, out, saved):
        details = exporting.export(job, place, to, verify=not no_verify)
    written = place.path
    notes, verification = details.pop("notes"), details.pop("verification")
    if kind := source.get("dequantised_from"):
        notes = [*notes, f"the weights it started from were dequantised from {kind}"]
    if listing is not None:
        notes = [*notes, *_write_modelfile(listing, written, tokenizer)]
    return {
        "model": model,
        "to": to,
        "dtype": dtype or target.dtypes[0],
        "widths": [ffn.width for ffn in ffns],
        "params": num_params(loaded),
        "megabytes": _num_bytes(written) / 1e6,
        "details": details,
        "verification": verification,
        "notes": notes,
        "seconds": time.perf_counter() - start,
        "peak_memory_mb": peak_memory_mb(),
        "out": str(written),
        "modelfile": listing and str(listing.path),
        "command": command("export", options),
    }


def _check_streams(stream: bool, to: str, ffn: str | None) -> None:
    """Raises: UserError for what is not written block by block."""
    check_streams(stream, ffn)
    if stream and not exporting.get_target(to).streams:
        able = " and ".join(name for name, each in exporting.TARGETS.items() if each.streams)
        raise UserError(f"--stream goes with --to {able}; {to} needs the whole model in memory: leave it out")


def _check_modelfile(modelfile: Path | None, to: str, gguf: Path, *, force: bool) -> Destination | None:
    if modelfile is None:
        return None
    if to != "gguf":
        raise UserError("drop --modelfile, which is for Ollama and goes with --to gguf")
    if not resolved(modelfile).parent.is_dir():
        raise UserError(f"there is no folder for {modelfile}; make it first")
    if resolved(modelfile) == gguf:
        raise UserError(f"{modelfile} is --out, too; choose another --modelfile")
    return check_file(modelfile, force=force, option="--modelfile", amiss=begins("FROM ", "a Modelfile"))


def _write_modelfile(listing: Destination, gguf: Path, tokenizer: Any) -> list[str]:
    """What there is to say of it."""
    relative = os.path.relpath(gguf, listing.path.parent)
    context = read_gguf(gguf).settings().get("context_length")  # which may be shorter than the model's
    text, notes = ollama.modelfile(f"./{relative}", tokenizer, context)
    with written_aside(listing, folder=False) as aside:
        aside.write_text(text, encoding="utf-8")
    return [*notes, f"for Ollama: ollama create {gguf.stem} -f {listing.path}"]


def papers_of_copy(source: str, to: str, notes: Sequence[str]) -> dict[str, str | bytes]:
    """The papers of what `export` made of a model, by file name: its plan; the card of a checkpoint of lmprune's, else
    one that names the original; its licence's text. notes: of the export's record."""
    found, plan, licence = resolve(source), inspection.find_plan(source), find_licence(source)
    card = Path(found.place) / CARD_FILE
    if plan and not (found.on_hub or found.gguf) and card.is_file():
        with reading(f"{card} is no card", "mend it, or remove it"):
            told = exported(text_of(card), to, notes)
    else:
        told = card_of_copy(origin(source, licence), to, notes)
    return {**({PLAN_FILE: plan.to_json()} if plan else {}), CARD_FILE: told, **licence.files}


def _tokenizer(terminal: Teller, model: str, trust_remote_code: bool) -> Any:
    try:
        return models.load_tokenizer(model, trust_remote_code=trust_remote_code, note=terminal.note)
    except UserError as error:
        terminal.note(str(error))
        return None


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
