"""More that the fuzzer damages: what runs leave and go on from, models of other kinds, tasks, whole commands."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from fuzz_readers import (
    TALK,
    TEXT,
    Reader,
    a_gguf,
    a_model,
    a_run,
    command,
    lines_of,
    look_at,
    open_model,
    open_tokenizer,
    some_text,
    student,
    with_card,
)
from tiny_checkpoints import byte_tokenizer
from tiny_mixtures import tiny_mixture

from lmprune import data as texts
from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.begun import PRUNING, place_of
from lmprune.checkpoints.journal import Journal
from lmprune.data import zero_shot
from lmprune.jobs.deploy import papers_of_copy
from lmprune.jobs.kept import Kept
from lmprune.jobs.recovery import steps_before
from lmprune.plan import PLAN_FILE
from lmprune.progress import silent
from lmprune.sites.find import find_sites
from lmprune.training.early_stop import BEST, EarlyStop

# -- what runs leave

_WALK, _TENSORS = "obs", {"0": torch.arange(8.0).reshape(2, 4), "1": torch.ones(3)}
_ASKED: dict[str, Any] = {"model": "a", "keep": "0.5", "device": "cpu", "resume": False, "force": False}


def a_journal(folder: Path) -> None:
    """Of a streamed pruning that was stopped after its second block."""
    journal = Journal(folder / "j")
    stage = journal.stage(_WALK)
    for name in ("neurons.0", "neurons.1"):
        stage.found[name] = _TENSORS
        stage.end(lambda: _TENSORS)
    journal.check("text", _TENSORS)


def go_on(folder: Path) -> None:
    """As a walk does: what is not to the bit what was written is worked out again, and never used."""
    journal = Journal(folder / "j")
    stage = journal.stage(_WALK)
    for state in ([stage.state] if stage.done else []) + [stage.found[name] for name in stage.found]:
        assert state.keys() == _TENSORS.keys() and all(state[name].equal(_TENSORS[name]) for name in state), "another"
    journal.check("text", _TENSORS)
    shutil.rmtree(folder / "j")
    a_journal(folder)


def a_pruning(folder: Path) -> None:
    with Kept(folder / "o", _ASKED).begun():
        a_journal(place_of(folder / "o", PRUNING))


def a_recovery(folder: Path) -> None:
    some_text(folder, "steps", "120 12")
    with torch.no_grad():
        stopping(folder)._measure(tiny_student(), 3)


def tiny_student() -> Any:
    return student()[0]


class _Likes:
    """A teacher that finds nothing to say."""

    def divergence(self, *_: Any) -> torch.Tensor:
        return torch.zeros(1)


def stopping(folder: Path) -> EarlyStop:
    ids = torch.arange(8)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    teacher: Any = _Likes()
    return EarlyStop(teacher, [batch], every=1, patience=1, minutes=None, folder=folder)


def take_the_best(folder: Path) -> None:
    found = stopping(folder)
    assert found.best is not None
    found.restore(student()[0])


# -- models


@cache
def _mixture() -> Any:
    return tiny_mixture("qwen3_moe", vocab_size=258, bos_token_id=257, eos_token_id=257)


def a_mixture(folder: Path) -> None:
    checkpoint.save(_mixture(), folder, force=True)


def open_mixture(source: Path) -> None:
    net = models.load(source, note=silent)
    find_sites(net, ["experts", "expert_neurons"])
    with torch.no_grad():
        net(torch.arange(8)[None])


def merges(folder: Path) -> None:
    """A tokenizer in the files that came before tokenizer.json."""
    a_model(folder)
    backend = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    some_text(folder, "vocab.json", json.dumps(backend["vocab"]))
    some_text(folder, "merges.txt", "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in backend["merges"]))
    some_text(folder, "tokenizer_config.json", json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<s>"}))


def of_llama_cpp(folder: Path) -> None:
    """A model that every export takes."""
    a_model(folder / "m")
    byte_tokenizer(merges=[("a", "t")]).save_pretrained(folder / "m")


def exported(to: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        out = folder / ("o.gguf" if to == "gguf" else "o")
        try:
            command("export", "{}/m", "--to", to, "--out", str(out), "--no-verify")(folder)
        finally:
            assert list(folder.glob(".lmprune-*")) == [], "left over"
            shutil.rmtree(out, ignore_errors=True)
            out.unlink(missing_ok=True)

    return run


def a_run_of_cats(folder: Path) -> None:
    a_run(folder)
    file = folder / "run.yaml"
    some_text(folder, "t.txt", TEXT)
    file.write_text(file.read_text().replace("data: wikitext", f"data: {folder / 't.txt'}"))


def dry_run(folder: Path) -> None:
    """But for where it writes, which a run file may say as it likes."""
    file = folder / "run.yaml"
    file.write_bytes(re.sub(rb"(?m)^out:.*$", f"out: {folder / 'out'}".encode(), file.read_bytes()))
    command("run", "{}/run.yaml", "--dry-run")(folder)


def a_whole_model(folder: Path) -> None:
    """With a card that lmprune wrote, whose licence and plan go along with copies."""
    with_card(folder)
    assert (folder / PLAN_FILE).is_file()


# -- tasks and texts

_TASKS: dict[str, dict[str, Any]] = {
    "hellaswag": {"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": ["a", "b"], "label": "1"},
    "piqa": {"goal": "g", "sol1": "a", "sol2": "b", "label": 0},
    "winogrande": {"sentence": "The _ sat.", "option1": "a", "option2": "b", "answer": "1"},
    "boolq": {"question": "q", "passage": "p", "answer": True},
    "openbookqa": {"question_stem": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"},
    "sciq": dict.fromkeys(("question", "support", "distractor1", "distractor2", "distractor3", "correct_answer"), "a"),
    "lambada": {"context": "The cat", "continuation": "sat"},
}


def kinds(folder: Path) -> None:
    some_text(folder, "prose.train.txt", TEXT * 3)
    some_text(folder, "talk.train.jsonl", lines_of([{"messages": talk} for talk in TALK * 40]))


def read_kinds(folder: Path) -> None:
    texts.load("mix", "train", data_dir=folder, tokenizer=student()[1], num_tokens=64)


def wikitext(folder: Path) -> None:
    some_text(folder, "wiki.train.raw", " \n = A = \n \n text \n \n = = B = = \n \n more \n \n = C = \n \n text \n")


MORE: dict[str, Reader] = {
    "journal, a state": Reader(a_journal, f"j/{_WALK}/states/2.safetensors", "safetensors", go_on, 4),
    "journal, what was found": Reader(a_journal, f"j/{_WALK}/found/neurons.0.safetensors", "safetensors", go_on, 4),
    "journal, what it began with": Reader(a_journal, "j/begun/text.all.safetensors", "safetensors", go_on, 4),
    "settings of a pruning": Reader(
        a_pruning, f"o.{PRUNING}/settings.json", "json", lambda f: Kept(f / "o", {**_ASKED, "resume": True}), 6
    ),
    "steps of a recovery": Reader(a_recovery, "steps", "lines", lambda f: steps_before(f / "steps"), 6),
    "best of a recovery": Reader(a_recovery, BEST, "safetensors", take_the_best, 6),
    "card that is copied": Reader(a_whole_model, "README.md", "lines", lambda f: papers_of_copy(str(f), "gguf", []), 4),
    "config of gemma3": Reader(partial(a_model, name="gemma3_text"), "config.json", "json", open_model, 2),
    "config of gpt2": Reader(partial(a_model, name="gpt2"), "config.json", "json", open_model, 2),
    "config of falcon": Reader(partial(a_model, name="falcon-new"), "config.json", "json", open_model, 2),
    "config of bloom": Reader(partial(a_model, name="bloom"), "config.json", "json", open_model, 2),
    "config of a mixture": Reader(a_mixture, "config.json", "json", open_mixture, 2),
    "safetensors of a mixture": Reader(a_mixture, "model.safetensors", "safetensors", look_at, 2),
    "gguf of gemma3": Reader(
        partial(a_gguf, name="gemma3_text"), "m.gguf", "gguf", lambda f: open_model(f / "m.gguf"), 2
    ),
    "merges.txt": Reader(merges, "merges.txt", "lines", open_tokenizer, 2),
    "vocab.json": Reader(merges, "vocab.json", "json", open_tokenizer, 2),
    **{
        name: Reader(
            partial(some_text, name=f"{name}.jsonl", content=lines_of([row] * 2)), f"{name}.jsonl", "json",
            partial(zero_shot.read, name), 2,
        )
        for name, row in _TASKS.items()
    },
    "kinds of text": Reader(kinds, "talk.train.jsonl", "json", read_kinds, 4),
    "wikitext": Reader(
        wikitext, "wiki.train.raw", "lines", lambda f: texts.load("wikitext", "train", data_dir=f), 4
    ),
    "lmprune export, config": Reader(of_llama_cpp, "m/config.json", "json", exported("gguf"), 1),
    "lmprune export, tokenizer": Reader(of_llama_cpp, "m/tokenizer.json", "json", exported("gguf"), 1),
    "lmprune export, plan": Reader(of_llama_cpp, f"m/{PLAN_FILE}", "json", exported("hf-uniform"), 1),
    "lmprune export, generation_config": Reader(
        of_llama_cpp, "m/generation_config.json", "json", exported("hf-uniform"), 1
    ),
    "lmprune run --dry-run": Reader(
        a_run_of_cats, "run.yaml", "lines", dry_run, 1, names=True
    ),
}  # fmt: skip
