"""`lmprune latency` and the table that it writes: what is measured in turn, what a table is refused for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import refused
from tiny_checkpoints import documented, tiny_checkpoint
from tiny_checkpoints import lmprune as command
from tiny_models import tiny_model

import lmprune
from lmprune.budget.budget import Budget, num_params
from lmprune.budget.costs import counts_before
from lmprune.budget.target import CostTarget
from lmprune.budget.timing import LatencyTable, Timing, sizes_of
from lmprune.checkpoints import models
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.jobs import latency as job
from lmprune.plan import PrunePlan
from lmprune.progress import silent
from lmprune.sites.address import Kind
from lmprune.sites.families import FAMILIES
from lmprune.sites.find import find_sites

SETTING = {"engine": "torch", "dtype": "float32", "threads": 1, "batch": 1, "prompt_tokens": 8, "new_tokens": 2}


def table(**changes: Any) -> LatencyTable:
    """Of the tiny llama: 3 layers of 48 neurons and 2 groups of heads."""
    kinds = {
        "neurons": Timing((48, 24, 8), (1.0, 0.7, 0.5), (2.0, 1.4, 1.5)),
        "heads": Timing((2, 1), (1.0, 0.9), (2.0, 1.8)),
    }
    shapes = {"neurons": (48, 48, 48), "heads": (2, 2, 2)}
    return LatencyTable(
        **{"model": "tiny", "shapes": shapes, "setting": SETTING, "machine": {}, "kinds": kinds, **changes}
    )


@pytest.mark.parametrize(("phase", "dense", "half"), [("prefill", 1.0, 0.7), ("decode", 2.0, 1.4), ("whole", 3.0, 2.1)])
def test_the_time_of_a_uniform_cut_is_what_was_measured(phase: Any, dense: float, half: float) -> None:
    sites = find_sites(tiny_model("llama"), ("neurons", "heads"))
    costs = table(phase=phase).costs(sites)
    before = counts_before(sites)
    assert costs.total(before) == pytest.approx(dense)
    assert costs.total({a: 24 if a.kind == "neurons" else 2 for a in before}) == pytest.approx(half)
    # one layer of three gains a third of what all gain
    first = {**before, sites[1].address: 24}
    assert sites[1].address == ("neurons", 0) and costs.total(first) == pytest.approx(dense - (dense - half) / 3)


def test_what_is_measured_goes_by_the_widest_layer() -> None:
    """A narrow first one, which can lose nothing, is no reason to measure less of the others."""
    model = tiny_model("llama")
    for kind, few in (("neurons", 8), ("heads", 1)):
        first, *others = find_sites(model, (kind,))
        kept = [torch.arange(few), *(torch.arange(site.count) for site in others)]
        addresses = [site.address for site in (first, *others)]
        shrink(model, PrunePlan.of(addresses, kept, [site.count for site in (first, *others)]))
    sites = find_sites(model, ("neurons", "heads"))
    assert job._counts(sites, "neurons", 8) == (48, 40, 24, 16, 8, 0) and job._counts(sites, "heads", 8) == (2, 1, 0)


def test_the_table_serves_models_that_were_cut_from_its_own() -> None:
    dense = tiny_model("llama")
    before = counts_before(find_sites(dense, ("neurons", "heads")))
    whole = table().costs(find_sites(dense, ("neurons", "heads")))
    addresses = [a for a in before if a.kind == "neurons"]
    shrink(dense, PrunePlan.of(addresses, [torch.arange(n) for n in (24, 40, 48)], [48] * 3))
    sites = find_sites(dense, ("neurons", "heads"))
    costs = table(cut=True).costs(sites)
    now = counts_before(sites)
    assert costs.total(now) == pytest.approx(whole.total(now)) and whole.total(now) < whole.total(before)
    further = {a: min(count, 20) if a.kind == "neurons" else 1 for a, count in now.items()}
    assert costs.total(further) == pytest.approx(whole.total(further))
    with pytest.raises(UserError, match="whose layers have other neurons than this model's"):
        table().costs(sites)  # of nobody knows which model
    with pytest.raises(UserError, match="whose layers have other neurons"):
        table(cut=True, shapes={"neurons": (48, 39, 48), "heads": (2, 2, 2)}).costs(sites)  # no cut made it wider


def test_a_table_of_groups_says_nothing_of_query_heads() -> None:
    """Which are the units where one group is left, and may be as many as there were groups."""
    model = tiny_model("llama")
    measured = table(cut=True, sizes=sizes_of(find_sites(model, ("neurons", "heads"))))
    for kind, keep in (("neurons", 0.5), ("heads", 0.5)):
        lmprune.prune(model, units=(kind,), method="magnitude", keep=keep, multiple_of=8)
        sites = find_sites(model, ("neurons", "heads"))
        if kind == "neurons":
            assert measured.costs(sites).total(counts_before(sites)) == pytest.approx(2.1)
    assert [site.count for site in sites if site.address.kind == "heads"] == [2, 2, 2]
    with pytest.raises(UserError, match="whose layers have other heads than this model's"):
        measured.costs(sites)


@pytest.mark.parametrize(("first", "then"), [("neurons", "heads"), ("heads", "neurons")])
def test_what_an_earlier_cut_has_gained_counts_whatever_goes_now(first: Any, then: Any) -> None:
    kinds = {"neurons": table().kinds["neurons"], "heads": Timing((4, 2, 1), (1.0, 0.9, 0.8), (2.0, 1.8, 1.7))}
    four = table(kinds=kinds, shapes={"neurons": (48, 48, 48), "heads": (4, 4, 4)})
    model = tiny_model("llama", num_key_value_heads=4)
    both: tuple[Kind, ...] = ("neurons", "heads")
    whole = four.costs(find_sites(model, both))
    lmprune.prune(model, units=(first,), method="magnitude", keep=0.5)
    now = whole.total(counts_before(find_sites(model, both)))
    cut = replace(four, cut=True)
    with pytest.raises(UserError, match=f"whose layers have other {first}"):
        cut.costs(find_sites(model, (then,)))  # what the other kind has lost is not known
    budget = Budget(CostTarget("speedup", 1.1), table=cut)
    plan = lmprune.prune(model, units=(then,), method="magnitude", budget=budget, multiple_of=1)
    after = whole.total(counts_before(find_sites(model, both)))
    assert now < 3 and after < now / 1.1
    assert plan.settings["cost"] == pytest.approx({"measure": "seconds", "before": now, "after": after})
    assert {address.kind for address in plan.addresses} == {then}


def test_fewer_units_are_never_slower() -> None:
    sites = find_sites(tiny_model("llama"))
    costs = table(phase="decode").costs(sites, find_sites(tiny_model("llama"), ("neurons", "heads")))
    totals = [costs.total(dict.fromkeys(counts_before(sites), n)) for n in range(8, 49)]
    assert totals == sorted(totals) and totals[0] == pytest.approx(1.4)  # not the 1.5 that was measured there


def test_a_table_goes_through_its_file(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(table(sizes={"heads": 16}).to_json())
    assert LatencyTable.load(tmp_path / "table.json", "decode") == table(phase="decode", sizes={"heads": 16})


def test_tables_of_something_else_are_refused(tmp_path: Path) -> None:
    sites = find_sites(tiny_model("llama"), ("neurons", "heads"))
    with pytest.raises(UserError, match="whose layers have other neurons than this model's"):
        table(shapes={"neurons": (48, 48), "heads": (2, 2, 2)}).costs(sites)
    with pytest.raises(UserError, match="says nothing of heads; measure it with --units heads"):
        table(kinds={"neurons": table().kinds["neurons"]}).costs(sites)
    for content in ("", "[]", "{}", '{"format": "lmprune latency 1"}', '{"format": "other 1"}'):
        (tmp_path / "table.json").write_text(content)
        with pytest.raises(UserError, match="is no latency table"):
            LatencyTable.load(tmp_path / "table.json")
    with pytest.raises(UserError, match="is no latency table"):
        LatencyTable.load(tmp_path / "none.json")


class FakeWorker:
    """An engine whose prefill takes a nanosecond a parameter, and whose decode two; every second turn is a slow one."""

    def __init__(self, engine: str, source: str, *, threads: int, context: int):
        self.seconds, self.turn = num_params(models.load(source, note=silent)) * 1e-9, 0

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def time(self, prompt_BT: Any, new_tokens: int) -> tuple[float, float]:
        self.turn += 1
        slow = 1 + 9 * (self.turn % 2)
        return self.seconds * slow, 2 * self.seconds * slow


def test_the_job_measures_cut_models_beside_the_whole_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "Worker", FakeWorker)
    out = tmp_path / "table.json"
    options = ("--out", out, "--prompt-tokens", 8, "--new-tokens", 2, "--repeats", 3, "--multiple-of", 8)
    shown = command("latency", model, *options, "--json")
    assert shown.code == 0, shown
    record = json.loads(shown.out)
    assert set(record) == documented("latency")
    dense, found = models.load(str(model), note=silent), LatencyTable.load(out)
    assert found.kinds["neurons"].counts == (48, 40, 24, 16, 8, 0) and found.kinds["heads"].counts == (2, 1, 0)
    sites = find_sites(dense, ("neurons", "heads"))
    by_time = found.costs(sites)
    for kind, timing in found.kinds.items():
        gone = (timing.counts[0] - timing.counts[-2]) * sum(s.params for s in sites if s.address.kind == kind)
        share = 1 - gone / num_params(dense)
        assert timing.prefill[-2] / timing.prefill[0] == pytest.approx(share, rel=1e-6)
        assert timing.decode[-2] / timing.decode[0] == pytest.approx(share, rel=1e-6)
    # what goes of both kinds at once takes both savings along
    least = {s.address: 8 if s.address.kind == "neurons" else 1 for s in sites}
    weighed = Budget(CostTarget("params", 1)).costs(sites, dense)
    assert by_time.total(least) / by_time.total(counts_before(sites)) == pytest.approx(
        weighed.total(least) / num_params(dense), rel=1e-6
    )
    assert "exists; choose another --out" in refused("latency", model, "--out", out)
    assert command("latency", model, *options, "--force").code == 0


def test_a_model_outside_the_table_is_told_by_its_paths(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused with the advice to name its layers with --ffn, which `latency` did not have."""
    monkeypatch.setattr(job, "Worker", FakeWorker)
    monkeypatch.delitem(FAMILIES, "llama")
    paths = ("--ffn", "up=mlp.up_proj,gate=mlp.gate_proj,down=mlp.down_proj,width_key=intermediate_size")
    quick = ("--prompt-tokens", 8, "--new-tokens", 2, "--repeats", 1, "--multiple-of", 8, "--units", "neurons")
    assert "--ffn up=" in refused("latency", model, "--out", tmp_path / "table.json", *quick)
    shown = command("latency", model, "--out", tmp_path / "table.json", *quick, *paths, "--json")
    assert shown.code == 0, shown
    assert LatencyTable.load(tmp_path / "table.json").kinds["neurons"].counts == (48, 40, 24, 16, 8, 0)
    told = ("--latency-table", tmp_path / "table.json", "--target-speedup", "1.05", "--multiple-of", 8)
    read = ("--data", text, "--calibration-tokens", 1024, "--seq-len", 64, "--answer-tokens", 0, "--json")
    done = command("prune", model, "--out", tmp_path / "o", *told, *read, *paths)
    assert done.code == 0, done
    assert done.record["widths"][0] < 48


