"""A run file: read, checked whole, carried out, gone on with; and written by --save-config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_bad_input import refused
from tiny_checkpoints import documented, lmprune

from lmprune.checkpoints.begun import SETTINGS, TRAINING, place_of
from lmprune.jobs.run import _again
from lmprune.plan import PrunePlan
from lmprune.study.recipe import Step

pytestmark = pytest.mark.usefixtures("quickly")

DOCS = Path(__file__).parents[1] / "docs"
RUN = """\
model: {model}
out: {out}
data: {text}
prune:
  keep: 0.5
  multiple-of: 1
  calibration_tokens: 256
  seq_len: 64
finetune: {{steps: 2, seq_len: 64, batch_size: 1}}
eval:
  - {{max_tokens: 512}}
  - {{max_tokens: 512, baseline: {model}}}
"""


@pytest.fixture
def written(model: Path, text: Path, tmp_path: Path) -> Any:
    """Writes the run file, with replacements."""

    def write(*changes: tuple[str, str]) -> Path:
        content = RUN.format(model=model, text=text, out=tmp_path / "out")
        for old, new in changes:
            assert old in content
            content = content.replace(old, new)
        (tmp_path / "run.yaml").write_text(content)
        return tmp_path / "run.yaml"

    return write


def commands(file: Path) -> list[list[str]]:
    return lmprune("run", file, "--dry-run", "--json").record["todo"]


def test_each_step_works_on_what_the_ones_before_it_left(written: Any, model: Path, text: Path, tmp_path: Path):
    out = tmp_path / "out"
    prune, finetune, first, second = commands(written())
    assert prune == [
        "lmprune", "prune", str(model), "--data", str(text), "--keep", "0.5", "--multiple-of", "1",
        "--calibration-tokens", "256", "--seq-len", "64", "--out", str(out / "pruned"),
    ]  # fmt: skip
    assert finetune[:3] == ["lmprune", "finetune", str(out / "pruned")] and finetune[-1] == str(out / "finetuned")
    assert first[2] == second[2] == str(out / "finetuned") and second[-2:] == ["--baseline", str(model)]
    assert not out.exists()


def test_a_run_ends_in_what_its_commands_make_and_goes_on_where_it_was(written: Any, tmp_path: Path):
    out, file = tmp_path / "out", written()
    done = lmprune("run", file, "--json").record
    assert [step["name"] for step in done["steps"]] == ["prune", "finetune", "eval", "eval 2"]
    evaluated = done["steps"][3]["record"]
    assert evaluated["perplexity"] / evaluated["baseline_perplexity"] == pytest.approx(evaluated["perplexity_ratio"])
    plan = PrunePlan.load(out / "finetuned" / "prune_plan.json")
    assert plan.keep == 0.5 and plan.provenance["run"] == file.read_text() == (out / "run.yaml").read_text()
    assert file.read_text().strip() in (out / "finetuned" / "README.md").read_text()
    assert "--run-file" not in plan.provenance["command"]

    ended = lmprune("run", file, "--resume", "--json")
    assert ended.record["steps"] == done["steps"] and "that run has ended, all of it in" in ended.err

    lines = (out / "run.jsonl").read_text().splitlines(keepends=True)
    (out / "run.jsonl").write_text("".join(lines[:3]))  # as it was when the last step was killed
    weights = (out / "pruned" / "model.safetensors").stat().st_mtime_ns
    again = lmprune("run", file, "--json")
    assert "3 of 4 steps were done before: prune, finetune, eval" in again.err
    assert again.record["steps"][3]["record"]["perplexity"] == evaluated["perplexity"]
    assert (out / "pruned" / "model.safetensors").stat().st_mtime_ns == weights
    assert len((out / "run.jsonl").read_text().splitlines()) == 4

    sentence = refused("run", written(("keep: 0.5", "keep: 0.25")))
    assert (
        "holds a run in which prune was asked for with" in sentence
        and "--keep 0.5" in sentence
        and "--force" in sentence
    )


def test_a_target_of_a_later_step_is_about_the_model_that_the_ones_before_it_make(written: Any, tmp_path: Path) -> None:
    """Which is not there yet: no more is asked than can be known."""
    kinds = {"heads": {"counts": [2, 1], "prefill": [1.0, 0.5], "decode": [2.0, 1.0]}}
    table = {"format": "lmprune latency 1", "model": "m", "shapes": {"heads": [2] * 3}, "setting": {}, "machine": {},
             "kinds": kinds}  # fmt: skip
    (tmp_path / "table.json").write_text(json.dumps(table))
    first = "prune:\n  keep: 0.5\n  multiple-of: 1\n  calibration_tokens: 256\n  seq_len: 64\n"
    for target in ("target_params: 20k", f"target_speedup: 1.1, latency_table: {tmp_path / 'table.json'}"):
        steps = f"prune:\n  - {{keep: 0.5, multiple-of: 1}}\n  - {{units: heads, {target}}}\n"
        assert [words[:2] for words in commands(written((first, steps)))[:2]] == [["lmprune", "prune"]] * 2


def test_a_step_that_was_killed_when_it_had_ended_is_not_done_again(written: Any, model: Path, tmp_path: Path) -> None:
    """Its result is there, and its folder, and no line of it in the run's."""
    out, file = tmp_path / "out", written()
    file.write_text(file.read_text().partition("eval:")[0])
    lmprune("run", file, "--json")
    place, weights = place_of(out / "finetuned", TRAINING), out / "finetuned" / "model.safetensors"
    place.mkdir()
    (place / SETTINGS).write_text("{}")
    (out / "run.jsonl").write_text((out / "run.jsonl").read_text().splitlines(keepends=True)[0])
    before = weights.stat().st_mtime_ns
    assert [words[1] for words in commands(file)] == ["finetune"]
    (_, finetuned) = lmprune("run", file, "--json").record["steps"]
    assert finetuned["record"] == {"out": str(out / "finetuned"), "finished": True}
    assert weights.stat().st_mtime_ns == before and not place.exists()


