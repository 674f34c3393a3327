"""`lmprune compare`: what it shows is what eval and bench say of each model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import refused
from tiny_checkpoints import byte_tokenizer, documented, lmprune, tiny_checkpoint
from tiny_mixtures import tiny_mixture

import lmprune as lmprune_library
from lmprune.report import comparison, page
from lmprune.report.charts import LineChart

pytestmark = pytest.mark.usefixtures("quick_workers")

SMALL = ("--max-tokens", 512, "--context", 64, "--threads", 1, "--repeats", 1, "--answer-tokens", 4)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    dense = tiny_checkpoint(folder / "dense", max_position_embeddings=512)
    args = ("--method", "magnitude", "--keep", 0.34, "--multiple-of", 1, "--data", text, "--answer-tokens", 0)
    assert lmprune("prune", dense, "--out", folder / "third", *args).code == 0
    return dense, folder / "third"


@pytest.fixture(scope="module")
def compared(
    quick_workers: None, pair: tuple[Path, Path], text: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    tasks = tmp_path_factory.mktemp("tasks") / "pairs.jsonl"
    tasks.write_text("".join(json.dumps({"context": f"cat {i}", "completion": " saw"}) + "\n" for i in range(4)))
    out = tasks.with_name("page.html")
    args = ("--data", text, *SMALL, "--tasks", tasks, "--limit", 2, "--out", out)
    return lmprune("compare", *pair, *args, "--json").record


def test_the_record_is_what_eval_and_inspect_say(compared: dict[str, Any], pair: tuple[Path, Path], text: Path):
    assert set(compared) == documented("compare")
    dense, third = compared["models"]
    args = ("--data", text, "--max-tokens", 512, "--context", 64, "--answer-tokens", 4)
    alone = lmprune("eval", pair[1], *args, "--baseline", pair[0], "--json").record
    assert (
        third["perplexity"] == pytest.approx(alone["perplexity"])
        and third["answers"]["items"] == alone["answers"]["items"]
    )
    assert third["perplexity_ratio"] == pytest.approx(alone["perplexity_ratio"]) and dense["perplexity_ratio"] is None
    assert [each["params"] for each in (dense, third)] == [
        lmprune("inspect", model, "--json").record["params"] for model in pair
    ]
    (metrics,) = third["tasks"].values()
    assert "exact_match" in metrics and set(metrics["exact_match"]) == {"value", "interval"}
    assert third["prefill"]["median"] > 0 and third["weight_megabytes"] < dense["weight_megabytes"]


def test_the_page_stands_alone_and_says_all_of_it(compared: dict[str, Any]):
    written = Path(compared["out"]).read_text()
    assert written == page.html(comparison.of_record(compared))
    assert "http://" not in written and "https://" not in written and "<nav" not in written
    for cell in ("dense", "third", "perplexity", "The capital of France is", "exact_match", "prefill, tokens/s"):
        assert cell in written
    rows = {row[0]: row[1:] for row in comparison.glance(compared)}
    assert rows["ratio to the first"][0] == "–" and rows["same choices in answers"][1].endswith("%")
    assert rows["parameters"][0] == f"{compared['models'][0]['params']:,}"
    assert "(1.00×)" in rows["prefill, tokens/s"][0]


def test_a_share_of_a_file_is_compared_on(pair: tuple[Path, Path], tmp_path: Path):
    """Of pairs that are a task as well, the same."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"context": f"cat {i}", "completion": " saw"}) + "\n" for i in range(30)))
    args = ("--data", file, *SMALL, "--tasks", file, "--holdout", 0.2, "--limit", 99)
    found = lmprune("compare", *pair, *args, "--json").record
    assert found["data"]["holdout"] == 0.2 and found["data"]["documents"] == 6
    alone = lmprune("eval", pair[1], "--data", file, "--holdout", 0.2, "--limit", 99, "--json").record
    assert alone["items"] == 6
    told = found["models"][1]["tasks"][str(file)]
    assert told and all(told[name] == {"value": alone[name], "interval": alone[f"{name}_ci"]} for name in told)


def test_models_of_one_name_are_called_by_their_whole_path():
    told = [{"model": "a/tiny"}, {"model": "b/tiny"}, {"model": "c/other"}]
    assert comparison.names(told) == ["a/tiny", "b/tiny", "other"]


def test_people_see_one_table(pair: tuple[Path, Path], text: Path):
    shown = lmprune("compare", *pair, "--data", text, *SMALL)
    assert shown.code == 0 and all(len(line) <= 120 for line in shown.out.splitlines()[:12])
    for word in (
        "parameters",
        "perplexity",
        "ratio to the first",
        "decode, tokens/s",
        "The capital of France is",
        "third",
    ):
        assert word in shown.out