def test_prune_to_a_speed(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(table().to_json())
    quick = (
        "--data",
        text,
        "--calibration-tokens",
        1024,
        "--seq-len",
        64,
        "--multiple-of",
        4,
        "--answer-tokens",
        0,
        "--json",
    )
    told = ("--latency-table", tmp_path / "table.json", "--latency-of", "decode")
    for number, options in enumerate((("--target-speedup", "1.2"), ("--target-latency", "1.7s", "--budget", "dp"))):
        shown = command("prune", model, "--out", tmp_path / str(number), *options, *told, *quick)
        assert shown.code == 0, shown
        record = json.loads(shown.out)
        most = (2 / 1.2, 1.7)[number]
        assert record["cost"]["measure"] == "seconds" and record["cost"]["before"] == pytest.approx(2.0)
        assert 0.9 * most < record["cost"]["after"] <= most
        assert set(record) <= documented("prune")


def test_what_can_not_be_measured(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    assert "did you mean torch" in refused("latency", model, "--out", out, "--engine", "troch")
    assert "exceed the model's" in refused("latency", model, "--out", out, "--prompt-tokens", 100000)
    assert "unknown unit" in refused("latency", model, "--out", out, "--units", "hats")
    whole = tiny_checkpoint(tmp_path / "mpt", "mpt")  # whose feed-forward layers can't go
    (width,) = {site.count for site in find_sites(models.load(whole), ["neurons"])}
    words = ("--out", out, "--units", "neurons", "--prompt-tokens", 8, "--multiple-of", width)
    sentence = refused("latency", whole, *words)
    assert f"fewer neurons can be measured: no layer has more than {width}, the fewest that a cut" in sentence
    assert not out.exists()


def test_a_speed_that_can_not_be_had(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(table().to_json())
    options = ("--data", text, "--out", tmp_path / "o", "--latency-table", tmp_path / "table.json")
    sentence = refused("prune", model, *options, "--target-speedup", "3", "--multiple-of", 4)
    assert sentence.startswith("the best possible is 1.50 times as fast, with the fewest neurons")
    wrong = refused("prune", model, *options, "--target-params", "30k")
    assert wrong.startswith("--latency-table is about --target-speedup and --target-latency")
