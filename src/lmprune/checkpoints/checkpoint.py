"""Write a checkpoint that loads everywhere, or nothing at all.

Uniform widths give a plain Hugging Face checkpoint. Other shapes carry `shim.py`, so that
`from_pretrained(path, trust_remote_code=True)` works without lmprune. Safetensors only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, unknown
from ..foreign import json_file
from ..plan import PLAN_FILE, PrunePlan
from ..sites.families import FFNSpec
from ..sites.pages import pages_of
from . import dtypes
from .block_files import write_blocks
from .card import card_of
from .licences import is_licence
from .models import DTYPES, quiet
from .shrinking import record_shapes
from .stored import SINGLE
from .writing import Destination, check_folder, put, written_aside

CARD_FILE = "README.md"


def save(
    model: Any,
    out: Path | str | Destination,
    *,
    tokenizer: Any = None,
    plan: PrunePlan | None = None,
    card: str | None = None,
    spec: FFNSpec | None = None,
    force: bool = False,
    files: Mapping[str, str | bytes] = {},
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Write the model (and tokenizer, `prune_plan.json`, README.md) to the folder `out`, and return its path.

    out: a path, or what `check_out` gave for it before long work: what somebody puts there meanwhile is left alone.
    card: text of the model card; None = what the plan says, if there is one. files: name and content of others to go
    along. spec: paths to use instead of the FAMILIES row. force: replace a checkpoint that is already at `out`, once
    the new one is completely written.
    dtype: what the weights are saved in; by default what they were stored in where `load` found them, unless somebody
    has given the model another dtype since; a model from elsewhere is saved as it is.
    Raises: UserError where `out` is taken or can't be written; nothing half-written is left behind.
    """
    place = out if isinstance(out, Destination) else check_out(out, force=force)
    kind = check_save_dtype(dtype)
    record_shapes(model, spec)
    with written_aside(place) as folder:
        write_model(model, folder, tokenizer, kind)
        told = card_of(model, plan) if card is None and plan is not None else card
        papers = {PLAN_FILE: plan.to_json() if plan else None, CARD_FILE: told}
        put(folder, {**files, **{name: text for name, text in papers.items() if text is not None}})
    return place.path


def write_model(model: Any, folder: Path, tokenizer: Any = None, dtype: torch.dtype | None = None) -> None:
    """Weights, configs and tokenizer, into a folder that is there. dtype: as for `save`."""
    wanted, pages = dtypes.to_save(model, dtype), pages_of(model)
    state = {} if pages else dtypes.cast(model, wanted)
    with quiet():
        with _without_generation_config(model):
            model.save_pretrained(folder, state_dict=state)
        if pages is not None:
            (folder / SINGLE).unlink(missing_ok=True)
            write_blocks(model, pages, folder, wanted)
        if model.can_generate():
            write_generation_config(model.generation_config, folder / "generation_config.json")
        _set(folder / "config.json", dtype=dtypes.name_of(dtypes.main(model, dtype)))
        for file in folder.glob("*.safetensors"):  # safetensors lets only the owner read them
            file.chmod((folder / "config.json").stat().st_mode)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def check_save_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype to save in by its name. Raises: UserError."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise unknown("save-dtype", dtype, DTYPES)
    return DTYPES[dtype]


def check_out(out: Path | str, *, force: bool = False) -> Destination:
    """Refuse an output folder that `save` would refuse; call it before long work.

    Raises: UserError as `check_folder` does.
    """
    return check_folder(Path(out), "a model checkpoint", _no_checkpoint, force=force)


@contextmanager
def _without_generation_config(model: Any) -> Iterator[None]:
    """Published models carry a temperature without `do_sample`, and the like, which transformers refuses to save where
    anything of it was changed; so it is written apart, as it is."""
    config = model.generation_config if model.can_generate() else None
    try:
        if config is not None:
            model.generation_config = type(config)()
        yield
    finally:
        if config is not None:
            model.generation_config = config


def write_generation_config(config: Any, file: Path) -> None:
    """All that is set: transformers leaves out what it takes for a default, and other runtimes have other defaults."""
    told = json.loads(config.to_json_string(use_diff=False, keys_to_pop=["compile_config"]))
    told = {name: value for name, value in told.items() if value is not None}
    file.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _set(file: Path, **values: Any) -> None:
    """Change a config's fields in its file."""
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


#: what `save`, `save_pretrained` and `export` write, whatever the tokenizer; all else may be somebody's work
_WRITTEN = re.compile(
    r"(config|generation_config|adapter_config)\.json|README\.md|\.gitattributes|training_log\.jsonl|.*\.safetensors"
    r"|.*\.safetensors\.index\.json|pytorch_model.*\.bin(\.index\.json)?|model\.onnx(\.data|_data)?"
    r"|(tokenizer|vocab|merges|special_tokens|added_tokens|spiece|sentencepiece|chat_template|bpe|normalizer|emoji"
    r"|preprocessor|processor)[\w.-]*|[\w.-]+\.(tiktoken|model|spm|jinja|codes)|(shim|decilm|\w+_\w+)\.py"
    rf"|{re.escape(PLAN_FILE)}"
)
_TEMPLATES = "additional_chat_templates"  # transformers' folder for those beside the first


def _no_checkpoint(folder: Path) -> str | None:
    """Why a folder is no checkpoint, or more than one."""
    try:
        config = json_file(folder / "config.json", "damaged")
    except UserError:
        return "it has no config.json of a model"
    if "model_type" not in config:
        return "its config.json is of no model"
    strange = (entry.name for entry in sorted(folder.iterdir()) if not _is_written(entry))
    return next((f"it holds {name}" for name in strange), None)


def _is_written(entry: Path) -> bool:
    if entry.is_dir() and not entry.is_symlink():
        return entry.name == _TEMPLATES and all(file.suffix == ".jinja" for file in entry.iterdir())
    return bool(_WRITTEN.fullmatch(entry.name) or is_licence(entry.name))
