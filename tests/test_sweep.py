"""`lmprune sweep`: targets become prunes of the same options, done once, and compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import refused
from tiny_checkpoints import documented, lmprune, tiny_checkpoint

from lmprune.checkpoints.begun import SETTINGS, TRAINING, place_of
from lmprune.errors import UserError
from lmprune.jobs import sweep as job
from lmprune.jobs.sweep import parse_aims
from lmprune.report import comparison

pytestmark = pytest.mark.usefixtures("quick_workers")

SMALL = ("--max-tokens", 512, "--context", 64, "--threads", 1, "--repeats", 1, "--answer-tokens", 0)
PRUNE = ("--method", "magnitude", "--multiple-of", 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("sweep") / "dense", max_position_embeddings=512)


@pytest.fixture
def swept(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, whose prunes are carried out in this process; `ran` lists them."""
    ran: list[list[str]] = []

    def here(words: list[str]) -> tuple[int, dict[str, Any] | None]:
        ran.append(list(words))
        done = lmprune(*words, "--json")
        return done.code, json.loads(done.out) if done.code == 0 else None

    monkeypatch.setattr(job, "record_of", here)

    def run(targets: str, *args: object, out: str = "out") -> tuple[Any, list[list[str]]]:
        ran.clear()
        words = ("sweep", model, "--out", tmp_path / out, "--targets", targets, "--data", text, *SMALL, *PRUNE, *args)
        return lmprune(*words, "--json"), list(ran)

    return run


def test_targets_as_people_write_them() -> None:
    aims = parse_aims("0.9, .5,100M,900KB,80MB,1.5GiB,2x,20ms,1.5s")
    assert [aim.option for aim in aims] == [
        "keep", "keep", "target-params", "target-bytes", "target-bytes", "target-bytes", "target-speedup",
        "target-latency", "target-latency",
    ]  # fmt: skip
    assert [aim.option for aim in parse_aims("7B,100000")] == ["target-params"] * 2
    for wrong in ("1.0", "0.5,", "fast", "-1", "2 x", "80.5"):
        with pytest.raises(UserError, match="is no target; give --targets such as"):
            parse_aims(wrong)
    with pytest.raises(UserError, match=r"names keep-0\.5 twice"):
        parse_aims("0.5,0.5")


@pytest.mark.slow
def test_each_target_is_a_prune_and_all_are_compared(swept: Any, model: Path, tmp_path: Path) -> None:
    params = lmprune("inspect", model, "--json").record["params"]
    shown, ran = swept(f"0.5,{params - 100}")
    record = json.loads(shown.out)
    assert set(record) == documented("sweep")
    half, fewer = record["targets"]
    assert half["record"]["widths"] == [24, 24, 24] and fewer["record"]["params_after"] <= params - 100
    assert [words[:4] for words in ran] == [["prune", str(model), "--out", str(tmp_path / "out" / name)]
                                            for name in ("keep-0.5", f"params-{params - 100}")]  # fmt: skip
    models = record["comparison"]["models"]
    assert [each["params"] for each in models] == [params, *(t["record"]["params_after"] for t in record["targets"])]
    charts = comparison.charts(record["comparison"])
    assert [chart.id for chart in charts] == ["params", "megabytes", "prefill", "decode"]
    assert all(
        [line.name for line in chart.lines] == ["dense", "keep-0.5", f"params-{params - 100}"] for chart in charts
    )
    assert len({line.colour for line in charts[0].lines}) == 3
    page = Path(record["page"]).read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and "Perplexity against parameters" in page


