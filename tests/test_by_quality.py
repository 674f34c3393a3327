"""`prune --max-ppl-ratio`: the search for a ratio on known curves, and the command on a trained model."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bad_input import refused
from tiny_checkpoints import lmprune as command
from tiny_mixtures import tiny_mixture
from tiny_models import tiny_model

import lmprune
from lmprune.budget.budget import Budget
from lmprune.data.tokens import stream
from lmprune.errors import UserError
from lmprune.evaluation.perplexity import perplexity
from lmprune.jobs import by_quality
from lmprune.jobs.by_quality import FINE, TRIALS, Trial, next_keep, said
from lmprune.methods import METHODS, Method
from lmprune.plan import PrunePlan
from lmprune.sites.address import Address

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared, with real models and texts, is not here")


def searched(log_of: Any, wanted: float, shares: Any = FINE) -> list[Trial]:
    trials: list[Trial] = []
    while (keep := next_keep(trials, wanted, shares)) is not None:
        trials.append(Trial(keep, log_of(keep), 0.01))
    return trials


@given(st.floats(0.05, 4), st.floats(1.0, 3.5), st.floats(0.02, 1.0))
def test_a_power_is_found(scale: float, power: float, wanted: float) -> None:
    """The smallest of the ratios that hold, or the next one, in six trials; none twice."""
    trials = searched(lambda keep: scale * (1 - keep) ** power, wanted)
    assert len(trials) <= TRIALS and len({trial.keep for trial in trials}) == len(trials)
    holding = [share for share in FINE if scale * (1 - share) ** power <= wanted]
    found = [trial.keep for trial in trials if trial.log <= wanted]
    if holding:
        assert found and min(found) - min(holding) <= 0.04 + 1e-9


def test_what_is_not_a_power_is_bracketed() -> None:
    """A cliff: nothing happens until 0.6, then all is lost."""
    trials = searched(lambda keep: 0.01 if keep >= 0.6 else 3.0, 0.1)
    holds, fails = ([t.keep for t in trials if (t.log <= 0.1) == wanted] for wanted in (True, False))
    assert min(holds) >= 0.6 > max(fails) and len(trials) <= TRIALS


def test_few_units_have_few_ratios() -> None:
    trials = searched(lambda keep: 1 - keep, 0.5, [1 / 3, 2 / 3])
    assert [trial.keep for trial in trials] == [2 / 3, 1 / 3] and trials[1].log > 0.5
    assert searched(lambda keep: 1 - keep, 0.01, []) == []


def test_how_sure_it_is() -> None:
    found = said(Trial(0.8, math.log(1.08), 0.01), 1.1)
    assert found["ratio"] == pytest.approx(1.08) and found["interval"] == pytest.approx([1.0590, 1.1014], abs=1e-4)
    assert found["sure"] == pytest.approx(NormalDist().cdf((math.log(1.1) - math.log(1.08)) / 0.01))
    assert said(Trial(0.8, 0.0, None), 1.1)["sure"] is None


@dataclass(frozen=True)
class Fake:
    """As much of an Asked as the search looks at."""

    options: dict[str, Any]
    kinds: tuple[str, ...] = ("neurons",)
    budget: Budget | None = None
    spec: None = None
    row: Method = METHODS["random"]
    scores: Any = None

    def __getitem__(self, name: str) -> Any:
        return self.options[name]


@pytest.mark.parametrize(
    ("model", "kind", "budget", "scope", "expected"),
    [
        (tiny_model("llama", num_key_value_heads=4), "heads", None, None, [1 / 4, 2 / 4, 3 / 4]),
        (tiny_model("llama", num_key_value_heads=4), "heads", Budget(), None, [1 / 4, 2 / 4, 3 / 4]),
        (tiny_model("llama", num_key_value_heads=4), "heads", Budget(by="ranking"), None, FINE),
        (tiny_model("llama", num_key_value_heads=4), "heads", None, "global", FINE),
        (tiny_model("llama"), "layers", None, "global", [1 / 3, 2 / 3]),
        (tiny_mixture("deepseek_v3-groups"), "experts", None, None, [4 / 8, 6 / 8]),
    ],
)
def test_ratios_that_are_tried_are_those_that_can_come_out(
    model: Any, kind: Any, budget: Any, scope: Any, expected: Any
) -> None:
    asked: Any = Fake({"scope": scope}, (kind,), budget)
    opened: Any = SimpleNamespace(dense=model)
    assert by_quality._shares(asked, opened) == expected


def test_where_nothing_can_go_it_says_so() -> None:
    """As of a model that an earlier cut left one feed-forward layer."""
    model = tiny_model("llama")
    lmprune.shrink(model, PrunePlan({Address("ffns", 0): (1,)}, {Address("ffns", 0): 3}))
    asked: Any = Fake({"scope": None}, ("ffns",))
    opened: Any = SimpleNamespace(dense=model)
    with pytest.raises(UserError, match="no ffns can go: 1 must stay, and no more are left"):
        by_quality._shares(asked, opened)


def test_one_kind_of_uneven_layers_is_not_asked_to_be_one_kind() -> None:
    model = tiny_model("llama", num_key_value_heads=4)
    kept = {Address("heads", layer): tuple(range(3 if layer == 1 else 4)) for layer in range(3)}
    lmprune.shrink(model, PrunePlan(kept, dict.fromkeys(kept, 4)))
    opened: Any = SimpleNamespace(dense=model)
    one: Any = Fake({"scope": None}, ("heads",))
    two: Any = Fake({"scope": None}, ("heads", "neurons"))
    with pytest.raises(UserError, match="layers of 3 or 4 units have their own; give --scope global"):
        by_quality._shares(one, opened)
    with pytest.raises(UserError, match="of --units, or --scope global"):
        by_quality._shares(two, opened)


def test_the_smallest_that_holds_is_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is its own keep ratio here, and its plan says it too."""
    monkeypatch.setattr(by_quality, "_shares", lambda *_: FINE)

    def judge(keep: list[float]) -> SimpleNamespace:
        return SimpleNamespace(nll_difference=2 * (1 - keep[0]) ** 2, nll_difference_se=0.01, tokens=9)

    monkeypatch.setattr(by_quality, "_judge", lambda *_: judge)
    terminal: Any = SimpleNamespace(note=lambda _: None, busy=lambda _: nullcontext())
    opened: Any = SimpleNamespace(dense=[1.0])

    def cut(asked: Any, _: Any, model: list[float]) -> PrunePlan:
        model[0] = asked["keep"]
        return PrunePlan({}, {}, {"keep": asked["keep"]})

    asked: Any = Fake({"max_ppl_ratio": 1.2, "keep": 0.75})
    made = by_quality.smallest(terminal, asked, opened, cut)
    smallest = min(share for share in FINE if 2 * (1 - share) ** 2 <= math.log(1.2))
    assert made.model == [smallest] and made.plan.settings == {"keep": smallest} and opened.dense == [1.0]
    assert made.quality is not None and made.quality["ratio"] <= 1.2 and len(made.quality["trials"]) > 2


