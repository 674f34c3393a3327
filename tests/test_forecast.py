"""`lmprune prune --dry-run`: the result that is told is what comes, and the memory that is told follows the shapes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import refused
from tiny_checkpoints import byte_tokenizer, lmprune, tiny_checkpoint
from tiny_mixtures import tiny_mixture
from tiny_models import tiny_model

from lmprune.checkpoints.checkpoint import save
from lmprune.methods import get_method
from lmprune.plan import PLAN_FILE
from lmprune.sites.find import find_sites
from lmprune.solve.duration import Work
from lmprune.solve.memory import Shape

CUT = ("--seq-len", 32, "--keep", 0.5, "--multiple-of", 8, "--answer-tokens", 0)


@pytest.mark.parametrize(
    "how",
    [
        ("--method", "magnitude"),
        ("--units", "heads", "--method", "activation"),
        ("--units", "layers", "--method", "shortgpt", "--keep", 0.667),
        ("--units", "heads", "--method", "magnitude", "--scope", "global", "--keep", 0.75),  # 5 of 6, not 2 of each 2
    ],
)
def test_what_is_told_is_what_comes(how: tuple[str, ...], model: Path, text: Path, tmp_path: Path) -> None:
    args = ("prune", model, "--data", text, *CUT, *how)
    told = lmprune(*args, "--out", tmp_path / "o", "--dry-run", "--json").record
    assert list(tmp_path.iterdir()) == []
    done = lmprune(*args, "--out", tmp_path / "o", "--json").record
    assert (told["params_before"], told["params_after"]) == (done["params_before"], done["params_after"])
    written = sum(file.stat().st_size for file in (tmp_path / "o").glob("*.safetensors")) / 1e6
    assert told["megabytes_after"] == pytest.approx(written, rel=0.1)  # a tiny model's file is a tenth names
    assert set(told["ways"]) == {"whole", "streamed"} and not told["would_stream"]
    keys = {"memory_mb", "result_mb", "disk_mb", "temporary_mb", "seconds"}
    assert all(set(way) == keys for way in told["ways"].values())
    shown = lmprune(*args, "--out", tmp_path / "p", "--dry-run")
    assert f"{told['params_before']:,} → {told['params_after']:,} parameters" in shown.out
    assert "it would be loaded as a whole" in shown.out and "by blocks (--stream)" in shown.out


@pytest.mark.parametrize("keep", [0.6, 0.1])
def test_of_layers_ranked_together_as_many_are_left(keep: float, tmp_path: Path) -> None:
    """Of two heads a layer, and of eight experts of which two must stay, no layer alone keeps such a share."""
    model = tiny_checkpoint(tmp_path / "llama", num_hidden_layers=5)
    mixture = save(tiny_mixture("mixtral", vocab_size=257), tmp_path / "mixtral", tokenizer=byte_tokenizer())
    for source, kind in ((model, "heads"), (mixture, "experts"), (model, "neurons")):
        how = ("--units", kind, "--method", "random", "--scope", "global", "--keep", keep, "--multiple-of", 1)
        args = ("prune", source, *how, "--answer-tokens", 0, "--json", "--force", "--out", tmp_path / "o")
        told, done = lmprune(*args, "--dry-run").record, lmprune(*args).record
        assert told["params_after"] == done["params_after"]


def test_a_target_is_what_is_told(model: Path, tmp_path: Path) -> None:
    args = ("--target-params", "40000", "--method", "magnitude", "--multiple-of", 1, "--dry-run", "--json")
    told = lmprune("prune", model, "--out", tmp_path / "o", *args).record
    assert 38_000 < told["params_after"] <= 40_000


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--steps", 30), "tells of pruning at once"),
        (("--budget", "dp"), "what --budget dp holds and takes is not known"),
        (("--max-ppl-ratio", 1.1), "how small a model holds --max-ppl-ratio is not known"),
        (("--keep", 0), "keep"),
        (("--seq-len", 300), "seq_len 300 is more than the model's 256 positions"),
    ],
)
def test_what_can_not_be_told(words: tuple[Any, ...], sentence: str, model: Path, text: Path, tmp_path: Path) -> None:
    said = refused("prune", model, "--data", text, "--out", tmp_path / "o", "--dry-run", *words)
    assert sentence in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--multiple-of", 64), "no neuron could go: layers have at most 48"),
        (("--units", "heads", "--keep", 0.6), "0.6 of 2 heads can't be kept; keep 0.5 or 1"),
        (("--units", "layers", "--method", "shortgpt", "--keep", 0.1), "0.1 of 3 layers can't be kept"),
        (("--chat-template",), "--chat-template needs a tokenizer with a chat template; this model's has none"),
    ],
)
def test_what_the_model_can_not_have(
    words: tuple[Any, ...], sentence: str, model: Path, text: Path, tmp_path: Path
) -> None:
    """Are told of in the words of the run."""
    size = ("--seq-len", 64, "--calibration-tokens", 512)
    args = ("prune", model, "--data", text, *size, "--out", tmp_path / "o", *words)
    assert sentence in (told := refused(*args, "--dry-run")) and told == refused(*args)


def test_a_plan_of_another_model_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    wide = tiny_checkpoint(tmp_path / "wide", intermediate_size=64)
    cut = ("prune", wide, "--method", "magnitude", "--multiple-of", 1, "--out", tmp_path / "cut", "--answer-tokens", 0)
    assert lmprune(*cut).code == 0
    args = ("prune", model, "--data", text, "--plan", tmp_path / "cut" / PLAN_FILE, "--out", tmp_path / "o")
    assert (told := refused(*args, "--dry-run")) == refused(*args) and "plan" in told


WORDS = [
    (("--seq-len", 64, "--calibration-tokens", 32), "32 tokens don't hold one sequence of 64"),
    (("--holdout", 1.5), "--holdout takes a share between 0 and 1"),
    (("--data-dir", "."), "--data-dir goes with mix, wikitext"),
    (("--data", "nope.txt"), "no such file: nope.txt"),
    (("--data", "mix:nope.txt=1"), "no such file: nope.txt"),
    (("--data", "wikitxt"), "unknown data source 'wikitxt'"),
    (("--data", "mix:python-docs=1", "--chat-template"), "drop --chat-template: the conversations of a mix"),
    (("--data", "wikisql", "--holdout", 0.1), "--holdout goes with a file of your own"),
]


def _opens(*_: Any, **__: Any) -> None:
    raise AssertionError("a weight is read")


@pytest.mark.parametrize(("words", "sentence"), WORDS)
def test_what_words_tell_is_told_before_anything_is_read(
    words: tuple[Any, ...], sentence: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the dry run, and by the run."""
    monkeypatch.setattr("lmprune.jobs.prune.open_model", _opens)
    args = ("prune", model, "--data", text, "--out", tmp_path / "o", *words)
    assert sentence in (told := refused(*args, "--dry-run")) and told == refused(*args)


