"""What is tortured: the long commands over a tiny model, and what they leave, as far as it is the same each time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from made_up_records import made_up  # noqa: E402
from streamed import make  # noqa: E402
from tiny_checkpoints import TEXT, byte_tokenizer, tiny_checkpoint  # noqa: E402

from lmprune.checkpoints.begun import PRUNING, SETTINGS, TRAINING, place_of  # noqa: E402
from lmprune.checkpoints.rooms import PREFIX  # noqa: E402

_SHORT = ("--data", "cats.txt", "--seq-len", "32")
_TRAIN = (*_SHORT, "--train-tokens", "640", "--steps", "12", "--save-every", "3")
_KEEP = ("--keep", "0.5", "--multiple-of", "8", "--answer-tokens", "0")
_ONCE = ("--method", "magnitude", "--schedule", "oneshot")
_CUT = ("prune", "m", *_SHORT, *_KEEP, "--calibration-tokens", "640", "--out", "out")
#: a command's words; what it writes is all `out…`, in a folder with models, a text, results, a study, a run file
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "prune": _CUT,
    "prune --stream": (*_CUT, "--stream", "--scope", "global"),
    "activation --stream": (*_CUT, "--stream", "--method", "activation"),
    "taylor --stream": (*_CUT, "--stream", "--method", "taylor"),
    "search": (*_CUT, "--budget", "evolution", "--levels", "out.levels"),
    "gum": ("prune", "m", "--method", "gum", *_TRAIN, *_KEEP, "--out", "out"),
    "oneshot and steps": ("prune", "m", *_ONCE, *_TRAIN, *_KEEP, "--out", "out"),
    "finetune": ("finetune", "m", *_TRAIN, "--out", "out"),
    "recover": ("recover", "m", "--teacher", "m", *_TRAIN, "--holdout", "0.3", "--out", "out"),
    "teach": ("teach", "m", *_SHORT, "--train-tokens", "640", "--out", "out.safetensors"),
    "study": ("study", "study.yaml", "--out", "out"),
    "run": ("run", "run.yaml"),
    "export gguf": ("export", "g", "--to", "gguf", "--out", "out.gguf"),
    "export onnx": ("export", "m", "--to", "onnx", "--out", "out"),
    "report": ("report", ".", "--out", "out"),
    "analyze": ("analyze", "m", *_SHORT, "--max-tokens", "320", "--out", "out"),
}  # fmt: skip
#: those that replace what they wrote before where they are told to; the others have no --force, or no need of it
FORCED = frozenset(COMMANDS) - {"teach", "study", "report"}
#: those that carry others out, and keep of them what was done
OF_SEVERAL = frozenset({"study", "run"})
_STUDY = """\
name: tiny
models: [m]
tasks: {cats: {data: cats.txt}}
methods: [magnitude]
keep: [0.5]
prune: {multiple_of: 8}
eval: {max_tokens: 320, context: 64}
analyze: {max_tokens: 256, seq_len: 64}
"""
_RUN = """\
model: m
out: out
data: cats.txt
seq_len: 32
prune: {keep: 0.5, multiple_of: 8, calibration_tokens: 640, answer_tokens: 0}
finetune: {steps: 6, save_every: 2, train_tokens: 640}
export: {to: hf-uniform}
"""
#: fields that are others each time, and files of words about them
_TIMED = frozenset({"seconds", "peak_memory_mb", "estimated_seconds"})
_LOGS = frozenset({"log.txt", ".lock"})


def make_room(folder: Path) -> None:
    """What all commands read."""
    tiny_checkpoint(folder / "m")
    sizes: dict[str, Any] = {"vocab_size": 258, "bos_token_id": 257, "eos_token_id": 257}
    tiny_checkpoint(folder / "g", tokenizer=False, **sizes)
    byte_tokenizer(merges=[("a", "t")]).save_pretrained(folder / "g")  # llama.cpp wants one with merges
    (folder / "cats.txt").write_text(TEXT)
    (folder / "study.yaml").write_text(_STUDY)
    (folder / "run.yaml").write_text(_RUN)
    rows = [made_up("dense"), made_up("gum", 0.5), made_up("random", 0.5)]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_large(folder: Path, blocks: int) -> None:
    """What pruning reads, with a model of Llama-3.2-1B's shapes in bf16 shards, a block a file; 8 are 1.0 billion."""
    make(folder / "m", "llama-3.2-1b", blocks)
    byte_tokenizer().save_pretrained(folder / "m")
    (folder / "cats.txt").write_text(TEXT)


def result(folder: Path) -> dict[str, bytes]:
    """All that a command wrote, by name; what it took is left out."""
    found: dict[str, bytes] = {}
    for place in folder.glob("out*"):
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.is_file() and file.name not in _LOGS:
                found[str(file.relative_to(folder))] = _untimed(file)
    return found


def _untimed(file: Path) -> bytes:
    if file.suffix == ".safetensors":  # which may be large
        with file.open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").digest()
    content = file.read_bytes()
    if file.suffix not in (".json", ".jsonl"):
        return content
    lines = content.splitlines() if file.suffix == ".jsonl" else [content]
    try:
        told = [json.dumps(_without(json.loads(line))).encode() for line in lines]
    except ValueError:
        return content
    return b"\n".join(_latest(told) if file.name == "results.jsonl" else told)


def _latest(lines: list[bytes]) -> list[bytes]:
    """Records of a study as they count: the last of each run, in any order; a run that failed was done again."""
    return sorted({json.loads(line)["id"]: line for line in lines}.values())


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(each) for name, each in value.items() if name not in _TIMED}
    return [_without(each) for each in value] if isinstance(value, list) else value


def clear(folder: Path) -> None:
    """Remove what a command wrote."""
    for path in folder.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def rooms_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(f"{PREFIX}*")]


def a_while_later(folder: Path) -> None:
    """A user's next command comes after its imports, and not at once."""
    for name in rooms_in(folder):
        os.utime(folder / name, (time.time() - 10, time.time() - 10))


def runs_in(folder: Path) -> list[str]:
    return [path.name for kind in (TRAINING, PRUNING) for path in folder.glob(f"*.{kind}")]


def again(name: str, folder: Path) -> tuple[str, ...]:
    """The words with which a scheduler would repeat the command."""
    kind = TRAINING if "--steps" in COMMANDS[name] else PRUNING
    on = (place_of(folder / "out", kind) / SETTINGS).exists() and name not in OF_SEVERAL
    return (*COMMANDS[name], "--resume") if on else COMMANDS[name]