def test_a_run_that_was_killed_when_it_began_begins(written: Any, tmp_path: Path) -> None:
    """Its folder holds its records, and a room, but not yet the file; one that holds more is somebody's."""
    (tmp_path / "out" / ".lmprune-0123456789abcdef").mkdir(parents=True)
    assert lmprune("run", written(), "--dry-run").code == 0
    (tmp_path / "out" / "run.jsonl").touch()
    assert lmprune("run", written(), "--dry-run").code == 0
    (tmp_path / "out" / "thesis.txt").touch()
    assert "no run's folder" in refused("run", written(), "--dry-run")


def test_a_step_that_fails_keeps_what_was_done_and_is_tried_again(written: Any, text: Path, tmp_path: Path):
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_text("none")  # no check sees that it is broken
    file = written(("batch_size: 1", f"batch_size: 1, teacher: {teacher}"))
    ended = lmprune("run", file, "--json")
    assert ended.code == 2 and ended.out == ""
    (said,) = [line for line in ended.err.splitlines() if "finetune ended" in line]
    assert "finetune ended with exit code 2, and said why above" in said
    assert "error:" not in ended.err, "the step's own sentence, which this process does not hear, is the one error"
    (line,) = (tmp_path / "out" / "run.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "prune" and not (tmp_path / "out" / "finetuned").exists()


@pytest.mark.parametrize(
    ("change", "line", "told"),
    [
        (("keep: 0.5", "kep: 0.5"), 5, "unknown option of `lmprune prune` 'kep'; did you mean keep"),
        (("data:", "dtaa:"), 3, "unknown key 'dtaa'; did you mean data"),
        (("keep: 0.5", "keep: 2"), 5, "prune: keep"),
        (("keep: 0.5", "target_params: 20"), 5, "the best possible is"),
        (("seq_len: 64\n", "seq_len: many\n"), 8, "Invalid value for '--seq-len'"),
        (("keep: 0.5", "method: obz"), 5, "did you mean obs"),
        (("{max_tokens: 512}", "{max_tokens: 512, decode: best}"), 11, "drop --decode"),
        (("{max_tokens: 512}", "{data: nowhere.txt}"), 11, "nowhere.txt"),
        (("steps: 2, ", ""), 9, "is about training; say how long"),
        (("eval:", "export: {to: gguff}\neval:"), 10, "did you mean gguf"),
        (("prune:\n", "prune: [3]\nanalyze:\n"), 4, "expected keys and values"),
    ],
)
def test_the_whole_file_is_checked_before_the_first_step(
    written: Any, tmp_path: Path, change: tuple[str, str], line: int, told: str
):
    sentence = refused("run", written(change))
    assert f"run.yaml, line {line}: " in sentence and told in sentence
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_run(tmp_path: Path, model: Path, written: Any):
    file = tmp_path / "bad.yaml"
    assert "can't read the run file" in refused("run", file)
    file.write_text("a: [")
    assert "is not YAML" in refused("run", file)
    file.write_text(f"model: {model}\n")
    assert "there is no 'out'" in refused("run", file)
    file.write_text(f"model: {model}\nout: {tmp_path / 'x'}\n")
    assert "nothing is to be done" in refused("run", file)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letters.txt").write_text("dear")
    assert "no run's folder" in refused("run", written())
    assert "there is no run to resume in" in refused("run", written(), "--resume")
    assert (tmp_path / "out" / "letters.txt").read_text() == "dear"


def test_what_was_begun_is_gone_on_with_and_only_our_own_makes_room(tmp_path: Path):
    own = Step("finetune", "finetune", ("finetune", "m"), tmp_path / "finetuned", True, 1)
    other = Step("prune", "prune", ("prune", "m"), tmp_path / "elsewhere", False, 1)
    assert _again(tmp_path, own, force=False) == _again(tmp_path, other, force=False) == []
    (tmp_path / "run.yaml").write_text("model: m")
    assert _again(tmp_path, own, force=False) == ["--force"] and _again(tmp_path, other, force=False) == []
    place_of(tmp_path / "finetuned", TRAINING).mkdir()
    (place_of(tmp_path / "finetuned", TRAINING) / SETTINGS).write_text("{}")
    assert _again(tmp_path, own, force=False) == ["--resume"] and _again(tmp_path, own, force=True) == ["--force"]


def test_save_config_writes_the_command_that_was_given(model: Path, text: Path, tmp_path: Path):
    file, out = tmp_path / "saved.yaml", tmp_path / "half"
    given = ["prune", str(model), "--out", str(out), "--keep", "0.5", "--data", str(text), "--chat-template"]
    told = lmprune(*given, "--save-config", file)
    assert str(file) in told.out and not out.exists()
    assert yaml.safe_load(file.read_text()) == {
        "model": str(model),
        "out": f"{out}.run",
        "prune": {"out": str(out), "keep": 0.5, "data": str(text), "chat_template": True},
    }
    (command,) = commands(file)
    assert set(command) == {"lmprune", *given}
    assert "is there already" in refused(*given, "--save-config", file)


@pytest.mark.parametrize("verb", ["prune", "finetune", "eval", "analyze", "export", "bench"])
def test_every_step_of_a_run_can_be_saved(verb: str):
    assert "--save-config" in lmprune(verb, "--help").out


def test_the_documents_say_what_a_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    example = (DOCS / "runs.md").read_text().split("```yaml\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(example)
    record = lmprune("run", "small.yaml", "--dry-run", "--json").record
    assert [command[1] for command in record["todo"]] == ["prune", "finetune", "eval", "eval", "export"]
    assert documented("run") == {*record, "seconds"}
