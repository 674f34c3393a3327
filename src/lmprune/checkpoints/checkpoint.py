"""Write a checkpoint that loads everywhere, or nothing at all.

Uniform widths give a plain Hugging Face checkpoint. Other shapes carry `shim.py`, so that
`from_pretrained(path, trust_remote_code=True)` works without lmprune. Safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..plan import PLAN_FILE, PrunePlan
from ..sites.families import FFNSpec
from .models import quiet
from .shrinking import record_shapes
from .writing import check_folder, put, written_aside

CARD_FILE = "README.md"
#: fields of a generation config that only sampling uses
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def save(
    model: Any,
    out: Path | str,
    *,
    tokenizer: Any = None,
    plan: PrunePlan | None = None,
    card: str | None = None,
    spec: FFNSpec | None = None,
    force: bool = False,
    files: Mapping[str, str | bytes] = {},
) -> Path:
    """Write the model (and tokenizer, `prune_plan.json`, README.md) to the folder `out`, and return its path.

    card: text of the model card. files: name and content of others to go along. spec: paths to use instead of the
    FAMILIES row. force: replace a checkpoint that is already at `out`, once the new one is completely written.
    Raises: UserError where `out` is taken or can't be written; nothing half-written is left behind.
    """
    out = Path(out).expanduser().resolve()
    check_out(out, force=force)
    record_shapes(model, spec)
    with written_aside(out) as folder:
        write_model(model, folder, tokenizer)
        papers = {PLAN_FILE: plan.to_json() if plan else None, CARD_FILE: card}
        put(folder, {**files, **{name: text for name, text in papers.items() if text is not None}})
    return out


def write_model(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """Weights, configs and tokenizer, into a folder that is there."""
    with quiet(), _without_unused_sampling(model):
        model.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):  # safetensors lets only the owner read them
            file.chmod((folder / "config.json").stat().st_mode)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def check_out(out: Path | str, *, force: bool = False) -> None:
    """Refuse an output folder that `save` would refuse; call it before long work.

    Raises: UserError for a file, a folder that holds something (without `force`), and, with `force`, for anything that
    is not a checkpoint or holds the home or the working directory.
    """
    check_folder(Path(out), "a model checkpoint", _is_checkpoint, force=force)


@contextmanager
def _without_unused_sampling(model: Any) -> Iterator[None]:
    """Published models carry a temperature without `do_sample`; transformers ignores it, but refuses to save it."""
    config = model.generation_config if model.can_generate() else None
    unused = _SAMPLING if config is not None and not config.do_sample else ()
    found = {name: getattr(config, name) for name in unused if hasattr(config, name)}
    try:
        for name in found:
            setattr(config, name, None)
        yield
    finally:
        for name, value in found.items():
            setattr(config, name, value)


def _is_checkpoint(folder: Path) -> bool:
    """A flat folder with a model's config.json: what `save` writes. Subfolders may hold somebody's work."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config and not any(entry.is_dir() for entry in folder.iterdir())