def test_it_goes_on_where_it_was(swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []

    def compare(*_: Any, out: Path, **how: Any) -> dict[str, Any]:
        compared.append(how["models"])
        out.write_text("page")
        return {"models": [], "out": str(out)}

    monkeypatch.setattr(job, "compare", compare)
    monkeypatch.setattr("lmprune.commands.sweeping.shown", lambda record: [])
    assert "there is no sweep to resume in" in swept("0.5", "--resume")[0].err
    swept("0.5")
    shown, ran = swept("0.5,0.25")
    assert shown.code == 0 and [Path(words[3]).name for words in ran] == ["keep-0.25"] and len(compared) == 2
    assert "1 of 3 steps were done before: keep-0.5" in shown.err
    shown, ran = swept("0.5,0.25", "--resume")
    assert shown.code == 0 and not ran and len(compared) == 2
    assert f"that sweep has ended, all of it in {tmp_path / 'out'}: there is nothing to resume" in shown.err
    assert swept("0.5,0.25", "--limit", 7)[0].code == 0 and len(compared) == 3  # compared otherwise
    shown, _ = swept("0.5", "--seed", 1)
    assert shown.code == 2 and "holds a sweep in which keep-0.5 was asked for with fewer options" in shown.err
    shown, ran = swept("0.5", "--seed", 1, "--force")
    assert shown.code == 0 and len(ran) == 1


def test_what_was_killed_goes_on(swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a checkpoint and its line, and in the middle of a training."""
    monkeypatch.setattr(job, "compare", lambda *_, **__: {"models": [], "out": ""})
    monkeypatch.setattr("lmprune.commands.sweeping.shown", lambda record: [])

    def killed(words: list[str]) -> None:
        assert lmprune(*words).code == 0
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(job, "record_of", killed)
        assert swept("0.5")[0].code == 130
    assert (tmp_path / "out" / "keep-0.5" / "config.json").exists()
    shown, ran = swept("0.5")
    assert shown.code == 0 and ran[0][-1] == "--force"
    (run := place_of(tmp_path / "out" / "keep-0.25", TRAINING)).mkdir()
    (run / SETTINGS).write_text("{}")
    assert "had other settings" in swept("0.25", "--steps", 20)[0].err  # it was asked to go on

    train = ("--steps", 1, "--schedule", "oneshot", "--seq-len", 32, "--batch-size", 1, "--grad-accum", 1)
    with monkeypatch.context() as dying:
        dying.setattr(job, "record_of", killed)
        assert swept("0.75", *train)[0].code == 130
    (run := place_of(tmp_path / "out" / "keep-0.75", TRAINING)).mkdir()  # it had ended, and its folder was still there
    (run / SETTINGS).write_text("{}")
    shown, ran = swept("0.75", *train)
    (target,) = json.loads(shown.out)["targets"]
    assert ran[0][-1] == "--resume" and target["record"]["finished"] and not run.exists()


def test_what_a_mix_is_compared_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model would write another part of a mix."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(job, "record_of", lambda words: (0, {}))
    monkeypatch.setattr(job, "compare", lambda terminal, **how: asked.update(how) or {"models": [], "out": ""})
    monkeypatch.setattr("lmprune.commands.sweeping.shown", lambda record: [])
    for more, text in ((), "python-docs"), (("--eval-data", "python-code"), "python-code"):
        out = tmp_path / text
        done = lmprune("sweep", model, "--out", out, "--targets", "0.5", "--data", "mix:python-docs=1", *PRUNE, *more)
        assert done.code == 0 and asked["data"] == text and asked["split"] == "validation"


def test_a_file_is_compared_on_as_it_was_divided(
    swept: Any, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And `compare` is told in words that it takes; another text is compared on as a whole."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(job, "compare", lambda terminal, **how: asked.update(how) or {"models": [], "out": ""})
    monkeypatch.setattr("lmprune.commands.sweeping.shown", lambda record: [])
    assert swept("0.5", "--holdout", 0.3)[0].code == 0
    assert asked["data"] == str(text) and asked["holdout"] == 0.3
    words = json.loads((tmp_path / "out" / job.RECORDS).read_text().splitlines()[-1])["command"]
    assert words[words.index("--holdout") + 1] == "0.3"
    assert swept("0.5", "--holdout", 0.3, "--eval-data", "python-docs")[0].code == 0
    assert asked["data"] == "python-docs" and asked["holdout"] is None


def test_a_sweep_on_text_that_the_model_writes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is compared on what is the same for all, and a text that is not there is told of before anything is pruned."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(job, "record_of", lambda words: (0, {}))
    monkeypatch.setattr(job, "compare", lambda terminal, **how: asked.update(how) or {"models": [], "out": ""})
    monkeypatch.setattr("lmprune.commands.sweeping.shown", lambda record: [])
    words = ("sweep", model, "--out", tmp_path / "o", "--targets", "0.5", "--data", "self", *PRUNE)
    assert "written by each model itself" in refused(*words, "--eval-data", "self")
    assert "no such file: nope.txt" in refused(*words, "--eval-data", "nope.txt") and not (tmp_path / "o").exists()
    assert lmprune(*words).code == 0 and asked["data"] == "python-docs"


def test_what_it_refuses(swept: Any, model: Path, text: Path, tmp_path: Path) -> None:
    """Before anything is pruned."""
    for targets, args, sentence in [
        ("half", (), "'half' is no target"),
        ("0.5", ("--keeep", 1), "No such option: --keeep"),
        ("0.5,1.5x", (), "--latency-table"),
        ("0.5", ("--engine", "fast"), "engine"),
        ("0.5", ("--tasks", "chess"), "'chess' is no task"),
    ]:
        shown, ran = swept(targets, *args)
        assert shown.code == 2 and sentence in shown.err and ran == [] and not (tmp_path / "out").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    shown, _ = swept("0.5", out="other")
    assert "no sweep's folder; choose another --out" in shown.err
    assert "Missing option" in refused("sweep", model, "--out", tmp_path / "o")


def test_a_prune_that_fails_is_told(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one error: a prune that refuses says why itself, one that is killed can't."""
    shell = tmp_path / "python"
    shell.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    words = ("sweep", model, "--out", tmp_path / "o", "--targets", "0.5", "--data", text, *PRUNE)
    for ends, code, said in [
        ("exit 3", 2, "error: keep-0.5 ended with exit code 3, and said why above"),
        ("exit 2", 2, "keep-0.5 ended with exit code 2, and said why above"),
        ("exit 130", 130, "keep-0.5 ended with exit code 130, and said why above"),
        ("kill -9 $$", 2, "error: keep-0.5 was killed by SIGKILL; was there memory?"),
    ]:
        shell.write_text(f"#!/bin/sh\n{ends}\n")
        found = lmprune(*words)
        last = found.err.splitlines()[-1]
        assert (found.code, last.startswith(said)) == (code, True), found.err
        assert "goes on when it is mended" in last


def test_a_family_is_asked_for_beside_the_one_before() -> None:
    place = Path("f")
    aims = parse_aims("0.75,0.5,0.25")
    found = job.each_from_the_one_before("m", place, aims)
    assert [step[1] for step in found.values()] == ["m", "f/keep-0.75", "f/keep-0.5"]
    assert [float(step[-1]) for step in found.values()] == pytest.approx([0.75, 2 / 3, 0.5], rel=1e-5)
    found = job.each_from_the_one_before("m", place, parse_aims("100M,80M"))
    assert [step[-2:] for step in found.values()] == [["--target-params", "100M"], ["--target-params", "80M"]]
    for wrong, why in (("0.5,0.75", "0.75 asks for no less than 0.5"), ("1.5x,1.2x", "1.2x asks for no less"),
                       ("0.5,100M", "name targets of one kind"), ("80MB,0.1GB", "asks for no less")):  # fmt: skip
        with pytest.raises(UserError, match=why):
            job.each_from_the_one_before("m", place, parse_aims(wrong))


def test_a_family_by_speed_reads_the_first_model_s_table(swept: Any, model: Path, tmp_path: Path) -> None:
    """Each from the one before, three in a row: the table is of the model that they were all cut from."""
    kinds = {"neurons": {"counts": [48, 8], "prefill": [1.0, 0.5], "decode": [2.0, 1.0]}}
    table = {"format": "lmprune latency 1", "model": str(model), "shapes": {"neurons": [48] * 3}, "setting": {},
             "machine": {}, "kinds": kinds}  # fmt: skip
    (tmp_path / "table.json").write_text(json.dumps(table))
    told = ("--latency-table", tmp_path / "table.json", "--family")
    shown, _ = swept("1.1x,1.32x,1.5x", *told)
    record = json.loads(shown.out)
    costs = [each["record"]["cost"] for each in record["targets"]]
    assert [cost["before"] for cost in costs] == pytest.approx([3.0, costs[0]["after"], costs[1]["after"]])
    assert [3.0 / cost["after"] for cost in costs] == pytest.approx([1.1, 1.32, 1.5], rel=0.03)
    shown, ran = swept("1.1x,1.32x,2.5x", *told, out="too_far")
    assert not ran and "the best possible is 2.00 times as fast" in shown.err  # 1.5 of 3 s can go
    (tmp_path / "table.json").write_text(json.dumps(table | {"model": "another"}))
    other = (tmp_path / "out" / "speedup-1.1x", "--out", tmp_path / "o", "--target-speedup", "1.2x", *told[:2], *PRUNE)
    assert "is of 'another', whose layers have other neurons" in refused("prune", *other)


@pytest.mark.slow
def test_a_family_trains_between_its_targets(swept: Any, model: Path, tmp_path: Path) -> None:
    """The second is a cut of the first as it was trained."""
    train = ("--family", "--steps", 2, "--schedule", "oneshot", "--seq-len", 32, "--batch-size", 1, "--grad-accum", 1,
             "--calibration-tokens", 128)  # fmt: skip
    shown, ran = swept("0.75,0.5", *train)
    record = json.loads(shown.out)
    first, second = record["targets"]
    assert ran[1][1] == str(tmp_path / "out" / "keep-0.75")
    assert (first["record"]["widths"], second["record"]["widths"]) == ([36] * 3, [24] * 3)
    assert second["record"]["training"]["steps"] == 2
    assert len(record["comparison"]["models"]) == 3