@pytest.mark.parametrize(
    ("words", "sentence"), [*WORDS[1:], (("--seq-len", 64, "--train-tokens", 32), "32 tokens don't hold one sequence")]
)
def test_and_by_trainings(
    words: tuple[Any, ...], sentence: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmprune.jobs.training.open_model", _opens)
    out, data = tmp_path / "o.safetensors", ("--data", text, "--train-tokens", 4096, *words)
    for verb in (
        ("finetune", model, "--steps", 1),
        ("recover", model, "--steps", 1, "--teacher", "m"),
        ("teach", model),
    ):
        assert sentence in refused(*verb, *data, "--out", out if verb[0] == "teach" else tmp_path / "o")


def test_a_step_of_a_file_makes_a_model(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"model: {model}\nout: o\nsteps:\n  - prune: {{data: {text}, dry_run: true}}\n")
    assert "dry_run" in refused("run", tmp_path / "run.yaml")


def needed(method: str, tokens: int, **changes: Any) -> float:
    model = tiny_model("llama")
    sites = find_sites(model)
    shape = Shape.of(model, sites, number=4, streamed=changes.get("streamed", False))
    held = get_method(method).solver_of(("neurons",)).memory(Work(sites, tokens, 16, 0.5, "local"), shape)
    assert held is not None
    return shape.weights + held.peak


def test_memory_follows_what_is_read() -> None:
    many = 1 << 20
    assert needed("magnitude", many) == needed("magnitude", 16) < needed("activation", 16) < needed("obs", 16)
    assert needed("activation", many) == needed("activation", 16)  # batches come and go
    # two streams of hidden states, and what enters a reader
    assert needed("obs", many) - needed("obs", many // 2) == (2 * 32 + 48) * (many // 2) * 4
    assert needed("taylor", many) > needed("activation", many)
    assert needed("activation", many, streamed=True) - needed("activation", 16, streamed=True) == (many - 16) * 32 * 4


def test_a_streamed_model_is_its_largest_block() -> None:
    model = tiny_model("llama-untied")
    sites = find_sites(model)
    whole, streamed = (Shape.of(model, sites, number=4, streamed=way) for way in (False, True))
    assert whole.weights == 4 * sum(p.numel() for p in model.parameters()) == 4 * whole.params
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.model.layers]
    assert streamed.weights == 4 * (whole.params - sum(blocks)) + 2 * 4 * max(blocks)


def test_the_documents_say_what_the_records_say() -> None:
    """Beside the rows: within 20%, as it was asked for, where the model is not a tenth of what Python holds."""
    root = Path(__file__).parents[1]
    sys.path.append(str(root / "benchmarks"))
    import memory

    records = [json.loads(line) for line in memory.RECORD.read_text().splitlines()]
    assert memory.table(records) in (root / "docs" / "results.md").read_text(encoding="utf-8")
    for record in records:
        if record["result_mb"] > 100:
            assert record["told"]["memory_mb"] == pytest.approx(record["memory_mb"], rel=0.2)
            assert record["told"]["result_mb"] == pytest.approx(record["result_mb"], rel=0.01)
            assert record["params_told"] == record["params"]
        if "disk_mb" in record:
            assert record["told"]["disk_mb"] == pytest.approx(record["disk_mb"], rel=0.2)
            assert record["told"]["temporary_mb"] == pytest.approx(record["temporary_mb"], rel=0.2)