def test_what_can_t_be_compared(pair: tuple[Path, Path], text: Path, tmp_path: Path):
    args = ("--data", text)
    assert "two models or more" in refused("compare", pair[0], *args)
    assert "no model at" in refused("compare", pair[0], "/no/where", *args)
    assert "unknown engine" in refused("compare", *pair, *args, "--engine", "torhc")
    assert "is no task" in refused("compare", *pair, *args, "--tasks", "wikitext")
    assert "names piqa twice" in refused("compare", *pair, *args, "--tasks", "piqa,piqa", "--tasks-dir", tmp_path)
    assert "piqa.jsonl" in refused("compare", *pair, *args, "--tasks", "piqa", "--tasks-dir", tmp_path)
    assert "written by each model itself" in refused("compare", *pair, "--data", "self")
    (tmp_path / "p.html").write_text("mine")
    assert "exists" in refused("compare", *pair, *args, "--out", tmp_path / "p.html")


def test_tasks_in_a_folder_beside_pairs_of_one_s_own(pair: tuple[Path, Path], text: Path, tmp_path: Path):
    """Whose path says where they are; and what is not there is said before a model is read."""
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"context": f"cat {i}", "completion": " saw"}) + "\n" for i in range(4)))
    args = ("--data", text, *SMALL, "--tasks", f"{own},samsum", "--tasks-dir", tmp_path, "--limit", 2)
    assert "no validation.jsonl or val.json or validation.csv in" in refused("compare", *pair, *args)
    (tmp_path / "val.json").write_text(json.dumps([{"dialogue": "A: a cat", "summary": "Cat."}] * 3))
    dense, _ = lmprune("compare", *pair, *args, "--json").record["models"]
    assert "exact_match" in dense["tasks"][str(own)] and "rouge1" in dense["tasks"]["samsum"]


def test_accuracy_beside_perplexity(pair: tuple[Path, Path], text: Path, tmp_path: Path):
    """lm-eval's tasks from a folder of their own: what `eval --tasks` says of each model, on the same items."""
    row = {"goal": "To see the cat,", "sol1": "look up.", "sol2": "sleep."}
    items = [{**row, "label": number % 2} for number in range(6)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    args = ("--tasks", "piqa", "--limit", 4)
    found = lmprune("compare", *pair, "--data", text, *SMALL, *args, "--tasks-dir", tmp_path, "--json").record
    alone = lmprune("eval", pair[1], *args, "--data-dir", tmp_path, "--baseline", pair[0], "--json").record
    told = found["models"][1]["zero_shot"]
    assert told["tasks"] == alone["tasks"] and told["kept_above_chance"] == alone["kept_above_chance"]
    rows = {line[0]: line[1:] for line in comparison.glance(found)}
    accuracy = alone["tasks"]["piqa"]["accuracy"]
    assert rows["piqa, accuracy (chance 0.50)"][1].startswith(f"{accuracy:.3f} ± ")
    assert found["limit"] == 4 and found["models"][0]["tasks"] == {}


def test_the_course_of_a_search_is_drawn(pair: tuple[Path, Path], text: Path, tmp_path: Path):
    """From the plan, without what was cut for a try; of models that were searched alone."""
    spent = ("--budget", "dp", "--keep", 0.5, "--multiple-of", 4, "--calibration-tokens", 1024, "--seq-len", 64)
    args = ("--data", text, "--out", tmp_path / "searched", "--answer-tokens", 0)
    assert lmprune("prune", pair[0], *spent, *args).code == 0
    page_of = ("--data", text, *SMALL, "--out", tmp_path / "page.html")
    record = lmprune("compare", pair[0], tmp_path / "searched", *page_of, "--json").record
    dense, searched = (model["search"] for model in record["models"])
    assert dense is None and searched[0]["by"] == "ranking"
    (chart,) = comparison.charts(record)
    assert isinstance(chart, LineChart)
    (line,) = chart.lines
    assert [point.y for point in line.points] == [turn["loss"] for turn in searched if "cut" not in turn["by"]]
    assert [y for _, y in line.curve] == sorted((y for _, y in line.curve), reverse=True)
    assert "The search for how many units stay where" in (tmp_path / "page.html").read_text()


def test_what_can_t_be_measured_is_refused_before_anything_is_evaluated(
    pair: tuple[Path, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    short = tiny_checkpoint(tmp_path / "short", max_position_embeddings=128)
    mixture = lmprune_library.save(
        tiny_mixture("qwen3_moe", vocab_size=257, max_position_embeddings=512),
        tmp_path / "m",
        tokenizer=byte_tokenizer(),
    )
    monkeypatch.setattr("lmprune.jobs.compare.evaluate", lambda *_, **__: pytest.fail("evaluated"))
    monkeypatch.setattr("lmprune.jobs.bench.find_spec", lambda name: None if name == "xllamacpp" else name)
    for models, engine, sentence in (
        ((pair[0], short), "torch", "256 prompt tokens and 24 new ones exceed the 128 positions of"),
        ((pair[0], mixture), "onnxruntime", "torch can't write the experts of"),
        (pair, "llamacpp", "this engine needs the package xllamacpp: pip install 'lmprune[serve]'"),
    ):
        assert sentence in refused("compare", *models, "--data", text, *SMALL, "--engine", engine)
