"""A study from YAML to records: the grid, what is wrong with it by line, resuming, failures, several machines."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main
from made_up_records import made_up
from test_bad_input import refused
from tiny_checkpoints import documented, lmprune
from tiny_mixtures import tiny_mixture
from tiny_models import tiny_model

from lmprune.checkpoints.writing import claimed
from lmprune.commands.cli import app, main
from lmprune.errors import UserError
from lmprune.report.figures import _bits
from lmprune.solve.duration import Pace
from lmprune.study import estimate as estimating
from lmprune.study import grid, records, run, runner
from lmprune.study.estimate import estimate
from lmprune.study.grid import Run
from lmprune.study.run import Errand, bitmap

pytestmark = pytest.mark.usefixtures("quickly")

STUDY = """\
name: tiny
models: [{model}]
tasks:
  cats:
    data: {text}
    eval: {{context: 64}}
methods: [random, {{name: magnitude, label: norm, prune: {{scope: global}}}}]
keep: [0.5, 0.25]
prune: {{multiple_of: 1}}
eval: {{max_tokens: 512}}
analyze: {{max_tokens: 256, seq_len: 64}}
"""


def commands() -> grid.Commands:
    known: Any = typer.main.get_command(app)
    return {name: {p.name: p.is_flag for p in c.params if hasattr(p, "is_flag")} for name, c in known.commands.items()}


@pytest.fixture
def written(model: Path, text: Path, tmp_path: Path) -> Any:
    """Writes the study, with replacements, to study.yaml."""

    def write(*changes: tuple[str, str]) -> Path:
        content = STUDY.format(model=model, text=text)
        for old, new in changes:
            assert old in content
            content = content.replace(old, new)
        (tmp_path / "study.yaml").write_text(content)
        return tmp_path / "study.yaml"

    return write


# -- the grid


def test_the_grid_is_the_product_with_the_reference_first(written: Any) -> None:
    found = grid.read(written(("keep:", "seeds: [3, 4]\ndistil: [false, true]\nkeep:")), commands())
    settings = [(r.method, r.keep, r.seed, r.distil) for r in found.runs]
    assert settings[0] == ("dense", 1.0, 3, False) and len(settings) == 1 + 2 * 2 * 2 * 2 == len(set(settings))
    assert {r.criterion for r in found.runs if r.method == "norm"} == {"magnitude"}
    assert all(found.reference(r) is found.runs[0] for r in found.runs)
    assert len({r.id for r in found.runs}) == len(found.runs)


def test_sections_lie_over_each_other(written: Any) -> None:
    found = grid.read(written(), commands())
    dense, random, *_ = found.runs
    norm = next(r for r in found.runs if r.method == "norm")
    assert set(dense.sections) == {"eval", "analyze"}
    assert random.sections["eval"] == {"data": dense.sections["eval"]["data"], "max_tokens": 512, "context": 64}
    assert random.sections["prune"] == {"data": dense.sections["eval"]["data"], "multiple_of": 1}
    assert norm.sections["prune"]["scope"] == "global"
    without = grid.read(written(("scope: global", "multiple_of: null")), commands())
    assert "multiple_of" not in next(r for r in without.runs if r.method == "norm").sections["prune"]


def test_an_id_changes_with_every_setting(written: Any) -> None:
    ids = [
        {r.id for r in grid.read(written(*changes), commands()).runs}
        for changes in ((), [("max_tokens: 512", "max_tokens: 513")], [("context: 64", "context: 65")])
    ]
    assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]
    other = {r.id for r in grid.read(written(("scope: global", "scope: local")), commands()).runs}
    assert len(ids[0] & other) == 3  # dense, random twice
    assert {r.id for r in grid.read(written(("max_tokens: 512", "max_tokens: 512.0")), commands()).runs} == ids[0]


def test_commands_are_spelt_out(written: Any, tmp_path: Path) -> None:
    training = (
        ("methods: [random,", "methods: [{name: random, start: dense, finetune: {steps: 3}},"),
        ("keep: [0.5, 0.25]", "keep: [0.5]\nseeds: [1, 2]\ndistil: [true]\nfinetune: {steps: 7, seq-len: 32}"),
    )
    found = grid.read(written(*training), commands())
    assert [r.seed for r in found.runs if r.reference] == [1, 2]  # trained, so one a seed
    pick = next(r for r in found.runs if (r.method, r.seed) == ("random", 2))
    assert found.reference(pick).seed == 2
    dense = Errand(found.reference(pick), "s", tmp_path / "d", None, True, 1, tmp_path)
    trained = run.commands(dense)
    assert trained["finetune"][:4] == ["finetune", pick.model, "--out", str(tmp_path / "d" / "checkpoint")]
    assert (
        " ".join(trained["finetune"]).endswith("--steps 7 --seq-len 32")
        and trained["eval"][1] == trained["finetune"][3]
    )
    pruned = run.commands(Errand(pick, "s", tmp_path / "r", "DENSE", False, 1, tmp_path))
    assert list(pruned) == ["prune", "finetune", "eval", "analyze"]
    assert pruned["prune"][:4] == ["prune", "DENSE", "--out", str(tmp_path / "r" / "pruned")]
    assert "--teacher DENSE" in " ".join(pruned["prune"]) and "--keep 0.5 --seed 2" in " ".join(pruned["prune"])
    assert pruned["finetune"][1] == pruned["prune"][3] and "--steps 3" in " ".join(pruned["finetune"])
    assert pruned["eval"][1:4] == [str(tmp_path / "r" / "checkpoint"), "--baseline", "DENSE"]


def test_a_task_has_no_baseline_and_bench_compares_with_dense(written: Any, text: Path, tmp_path: Path) -> None:
    task = ((f"data: {text}", "data: wikisql"), ("eval: {context: 64}", "data_dir: d"))
    options = (("eval: {max_tokens: 512}", "bench: {prompt_tokens: 8}"),)
    found = grid.read(written(*task, *options), commands())
    pruned = run.commands(Errand(found.runs[1], "s", tmp_path / "r", "DENSE", False, 1, tmp_path))
    at = str(tmp_path / "r" / "checkpoint")
    assert pruned["eval"] == ["eval", at, "--data", "wikisql", "--data-dir", "d"]
    assert pruned["bench"] == ["bench", "DENSE", at, "--prompt-tokens", "8"]
    assert "bench" not in run.commands(Errand(found.runs[0], "s", tmp_path / "d", None, True, 1, tmp_path))
    of_a_task = grid.read(written(("eval: {context: 64}", "bench: {prompt_tokens: 8}")), commands())
    assert of_a_task.runs[1].sections["bench"] == {"prompt_tokens": 8}


@pytest.mark.parametrize(("units", "compared"), [("experts", False), ("'neurons,heads'", True)])
def test_only_neurons_are_analysed_beside_the_reference(
    units: str, compared: bool, written: Any, tmp_path: Path
) -> None:
    """`analyze` refuses a baseline for a mixture's experts."""
    changes = ("analyze: {max_tokens: 256, seq_len: 64}", f"analyze: {{units: {units}}}")
    found = grid.read(written(changes), commands())
    pruned = run.commands(Errand(found.runs[1], "s", tmp_path / "r", "DENSE", False, 1, tmp_path))
    assert ("--baseline" in pruned["analyze"]) == compared and "--baseline" in pruned["eval"]


