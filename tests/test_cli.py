"""The commands as a user meets them: what they print where, what they write, and that it can be used."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import TEXT, documented, hear_ctrl_c, lmprune, tiny_checkpoint
from tiny_models import LAYERS, WIDTH
from transformers import AutoModelForCausalLM

from lmprune.checkpoints import models
from lmprune.commands import console
from lmprune.data import load as load_text
from lmprune.data.tokens import cover
from lmprune.evaluation.perplexity import perplexity
from lmprune.methods import METHODS
from lmprune.plan import PLAN_FILE, PrunePlan

QUICK = ("--calibration-tokens", 1024, "--seq-len", 64, "--multiple-of", 8)


@pytest.fixture(scope="module")
def pruned(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a pruning."""
    out = tmp_path_factory.mktemp("pruned") / "llama"
    return lmprune("prune", model, "--data", text, "--keep", 0.5, *QUICK, "--out", out, "--json").record


def num_parameters(folder: str | Path) -> int:
    return sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())


# -- help


@pytest.mark.parametrize(
    "command", ["", *"inspect prune finetune teach eval analyze export bench study report methods demo".split()]
)
def test_help_needs_neither_torch_nor_transformers(command: str) -> None:
    code = (
        "import sys\nfrom lmprune.commands.cli import app\ntry:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert not end.code\nprint({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
    assert "Usage: " in done.stdout


def test_without_a_command_help_is_shown() -> None:
    shown = lmprune()
    assert shown.code == 0 and "Commands" in shown.out and shown.err == ""


# -- prune


def test_prune_prints_one_object_with_the_documented_keys(pruned: dict[str, Any]) -> None:
    assert set(pruned) == documented("prune") - {"training"}
    assert pruned["widths"] == [24] * LAYERS
    assert pruned["ffn_params_after"] * 2 == pruned["ffn_params_before"] + 32 * LAYERS  # `down` keeps its bias
    assert pruned["peak_memory_mb"] > 50 and pruned["seconds"] > 0


def test_prune_counts_what_it_writes(pruned: dict[str, Any], model: Path) -> None:
    assert num_parameters(model) == pruned["params_before"]
    assert num_parameters(pruned["out"]) == pruned["params_after"]
    assert sorted(p.name for p in Path(pruned["out"]).iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "prune_plan.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert len({p.stat().st_mode for p in Path(pruned["out"]).iterdir()}) == 1  # whoever reads one reads all


def test_prune_tells_people_what_it_did(model: Path, text: Path, tmp_path: Path) -> None:
    shown = lmprune("prune", model, "--data", text, *QUICK, "--out", tmp_path / "o")
    assert shown.code == 0
    assert f"calibrating on {text}" in shown.err and "pruning" in shown.err
    assert re.search(r"feed-forward +[\d,]+ +[\d,]+ +83\.\d%", shown.out)  # 40 of 48 neurons
    assert "Try next:" in shown.out and f"eval {tmp_path / 'o'}" in shown.out
    assert "calibrating" not in shown.out


def test_the_recorded_command_makes_the_same_plan(pruned: dict[str, Any], tmp_path: Path) -> None:
    command = pruned["command"]
    assert command[0] == "lmprune"
    again = [tmp_path / "again" if arg == pruned["out"] else arg for arg in command[1:]]
    assert lmprune(*again).code == 0
    assert PrunePlan.load(tmp_path / "again" / PLAN_FILE).kept == PrunePlan.load(Path(pruned["out"]) / PLAN_FILE).kept


def test_an_existing_plan_is_applied(pruned: dict[str, Any], model: Path, text: Path, tmp_path: Path) -> None:
    plan = Path(pruned["out"]) / PLAN_FILE
    record = lmprune(
        "prune", model, "--plan", plan, "--data", text, *QUICK[:-2], "--out", tmp_path / "o", "--json"
    ).record
    assert record["widths"] == pruned["widths"]
    assert PrunePlan.load(tmp_path / "o" / PLAN_FILE).kept == PrunePlan.load(plan).kept
    assert {"--plan", "--seq-len"} <= set(record["command"]) and "--keep" not in record["command"]


def test_a_plan_on_other_text_is_said(pruned: dict[str, Any], model: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    plan = Path(pruned["out"]) / PLAN_FILE
    for source, said in ((text, False), (other, True)):
        shown = lmprune("prune", model, "--plan", plan, "--data", source, *QUICK[:-2], "--out", tmp_path / source.stem)
        assert shown.code == 0 and ("not the text the plan was made on" in shown.err) == said


def test_global_scope_goes_through_the_shim_and_lmprune_load(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    record = lmprune(
        "prune", model, "--data", text, "--method", "taylor", "--scope", "global", "--keep", 0.5,
        "--calibration-tokens", 1024, "--seq-len", 64, "--multiple-of", 1, "--out", out, "--json",
    ).record  # fmt: skip
    assert len(set(record["widths"])) > 1 and sum(record["widths"]) == LAYERS * WIDTH // 2
    assert record["stock"] is False and (out / "shim.py").is_file()
    loaded = models.load(out)
    assert sum(p.numel() for p in loaded.parameters()) == record["params_after"]
    assert "trust_remote_code=True" in (out / "README.md").read_text()


def test_a_plan_of_another_model_is_said(pruned: dict[str, Any], text: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other")
    plan = Path(pruned["out"]) / PLAN_FILE
    shown = lmprune("prune", other, "--data", text, *QUICK[:-2], "--plan", plan, "--out", tmp_path / "o")
    assert shown.code == 0 and "the plan was made from" in shown.err


def test_a_ratio_that_was_not_reached_is_said(model: Path, tmp_path: Path) -> None:
    options = ("prune", model, "--method", "magnitude", "--keep", 0.5)
    shown = lmprune(*options, "--multiple-of", 32, "--out", tmp_path / "a")
    assert "66.7% of the neurons are left, 50.0% were asked for: see --multiple-of" in shown.out
    assert "were asked for" not in lmprune(*options, "--multiple-of", 8, "--out", tmp_path / "b").out


def test_the_version() -> None:
    shown = lmprune("--version")
    assert shown.code == 0 and shown.out.strip() == f"lmprune {version('lmprune')}"


def test_a_method_without_text_needs_no_tokenizer_and_no_data(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "bare", "gpt2", tokenizer=False, n_positions=256)
    shown = lmprune("prune", model, "--method", "magnitude", "--out", tmp_path / "o", "--json")
    assert shown.record["data"] is None
    assert "no tokenizer.json" in shown.err and "will have none either" in shown.err
    assert not (tmp_path / "o" / "tokenizer_config.json").exists()
    shown = lmprune("prune", model, "--method", "magnitude", "--out", tmp_path / "p")
    assert " inspect " in shown.out and " eval " not in shown.out


def test_a_text_shorter_than_asked_is_reported(model: Path, text: Path, tmp_path: Path) -> None:
    short = lmprune("prune", model, "--data", text, "--seq-len", 256, "--out", tmp_path / "o")
    whole = len(TEXT) // 256 * 256
    assert short.code == 0 and f"only {whole} tokens" in short.err
    assert PrunePlan.load(tmp_path / "o" / PLAN_FILE).settings["calibration_tokens"] == whole


def test_force_replaces_a_checkpoint(model: Path, tmp_path: Path) -> None:
    for keep in (0.75, 0.5):
        done = lmprune(
            "prune", model, "--method", "random", "--keep", keep, "--multiple-of", 1, "--out", tmp_path / "o", "--force"
        )
        assert done.code == 0, done.err
    assert PrunePlan.load(tmp_path / "o" / PLAN_FILE).widths == [24] * LAYERS


def refused_of(done: Any) -> str:
    assert done.code == 2
    return done.err


def test_a_model_outside_the_table_is_told_by_its_paths(model: Path, text: Path, tmp_path: Path, monkeypatch) -> None:
    from lmprune.sites.families import FAMILIES

    monkeypatch.delitem(FAMILIES, "llama")
    paths = "up=mlp.up_proj,gate=mlp.gate_proj,down=mlp.down_proj,width_key=intermediate_size"
    refused = lmprune("prune", model, "--method", "magnitude", "--out", tmp_path / "o")
    assert refused.code == 2 and "--ffn up=" in refused.err
    done = lmprune(
        "prune", model, "--method", "magnitude", "--multiple-of", 1, "--ffn", paths, "--out", tmp_path / "o", "--json"
    )
    assert done.record["widths"] == [36] * LAYERS and done.record["stock"]
    trained = ("finetune", model, "--steps", 2, "--seq-len", 32, "--batch-size", 1, "--data", text)
    assert "--ffn up=" in refused_of(lmprune(*trained, "--out", tmp_path / "f"))
    assert lmprune(*trained, "--ffn", paths, "--out", tmp_path / "f").code == 0
    assert PrunePlan.load(tmp_path / "f" / PLAN_FILE).widths == [WIDTH] * LAYERS
    for verb, teacher in (("finetune", ()), ("recover", ("--teacher", model, "--holdout", 0.2))):
        again, out = (verb, tmp_path / "o", *teacher, *trained[2:]), tmp_path / f"{verb}-again"
        assert "--ffn up=" in refused_of(lmprune(*again, "--out", out))
        assert lmprune(*again, "--ffn", paths, "--out", out).code == 0
        assert PrunePlan.load(out / PLAN_FILE).widths == [36] * LAYERS
    exported = ("export", model, "--to", "hf-uniform")
    assert "--ffn up=" in refused_of(lmprune(*exported, "--out", tmp_path / "e"))
    assert lmprune(*exported, "--ffn", paths, "--out", tmp_path / "e", "--json").record["widths"] == [WIDTH] * LAYERS


# -- eval


def test_eval_agrees_with_the_function(pruned: dict[str, Any], model: Path, text: Path) -> None:
    record = lmprune(
        "eval", pruned["out"], "--data", text, "--context", 64, "--max-tokens", 512, "--baseline", model, "--json"
    ).record
    assert set(record) == documented("eval")
    small, dense, tokenizer = models.load(pruned["out"]), models.load(model), models.load_tokenizer(model)
    ids, (covered,) = cover(tokenizer, load_text(str(text)), 512)
    sizes = {"num_bytes": len(covered.encode()), "num_words": len(covered.split())}
    expected = perplexity(small, ids, context=64, baseline=dense, **sizes).to_dict()
    assert {key: record[key] for key in expected} == expected
    assert record["tokens"] == 512 - 8 and sizes["num_bytes"] == 512 and 80 < sizes["num_words"] < 130


def test_words_end_where_their_document_does(model: Path, tmp_path: Path) -> None:
    """Records of two words each, without white space around them, cut in the 51st, of 7 bytes each."""
    file = tmp_path / "few.jsonl"
    file.write_text('{"text": "two cat"}\n' * 60)
    found = lmprune("eval", model, "--data", file, "--max-tokens", 355, "--json").record
    assert found["word_perplexity"] == pytest.approx(math.exp(found["nll"] * 355 / (2 * 50 + 2)))


def test_a_model_compared_with_itself_does_not_differ(model: Path, text: Path) -> None:
    record = lmprune("eval", model, "--data", text, "--max-tokens", 300, "--baseline", model, "--json").record
    assert record["nll_difference"] == 0 and record["top1_agreement"] == 1
    assert record["perplexity"] == pytest.approx(record["baseline_perplexity"])


def test_what_one_window_can_not_tell_is_null(model: Path, text: Path) -> None:
    shown = lmprune("eval", model, "--data", text, "--max-tokens", 100, "--json")
    assert shown.record["perplexity_se"] is None and "NaN" not in shown.out
    assert "no standard error" in lmprune("eval", model, "--data", text, "--max-tokens", 100).out


def test_eval_by_default_takes_the_models_context(model: Path, text: Path) -> None:
    record = lmprune("eval", model, "--data", text, "--max-tokens", 512, "--stride", 128, "--json").record
    assert (record["context"], record["stride"]) == (256, 128)
    assert "baseline" not in record and "kl" not in record


# -- eval on a task


@pytest.fixture
def own_pairs(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    rows = [{"context": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_task_prints_one_object_with_the_documented_keys(model: Path, own_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    options = ("--limit", 3, "--max-new-tokens", 6, "--batch-size", 2, "--out", out, "--json")
    record = lmprune("eval", model, "--data", own_pairs, *options).record
    metrics = {"exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum", "first_choices"}
    names = documented("eval --data TASK")
    assert {f"{name}_ci" for name in metrics} <= set(record) and metrics < names
    bare = {name.removesuffix("_ci") for name in record}
    assert bare == names - {
        "logical_form",
        "execution",
        "bleu",
        "chrf",
        "num_beams",
        "length_penalty",
        "no_repeat_ngram",
        "name",
    }
    assert (record["items"], record["decoded"], record["unfinished"]) == (3, 3, 3)
    assert record["decode"] == {"name": "greedy", "num_beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0}
    assert json.loads((out / "scores.json").read_text()) == record
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 3
    more = lmprune("eval", model, "--data", own_pairs, *options[2:]).record
    assert (more["items"], more["decoded"]) == (5, 2)


def test_a_task_for_people(model: Path, own_pairs: Path) -> None:
    shown = lmprune("eval", model, "--data", own_pairs, "--max-new-tokens", 4, "--decode", "beam")
    assert f"evaluating on {own_pairs}" in shown.err and "decoding" in shown.err
    assert re.search(r"beam +95% interval", shown.out)
    assert re.search(r"exact match +0\.0000 +0\.0000–0\.4345", shown.out)
    assert "5 outputs met the limit of 4 new tokens" in shown.out


def test_pairs_are_calibrated_on(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"context": f"{i} + 1 =", "completion": f" {i + 1}"}) + "\n" for i in range(99)))
    record = lmprune("prune", model, "--data", file, *QUICK, "--out", tmp_path / "o", "--json").record
    assert record["data"]["documents"] == 99 and record["widths"] == [40] * LAYERS


# -- methods, and --json in general


def test_methods_lists_the_table() -> None:
    rows = lmprune("methods", "--json").record["methods"]
    assert [row["name"] for row in rows] == list(METHODS)
    shown = lmprune("methods").out
    assert all(re.search(rf"^{name} ", shown, re.MULTILINE) for name in METHODS)


def test_inspect_has_the_documented_keys(pruned: dict[str, Any]) -> None:
    record = lmprune("inspect", pruned["out"], "--json").record
    assert set(record) == documented("inspect")
    assert record["params"] == pruned["params_after"] and record["widths"] == pruned["widths"]
    assert record["plan"]["method"] == "obs" and record["plan"]["widths_before"] == [WIDTH] * LAYERS
    shown = lmprune("inspect", pruned["out"]).out
    assert f"pruned from {pruned['model']} by obs" in shown and "24 in each of 3 layers" in shown


def test_what_libraries_print_does_not_reach_stdout(model: Path, tmp_path: Path, monkeypatch) -> None:
    load = models.load

    def noisy(*args: Any, **kwargs: Any) -> Any:
        print("a library says hello")
        return load(*args, **kwargs)

    monkeypatch.setattr(models, "load", noisy)
    shown = lmprune("prune", model, "--method", "random", "--out", tmp_path / "o", "--json")
    assert shown.record["method"] == "random"
    assert "hello" in shown.err


def test_markup_in_names_is_text(text: Path, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "a[bold]b[/]:smile:")
    shown = lmprune("inspect", model)
    assert shown.out.startswith(f"{model}: llama")
    assert f"[bold]b[/]:smile:{os.sep}nothing" in lmprune("inspect", model / "nothing").err


def test_next_commands_call_this_very_program(monkeypatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "lmprune"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert console.program() == str(program)
    monkeypatch.setenv("PATH", str(program.parent))
    assert console.program() == "lmprune"
    monkeypatch.setattr(sys, "argv", ["/x/lmprune/__main__.py"])
    assert console.program() == f"{sys.executable} -m lmprune"
    assert console.next_commands([["inspect", "a b"]]).endswith("-m lmprune inspect 'a b'")


# -- interrupts


def test_an_interrupt_while_writing_leaves_nothing(model: Path, tmp_path: Path, monkeypatch) -> None:
    from transformers import PreTrainedModel

    def interrupted(self: Any, folder: Path, **_: Any) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", interrupted)
    ended = lmprune("prune", model, "--method", "random", "--out", tmp_path / "sub" / "o")
    assert ended.code == 130 and "interrupted" in ended.err
    assert list((tmp_path / "sub").iterdir()) == []


@pytest.fixture
def at_work(model: Path, text: Path, quick_python: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A pruning that would go on for long."""
    long = tmp_path / "long.txt"
    long.write_text(TEXT * 100)
    command = ["prune", model, "--data", long, "--calibration-tokens", 10**6, "--seq-len", 32, "--out", tmp_path / "o"]
    process = subprocess.Popen(
        [quick_python, "-m", "lmprune", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    yield process
    process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_running_command_can_be_stopped(
    at_work: subprocess.Popen[str], number: signal.Signals, tmp_path: Path
) -> None:
    assert at_work.stderr is not None
    assert "calibrating" in at_work.stderr.readline()
    time.sleep(1)
    assert at_work.poll() is None, "it should still be at work"
    at_work.send_signal(number)
    out, err = at_work.communicate(timeout=60)
    assert (at_work.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "error: interrupted; nothing was left half-written"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.txt"]


# -- end to end, on a real model


def shell(*args: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


STRANGER = """
import sys
sys.modules["lmprune"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, trust = sys.argv[1], len(sys.argv) > 2
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
text = tokenizer.decode(model.generate(ids, do_sample=False, max_new_tokens=20)[0], skip_special_tokens=True)
print(sum(p.numel() for p in model.parameters()))
print(repr(text))
"""


@pytest.fixture(scope="module")
def story(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of text that the model knows best: its own."""
    dense, file = shared / "models" / "stories260k", tmp_path_factory.mktemp("story") / "story.txt"
    text = load_text("self", "train", model=models.load(dense), tokenizer=models.load_tokenizer(dense), num_tokens=4096)
    file.write_text("\n".join(text.documents))
    return file


@pytest.mark.slow
@pytest.mark.conformance
@pytest.mark.parametrize("scope", ["local", "global"])
def test_end_to_end(shared: Path, story: Path, tmp_path: Path, scope: str) -> None:
    """Prune, open in a fresh process without lmprune, evaluate: pruned must be worse, but still a model of its text."""
    dense, out = shared / "models" / "stories260k", tmp_path / "out"
    printed = shell(
        "-m", "lmprune", "prune", dense, "--data", story, "--keep", 0.75, "--scope", scope, "--multiple-of", 4,
        "--calibration-tokens", 4096, "--seq-len", 128, "--out", out, "--json",
    )  # fmt: skip
    record = json.loads(printed)
    assert record["stock"] == (scope == "local") and record["kept"] == pytest.approx(0.75, abs=0.02)
    params, text = shell("-c", STRANGER, out, *(["trust"] if scope == "global" else [])).splitlines()
    assert int(params) == record["params_after"] < record["params_before"] == 260_032
    assert text.startswith("'Once upon a time, there was")
    loaded = models.load(out)
    ids = models.load_tokenizer(out)("Once upon a time", return_tensors="pt").input_ids
    assert torch.isfinite(loaded(ids).logits).all()
    evaluated = lmprune("eval", out, "--data", story, "--context", 128, "--baseline", dense, "--json").record
    assert 1 < evaluated["perplexity_ratio"] < 1.5 and evaluated["top1_agreement"] > 0.7