def test_the_scores_are_those_of_the_model_that_is_chosen(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are written once; of the three that are tried here the second is chosen."""
    logs = iter([0.1, 0.3, 0.9])

    def judge(_model: Any) -> SimpleNamespace:
        return SimpleNamespace(nll_difference=next(logs), nll_difference_se=0.01, tokens=9)

    monkeypatch.setattr(by_quality, "_judge", lambda *_: judge)
    monkeypatch.setattr(by_quality, "TRIALS", 3)
    how = ("--data", text, "--seq-len", 64, "--calibration-tokens", 512, "--multiple-of", 1, "--answer-tokens", 0)
    file = tmp_path / "scores.safetensors"
    words = ("--max-ppl-ratio", 1.4, "--scores-out", file, "--out", tmp_path / "found")
    found = command("prune", model, *how, *words, "--json").record
    keeps = [trial["keep"] for trial in found["quality"]["trials"]]
    assert len(keeps) == 3 and found["keep"] == keeps[1] > keeps[2]
    alone = tmp_path / "alone.safetensors"
    again = command("prune", model, *how, "--keep", keeps[1], "--scores-out", alone, "--out", tmp_path / "alone")
    assert again.code == 0 and file.read_bytes() == alone.read_bytes()


def test_held_out_text_of_one_window_has_no_error(model: Path, tmp_path: Path) -> None:
    """The record and the plan say so, and how many tokens there were; the model has 256 positions."""
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps({"text": f"cat {number:02} saw it"}) + "\n" for number in range(40)))
    how = ("--data", file, "--holdout", 0.3, "--seq-len", 64, "--calibration-tokens", 128, "--multiple-of", 1)
    words = ("--max-ppl-ratio", 1.9, "--answer-tokens", 0, "--out", tmp_path / "out")
    found = command("prune", model, *how, *words, "--json").record["quality"]
    assert found["tokens"] == 12 * len("cat 00 saw it") - 1 and found["interval"] is None and found["sure"] is None
    assert {trial["se"] for trial in found["trials"]} == {None}
    assert json.loads((tmp_path / "out" / "prune_plan.json").read_text())["provenance"]["quality"] == found


@needs_shared
def test_the_command(tmp_path: Path) -> None:
    """What it wrote has the ratio that it says, on the held-out part of the text; the card and the plan say it too."""
    model, text = SHARED / "models" / "stories260k", tmp_path / "text.txt"
    text.write_text((SHARED / "data" / "text" / "c4.validation.txt").read_text(encoding="utf-8")[:200_000])
    out = tmp_path / "out"
    options = ("--data", text, "--holdout", 0.3, "--method", "flap", "--calibration-tokens", 2048, "--seq-len", 128,
               "--multiple-of", 1, "--answer-tokens", 0)  # fmt: skip
    record = command("prune", model, "--out", out, "--max-ppl-ratio", 1.2, *options, "--json").record
    found = record["quality"]
    assert found["ratio"] <= 1.2 and found["interval"][0] < found["ratio"] < found["interval"][1]
    assert record["keep"] == min(t["keep"] for t in found["trials"] if t["log"] <= math.log(1.2))
    assert any(t["log"] > math.log(1.2) for t in found["trials"]), "a smaller one was tried"
    tokenizer = lmprune.load_tokenizer(model)
    ids = stream(tokenizer, lmprune.data.load(str(text), "validation", held_out=0.3), found["tokens"])[0]
    begin = [tokenizer.bos_token_id]
    ratio = perplexity(lmprune.load(out), ids, begin=begin, baseline=lmprune.load(model)).perplexity_ratio
    assert ratio == pytest.approx(found["ratio"], rel=1e-6)
    assert f"{ratio:.3f} times the dense perplexity" in (out / "README.md").read_text(encoding="utf-8")
    assert json.loads((out / "prune_plan.json").read_text())["provenance"]["quality"] == found


@needs_shared
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--max-ppl-ratio", 1), "--max-ppl-ratio must be above 1, the dense model's own, got 1"),
        (("--max-ppl-ratio", "inf"), "must be above 1"),
        (("--max-ppl-ratio", 1.1, "--steps", 10), "--max-ppl-ratio prunes at once, and again; drop --steps"),
        (("--max-ppl-ratio", 1.1, "--time-budget", "5m"), "drop --time-budget"),
        (("--max-ppl-ratio", 1.1, "--stream"), "neither whole"),
        (("--max-ppl-ratio", 1.1, "--keep", 0.5), "drop --keep, or --max-ppl-ratio: one says how much is left"),
        (("--max-ppl-ratio", 1.1, "--target-params", "1M"), "one says how much is left"),
        (("--max-ppl-ratio", 1.1), "has no validation split, which says how good a model is; keep a share of it with"),
        (("--max-ppl-ratio", 1.0001, "--holdout", 0.3, "--multiple-of", 1), "no ratio that was tried holds 1.0001"),
        (
            ("--max-ppl-ratio", 1.1, "--holdout", 0.3, "--units", "neurons,heads", "--scope", "local"),
            "finds one ratio, and layers of 4 or 172 units have their own",
        ),
    ],
)
def test_what_it_refuses(options: tuple[object, ...], sentence: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "\n".join(f"the cat of {i} sat on {i * i} mats, and the king of the birds sang" for i in range(800))
    )
    model, quick = SHARED / "models" / "stories260k", ("--calibration-tokens", 1024, "--seq-len", 64)
    found = refused("prune", model, "--data", text, "--out", tmp_path / "out", "--method", "flap", *quick, *options)
    assert sentence in found and not (tmp_path / "out").exists()