@pytest.mark.usefixtures("one_pace")
def test_zero_shot_tasks_are_asked_of_every_model(written: Any, tmp_path: Path) -> None:
    """Another use of `eval`, on other data: of the reference too, and of each pruned model beside it."""
    found = grid.read(written(("eval: {max_tokens: 512}", "zero_shot: {tasks: 'piqa,sciq', limit: 9}")), commands())
    dense, pruned = (
        run.commands(Errand(of, "s", tmp_path / "r", base, False, 1, tmp_path))["zero_shot"]
        for of, base in zip(found.runs, (None, "DENSE"), strict=False)
    )
    asked = ["--tasks", "piqa,sciq", "--limit", "9"]
    assert dense == ["eval", found.runs[0].model, *asked]
    assert pruned == ["eval", str(tmp_path / "r" / "checkpoint"), "--baseline", "DENSE", *asked]
    with pytest.raises(UserError, match="unknown option of `lmprune eval`"):
        grid.read(written(("eval: {max_tokens: 512}", "zero_shot: {task: piqa}")), commands())
    more = estimate(found.runs, [], jobs=1, threads=1)
    assert more > estimate(grid.read(written(), commands()).runs, [], jobs=1, threads=1)


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        ("keep: [", "kep: [", 8, "unknown key 'kep'; did you mean keep?"),
        ("methods: [random,", "methods: [randon,", 7, "unknown method 'randon'; did you mean random?"),
        ("name: magnitude", "name: gumm", 7, "unknown method 'gumm'"),
        ("label: norm", "lable: norm", 7, "unknown key 'lable'"),
        ("label: norm", "label: dense", 7, "is the reference's own name"),
        ("label: norm", "start: middle", 7, "unknown start 'middle'"),
        ("models: [", "models: [/nowhere/at/all, ", 2, "no model at /nowhere/at/all"),
        ("keep: [0.5", "keep: [50", 8, "to keep 50%, pass 0.5"),
        ("keep: [0.5", "keep: [half", 8, "expected a number, got 'half'"),
        ("keep: [0.5, 0.25]", "keep: 0.5", 8, "expected a list"),
        ("keep: [0.5, 0.25]", "seeds: [-1]\nkeep: [0.5]", 8, "a seed is a number from 0 to 4294967295, got -1"),
        ("keep: [0.5, 0.25]", "seeds: [4294967296]\nkeep: [0.5]", 8, "a seed is a number from 0"),
        ("multiple_of: 1", "multiple: 1", 9, "unknown option of `lmprune prune` 'multiple'; did you mean multiple_of?"),
        ("multiple_of: 1", "out: x", 9, "unknown option of `lmprune prune` 'out'"),
        ("    data:", "    dato:", 5, "a task needs 'data'"),
        ("    eval:", "    colour: red\n    eval:", 6, "unknown key 'colour'"),
        ("name: tiny", "name: tiny\nname: other", 2, "'name' is there twice"),
        ("keep: [0.5", "keep: [!what 0.5", 8, "not a value: could not determine a constructor for the tag '!what'"),
        ("name: tiny", "name: 2026-02-30", 1, "not a value: day is out of range for month"),
        ("analyze:", "bench: {models: [a]}\nanalyze:", 11, "unknown option of `lmprune bench` 'models'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(written: Any, old: str, new: str, line: int, sentence: str) -> None:
    file = written((old, new))
    with pytest.raises(UserError) as caught:
        grid.read(file, commands())
    assert f"{file}, line {line}: " in str(caught.value) and sentence in str(caught.value), str(caught.value)


def test_no_study_at_all(tmp_path: Path, written: Any) -> None:
    assert "can't read the study" in refused("study", tmp_path / "none.yaml", "--out", tmp_path / "o")
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "is not YAML" in refused("study", tmp_path / "bad.yaml", "--out", tmp_path / "o")
    (tmp_path / "bad.yaml").write_text("models: []")
    assert "there is no 'tasks'" in refused("study", tmp_path / "bad.yaml", "--out", tmp_path / "o")
    (tmp_path / "bad.yaml").write_text("- a")
    assert "line 1: expected keys and values" in refused("study", tmp_path / "bad.yaml", "--out", tmp_path / "o")
    twice = written(("[random,", "[random, random,"))
    assert "the same run occurs twice" in refused("study", twice, "--out", tmp_path / "o")
    unlabelled = written(("label: norm, ", ""), ("[random, {", "[magnitude, {"))  # tables could not tell them apart
    assert "give methods that differ in options a label each" in refused("study", unlabelled, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "name",
    [
        "smoke",
        "oneshot",
        "training",
        "tasks",
        "smollm2_wikisql",
        "paper_tables",
        "paper_smollm2_wikitext",
        "paper_smollm2_teacher",
        "heads_movement",
    ],
)
def test_studies_that_are_shipped_can_be_read(name: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    found = grid.read(root / "studies" / f"{name}.yaml", commands())
    sizes = {
        "smoke": 3,
        "oneshot": 17,
        "training": 18,
        "tasks": 8,
        "smollm2_wikisql": 2,
        "paper_tables": 2 * (3 + 6 * 3 * 3 * 2),
        "paper_smollm2_wikitext": 4 + 8 * 3 * 4 * 2,
        "paper_smollm2_teacher": 3 + 2 * 3,
        "heads_movement": 3 + 4 * 3,
    }
    assert len(found.runs) == sizes[name]


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "studies" / "paper").glob("*.yaml")), ids=str)
def test_studies_of_models_that_are_not_here_can_be_read(file: Path) -> None:
    runs = grid.read(file, commands(), device="cuda").runs
    assert len(runs) > 100 and {run.sections["eval"]["device"] for run in runs} == {"cuda"}
    assert all("/" in run.model for run in runs)  # hub ids


# -- records


def test_a_folder_whose_name_is_in_no_alphabet_comes_back(tmp_path: Path) -> None:
    """Linux's names are bytes; Python has those that are no letters as half characters."""
    file, record = tmp_path / "results.jsonl", made_up("gum", 0.5)
    record["commands"] = [["lmprune", "eval", "a\udc80b", "é"]]
    records.append(file, record)
    assert records.read(file).records[0]["commands"] == record["commands"]


def test_a_line_cut_short_is_ended_and_the_latest_record_counts(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    records.append(file, made_up("gum", 0.5, error="lost"))
    with file.open("ab") as half:
        half.write(b'{"format": 1, "id": "ha')
    records.append(file, made_up("gum", 0.5))
    records.append(file, made_up("random", 0.5, error="lost"))
    found = records.read(file)
    assert (len(found.records), found.broken, len(found.done), len(found.failed)) == (2, 1, 1, 1)
    assert [len(line) > 50 for line in file.read_text().splitlines()] == [True, False, True, True]


def test_a_record_that_the_disk_refuses_leaves_no_half_line(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    records.append(file, made_up("gum", 0.5))
    whole, (soft, hard) = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, hard))
    try:
        with pytest.raises(UserError, match="File too large; make room, and run the study again"):
            records.append(file, made_up("random", 0.5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == whole
    records.append(file, made_up("random", 0.5))
    assert (len(records.read(file).records), records.read(file).broken) == (2, 0)


@pytest.mark.parametrize("missing", ["format", "study", "config", "versions", "eval", "seconds"])
def test_what_is_no_record_is_not_read(tmp_path: Path, missing: str) -> None:
    record = made_up("gum", 0.5)
    del record[missing]
    records.append(tmp_path / "r", record)
    assert records.read(tmp_path / "r") == records.Results((), 1)


@pytest.mark.parametrize("heads", [0, 6])
def test_units_of_other_kinds_are_no_neurons_of_a_record(tmp_path: Path, heads: int) -> None:
    """Records of heads and layers were written with them, and could not be read."""
    record = made_up("gum", 0.5)
    kept, widths = record["kept"], record["widths_before"]
    records.append(tmp_path / "r", {**record, "kept": [*["c"] * heads, *kept], "widths_before": widths})
    records.append(tmp_path / "r", {**record, "id": "heads alone", "kept": ["c"] * heads, "widths_before": []})
    found = records.read(tmp_path / "r")
    assert (len(found.records), found.broken) == (2, 0)
    assert [r["kept"] for r in found.records] == [[] if heads else kept, []]


def test_what_is_written_last_counts_and_a_study_that_was_edited_back_writes_its_own_again(
    written: Any, tmp_path: Path
) -> None:
    study = grid.read(written(), commands())
    (run, *_), out = [run for run in study.runs if run.method == "random"], tmp_path / "out"
    alone = grid.Study(study.name, (run,))
    mine = {**made_up("random", 0.5), "id": run.id}
    other = {**made_up("random", 0.5), "id": "another rate"}

    def latest(*lines: dict[str, Any]) -> list[str]:
        out.mkdir(exist_ok=True)
        (out / "results.jsonl").unlink(missing_ok=True)
        for line in lines:
            records.append(out / "results.jsonl", line)
        return [record["id"] for record in records.read(out / "results.jsonl").latest]

    assert latest({**mine, "error": "killed"}, other, mine) == [run.id]
    assert latest(mine, other) == [other["id"]]
    runner.carry_out(alone, out)
    assert [record["id"] for record in records.read(out / "results.jsonl").latest] == [run.id]
    before = (out / "results.jsonl").read_bytes()
    runner.carry_out(alone, out)
    assert (out / "results.jsonl").read_bytes() == before


def test_bitmaps_come_back(tmp_path: Path) -> None:
    kept, width = [0, 2, 3, 9, 46], 47
    bits = _bits({"kept": [bitmap(kept, width)], "widths_before": [width]})[0]
    assert len(bits) == width and [i for i, bit in enumerate(bits) if bit] == kept


# -- the time it takes


@pytest.fixture
def one_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two estimates that are compared: measured twice on a busy machine, a pace differs by more than they do."""
    monkeypatch.setattr(estimating, "measure", lambda *_, **_how: Pace(1e-5, 2e-5, 4e-5, 1e-10, 1e-10))


@pytest.mark.usefixtures("one_pace")
def test_an_estimate_is_corrected_by_what_is_done(written: Any) -> None:
    found = grid.read(written(), commands()).runs
    free = estimate(found, [], jobs=1, threads=1)
    assert 10 < free < 1000 and estimate(found, [], jobs=2, threads=1) < 0.8 * free
    done = [{"id": found[0].id, "seconds": {"total": 1e4}}]
    assert estimate(found, done, jobs=1, threads=1) > 50 * free
    everything = [{"id": r.id, "seconds": {"total": 1.0}} for r in found]
    assert estimate(found, everything, jobs=1, threads=1) == 0


@pytest.mark.usefixtures("one_pace")
def test_an_estimate_knows_pairs_and_epochs(written: Any, text: Path) -> None:
    def seconds(data: str, length: str, evaluation: str = "") -> float:
        sections = f"finetune: {{{length}}}\neval: {{{evaluation}}}"
        file = written((f"data: {text}", f"data: {data}"), ("eval: {max_tokens: 512}", sections))
        return estimate(grid.read(file, commands()).runs, [], jobs=1, threads=1)

    long = "steps: 100000, seq_len: 512"
    pairs = seconds("samsum", long, "limit: 10")
    assert pairs < 0.5 * seconds("wikitext", long)  # a pair is no full block
    assert seconds("samsum", long, "limit: 1000000") > 1.5 * pairs
    assert seconds("wikitext", "epochs: 1000") > 10 * seconds("wikitext", "epochs: 1")


def test_an_estimate_knows_units_of_all_kinds(tmp_path: Path) -> None:
    """A mixture has no neurons to count, and heads are not chosen by what chooses neurons."""
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    tiny_mixture("mixtral").save_pretrained(tmp_path / "mixture")
    for model, method, units in (
        ("dense", "obs", "heads"),
        ("dense", "obs", "layers"),
        ("dense", "taylor", "neurons,heads"),
        ("mixture", "reap", "experts"),
    ):
        sections = {name: {"data": "python-docs", "max_tokens": 64} for name in ("eval", "analyze")}
        prune = {"data": "python-docs", "calibration_tokens": 64, "units": units}
        one = Run(str(tmp_path / model), "t", "x", method, 0.5, 0, False, "base", {**sections, "prune": prune})
        assert 10 < estimate([one], [], jobs=1, threads=1) < 100


def test_a_dry_run_writes_nothing(written: Any, tmp_path: Path) -> None:
    record = lmprune("study", written(), "--out", tmp_path / "o", "--dry-run", "--json").record
    assert set(record) == {"study", "runs", "finished", "todo", "estimated_seconds"} and len(record["todo"]) == 5
    shown = lmprune("study", written(), "--out", tmp_path / "o", "--dry-run").out
    assert "5 of 5 runs to do" in shown and record["todo"][2] in shown and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[random,", "[{name: random, prune: {calibration_tokens: 0}},", "lmprune prune: Invalid value"),
        ("[random,", "[{name: random, prune: {time_budget: soon}},", "lmprune prune: --time-budget 'soon' is no time"),
        ("[random,", "[{name: sleb},", "lmprune prune: "),
        ("eval: {", "eval: {decode: beam, ", "lmprune eval: drop --decode"),
        ("analyze: {", "analyze: {units: experts, ", "lmprune analyze: "),
        ("analyze: {", "analyze: {units: hats, ", "lmprune analyze: unknown unit"),
    ],
)
def test_a_dry_run_refuses_what_a_command_would(written: Any, tmp_path: Path, old: str, new: str, says: str) -> None:
    """Each run's commands, before anything is done; the sentence begins with the run."""
    told = lmprune("study", written((old, new)), "--out", tmp_path / "o", "--dry-run")
    assert told.code == 2 and says in told.err and not (tmp_path / "o").exists()
    assert told.err.strip().splitlines()[-1].startswith("error: ")


# -- end to end


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_study_from_end_to_end(written: Any, model: Path, tmp_path: Path) -> None:
    """Two at a time; one run fails; a second call does only what is missing; the report reads it."""
    out = tmp_path / "out"
    broken = written(("[random,", "[{name: random, prune: {calibration_tokens: 0}},"),
                     ("keep: [0.5, 0.25]", "keep: [0.5]"))  # fmt: skip
    first = lmprune("study", broken, "--out", out, "--jobs", 2, "--json")
    assert first.code == 1, "a run failed"
    record = json.loads(first.out)
    assert set(record) == documented("study") and (record["runs"], record["finished"]) == (3, 2)
    assert len(record["failed"]) == 1 and "lmprune prune: " in record["failed"][0]["error"]
    found = {r["config"]["method"]: r for r in lines(out)}
    assert set(found) == {"dense", "norm", "random"} and lines(out)[0]["config"]["method"] == "dense"
    norm = found["norm"]
    assert norm["eval"]["baseline_perplexity"] == pytest.approx(found["dense"]["eval"]["perplexity"])
    assert norm["redundancy"]["layers"][0]["left"] == norm["prune"]["widths"][0] / 48
    assert [sum(map(sum, _bits(norm)))] == [sum(norm["prune"]["widths"])] and "clusters" not in norm["redundancy"]
    assert norm["peak_memory_mb"] > 100 and set(norm["seconds"]) == {"prune", "eval", "analyze", "total"}
    assert not (out / "runs" / norm["id"] / "checkpoint").exists()
    assert "error" in (out / "runs" / found["random"]["id"] / "log.txt").read_text()
    again = lmprune("study", broken, "--out", out, "--keep-going", "--json")
    assert again.code == 0 and "1 of 3 runs to do, 2 finished before" in again.err and len(lines(out)) == 4
    told, why = lmprune("report", out, "--json").record["notes"]
    assert told == "1 of 3 runs failed" and why.startswith(f"failed: {found['random']['id']}: lmprune prune: ")
    command = norm["commands"][0]
    redone = lmprune(*[tmp_path / "redone" if a.endswith("checkpoint") else a for a in command[1:]], "--json").record
    assert redone["widths"] == norm["prune"]["widths"]


@pytest.mark.conformance
def test_a_study_that_trains_and_distils(written: Any, tmp_path: Path) -> None:
    file = written(
        ("methods: [random, {name: magnitude, label: norm, prune: {scope: global}}]", "methods: [gum]\ndistil: [true]"),
        ("keep: [0.5, 0.25]", "keep: [0.5]"),
        (
            "prune: {multiple_of: 1}",
            "finetune: {steps: 20, batch_size: 2, seq_len: 64}\n"
            "prune: {steps: 20, batch_size: 2, seq_len: 64, multiple_of: 1}",
        ),
    )
    out = tmp_path / "o"
    record = lmprune("study", file, "--out", out, "--json").record
    assert record["failed"] == [] and record["finished"] == 2
    dense, gum = lines(out)
    assert gum["commands"][0][gum["commands"][0].index("--teacher") + 1] == dense["commands"][1][2]
    assert len(gum["training_log"]) > 1 and gum["training_log"][-1]["keep"] == pytest.approx(0.5, abs=0.02)
    figures = lmprune("report", out, "--json").record["figures"]
    assert {"s1_training_loss_0.5", "s1_training_keep_0.5", "s1_perplexity"} <= set(figures)


@pytest.mark.slow
def test_a_command_that_was_killed_is_told(written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = grid.read(written(), commands())
    task = run.Errand(found.runs[0], "tiny", tmp_path / "r", None, False, 1, Path.cwd())
    shell = tmp_path / "python"
    shell.write_text("#!/bin/sh\nkill -9 $$\n")
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    assert run.execute(task)["error"] == "lmprune eval: killed by SIGKILL; was there memory?"


def test_runs_whose_reference_failed_are_not_tried(written: Any, tmp_path: Path) -> None:
    file = written(("context: 64", "context: 100000"))
    record = lmprune("study", file, "--out", tmp_path / "o", "--keep-going", "--json").record
    assert record["finished"] == 0 and len(record["failed"]) == 5
    assert sum("its dense reference" in run["error"] for run in record["failed"]) == 4
    assert "context 100000 is more than" in record["failed"][0]["error"]


#: stands for Python that runs `-m lmprune COMMAND`: a record of nothing, after half a second
STAND_IN = """\
#!/bin/sh
echo $$ >> {pids}
sleep 0.5
echo '{{}}'
"""


def study_with(python: Path, words: list[str], errors: Path) -> None:
    """A study whose commands another Python runs."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    sys.executable, sys.argv = str(python), ["lmprune", *words]
    main()


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.conformance), signal.SIGKILL])
def test_a_killed_study_goes_on(
    written: Any, forks: Any, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, file = tmp_path / "o", written(("keep: [0.5, 0.25]", "keep: [0.5]"))
    stand_in, pids = tmp_path / "python", tmp_path / "pids"
    stand_in.write_text(STAND_IN.format(pids=pids))
    stand_in.chmod(0o755)
    words = ["study", str(file), "--out", str(out)]
    going = forks.Process(target=study_with, args=(stand_in, words, tmp_path / "errors"))
    going.start()
    for _ in range(6000):
        if (out / "results.jsonl").is_file() and len(list((out / "runs").iterdir())) > 1:
            break
        time.sleep(0.01)
    os.kill(going.pid, number)
    going.join(60)
    assert number != signal.SIGTERM or (going.exitcode == 130 and "interrupted" in (tmp_path / "errors").read_text())
    before = lines(out)
    assert all(r["error"] is None for r in before) and 1 <= len(before) < 3  # what was interrupted has not failed
    time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.read_text().split()), "no command is left behind"
    monkeypatch.setattr(sys, "executable", str(stand_in))
    record = lmprune("study", file, "--out", out, "--json").record
    assert (record["finished"], record["failed"]) == (3, []) and lines(out)[: len(before)] == before
    assert len(lines(out)) == 3


def test_two_studies_in_one_folder(written: Any, tmp_path: Path) -> None:
    with claimed(tmp_path / "o"):
        assert "another command is at work on" in refused("study", written(), "--out", tmp_path / "o")


def test_a_study_that_has_ended_says_so(written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler repeats the command."""
    file, out = written(), tmp_path / "o"
    assert refused("study", file, "--out", out, "--resume") == (
        f"there is no study to resume in {out}; leave out --resume"
    )
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho '{}'\n")
    stand_in.chmod(0o755)
    with monkeypatch.context() as other:
        other.setattr(sys, "executable", str(stand_in))
        assert lmprune("study", file, "--out", out, "--json").record["finished"] == 5
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = lmprune("study", file, "--out", out, "--resume", "--json")
    assert again.record["finished"] == 5 and again.record["failed"] == []
    assert f"that study has ended, all 5 runs are in {out / 'results.jsonl'}: there is nothing to resume" in again.err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_on_ray(written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # as it is, 15: on a busy machine they would not get on
    out = tmp_path / "o"
    file = written(("[random, {", "[{"), ("keep: [0.5, 0.25]", "keep: [0.5]"))
    record = lmprune("study", file, "--out", out, "--ray", "local", "--json").record
    assert (record["runs"], record["finished"], record["failed"]) == (2, 2, [])
    assert {r["config"]["method"] for r in lines(out)} == {"dense", "norm"}
    assert "no Ray cluster at" in refused("study", written(), "--out", tmp_path / "p", "--ray", "127.0.0.1:1")
