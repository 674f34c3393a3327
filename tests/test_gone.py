"""Searches that may let a layer's whole attention, or feed-forward layer, go: its last level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_parts import some
from test_bad_input import refused
from test_budgeted import QUICK, UNITS, text
from test_gguf import bpe, model_of
from test_latency import FakeWorker, table
from test_streamed import same_in_both_ways, saved
from tiny_checkpoints import lmprune as command
from tiny_models import NAMES, tiny_model

import lmprune
from lmprune.budget.budget import Budget, num_params
from lmprune.budget.levels import Levels
from lmprune.budget.target import CostTarget
from lmprune.budget.timing import LatencyTable, Timing
from lmprune.checkpoints.shim import gone_in
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.jobs import latency as job
from lmprune.plan import PrunePlan
from lmprune.runtimes.gguf_file import read_gguf
from lmprune.sites.address import Address, Kind
from lmprune.sites.branches import BLOCKS, WHOLE_ONLY
from lmprune.sites.families import ATTENTION
from lmprune.sites.find import find_sites
from lmprune.solve.elimination import LeastSquares, eliminate
from lmprune.solve.second_look import Look
from lmprune.solve.trials import Tryout

FAMILIES = sorted({*NAMES} & {*BLOCKS} & {*ATTENTION} - {*WHOLE_ONLY})


def smallest(model: Any) -> int:
    """Parameters that are left where nothing is but the first layer's least neuron and group."""
    sites = find_sites(model, UNITS)
    return num_params(model) - sum(s.params * (s.count - (s.layer == 0)) for s in sites)


def cut(name: str, **how: Any) -> tuple[Any, PrunePlan]:
    """To so few parameters that whole attentions and feed-forward layers have to go."""
    model = tiny_model(name)
    budget = Budget(CostTarget("params", smallest(model) + 300), by="ranking", effort=QUICK)
    plan = lmprune.prune(model, units=UNITS, data=text(), multiple_of=1, budget=budget, **how)
    assert num_params(model) <= smallest(tiny_model(name)) + 300
    return model, plan


@pytest.mark.parametrize("pinned", [0, 1])
@pytest.mark.parametrize("size", [1, 3])
def test_what_all_units_cost_together_is_what_the_output_is_worth(pinned: int, size: int) -> None:
    """Of a reader whose bias goes along, too; in any order, since each removal is made up for by the rest."""
    draw = torch.Generator().manual_seed(1)
    x_NF, y_ND = (torch.randn(200, n, generator=draw, dtype=torch.float64) for n in (12 + pinned, 5))
    if pinned:
        x_NF[:, -1] = 1
    root_DD = torch.randn(5, 5, generator=draw, dtype=torch.float64)
    metric_DD = root_DD @ root_DD.T
    problem = LeastSquares(x_NF.T @ x_NF / 200, x_NF.T @ y_ND / 200, pinned=pinned, size=size)
    found = eliminate(problem, until=0, metric_DD=metric_DD, step=2)
    best_FD = torch.linalg.solve(problem.gram_FF, problem.cross_FD)
    worth = 0.5 * (best_FD.T @ problem.gram_FF @ best_FD @ metric_DD).trace()
    assert sorted(found.gone.tolist()) == [*range(12 // size)] and found.kept.numel() == 0
    assert float(found.cost.sum()) == pytest.approx(float(worth), rel=1e-9)
    reader_FD, bias_D = problem.masked(found.kept)
    assert not reader_FD.any() and (bias_D is None) == (not pinned) and (bias_D is None or not bias_D.any())


@pytest.mark.parametrize("name", some(FAMILIES, "llama", "gpt2", "gemma2", "phi"))
def test_the_cut_is_the_model_with_silent_branches(name: str, tmp_path: Path) -> None:
    """Beside one of the dense shapes, whose readers have zeros where units went; saved, and opened again."""
    model, plan = cut(name)
    empty = [address for address in plan.addresses if not plan.kept[address]]
    assert empty and len(gone_in(model)) >= len(empty)
    mirror, left = tiny_model(name), {site.address: site for site in find_sites(model, UNITS)}
    for site, units in zip(find_sites(mirror, UNITS), plan.indices(), strict=True):
        reader_FD = torch.zeros_like(site.reader())
        bias_D = None if site.reader_bias() is None else torch.zeros_like(site.reader()[0])
        if len(units):
            reader_FD[site.inputs_of(units)] = left[site.address].reader()
            bias_D = left[site.address].reader_bias()
        site.set_reader(reader_FD, bias_D)
        for own, cut_off in zip(site.writers(), left[site.address].writers() if len(units) else (), strict=False):
            rows = own.unflatten(0, (site.count, -1))
            assert torch.equal(rows[units].flatten(0, 1), cut_off), "the writers stay what they were"
    ids = text(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, mirror(ids).logits, rtol=1e-4, atol=1e-5)
        next(s for s in find_sites(mirror, UNITS) if s.address == empty[0]).reader().normal_()
        assert not torch.allclose(model(ids).logits, mirror(ids).logits, rtol=1e-4, atol=1e-5), "the control"
        wanted = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)
        lmprune.save(model, tmp_path / "out", plan=plan)
        again = lmprune.load(tmp_path / "out")
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert torch.equal(again.generate(ids, max_new_tokens=4, do_sample=False), wanted), "its cache has no gaps"


def test_no_model_loses_all_of_them() -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match=f"the best possible is {smallest(model):,} parameters"):
        budget = Budget(CostTarget("params", smallest(model) - 1), by="ranking")
        lmprune.prune(model, units=UNITS, data=text(), multiple_of=1, budget=budget)
    lmprune.prune(
        model, units=UNITS, data=text(), multiple_of=1, budget=Budget(CostTarget("params", smallest(model)), by="dp")
    )
    assert [str(site.address) for site in find_sites(model, UNITS)] == ["heads.0", "neurons.0"]


def test_families_whose_branches_can_not_go_keep_one_neuron_of_each() -> None:
    model = tiny_model("mpt")
    sites = find_sites(model)
    least = num_params(model) - sum(site.params * (site.count - 1) for site in sites)
    plan = lmprune.prune(model, data=text(), multiple_of=1, budget=Budget(CostTarget("params", least), by="ranking"))
    assert {len(units) for units in plan.kept.values()} == {1}


def test_a_plan_without_units_is_carried_out_again(tmp_path: Path) -> None:
    model, plan = cut("llama")
    (tmp_path / "plan.json").write_text(plan.to_json())
    read = PrunePlan.load(tmp_path / "plan.json")
    assert read.kept == plan.kept
    again = tiny_model("llama")
    lmprune.prune(again, data=text(), plan=read)
    torch.testing.assert_close(again(text(2)).logits, model(text(2)).logits, rtol=1e-4, atol=1e-5)
    bare = shrink(tiny_model("llama"), read)
    assert gone_in(bare) == gone_in(model) and num_params(bare) == num_params(model)


def test_plans_that_leave_too_little_are_refused() -> None:
    cases: list[tuple[str, Kind, tuple[int, ...], str]] = [
        ("mpt", "neurons", (1,), "layer 1: no neurons would stay, and this model can't do without; keep one"),
        ("llama", "neurons", (0, 1, 2), "no ffn would be left"),
        ("llama", "heads", (0, 1, 2), "no attention would be left"),
    ]
    for name, kind, which, sentence in cases:
        model = tiny_model(name)
        sites = find_sites(model, [kind])
        kept = [torch.arange(0 if site.layer in which else site.count) for site in sites]
        plan = PrunePlan.of([site.address for site in sites], kept, [site.count for site in sites])
        with pytest.raises(UserError, match=sentence):
            shrink(model, plan)
        assert num_params(model) == num_params(tiny_model(name))


def test_attentions_that_go_whole_and_head_by_head_are_counted_together() -> None:
    model = tiny_model("llama")
    sites = find_sites(model, ["heads", "attentions"])
    for first, sentence in ((0, "no attention would be left"), (1, None)):
        kept = [torch.arange(first if str(site.address) == "heads.0" else site.count) for site in sites[:-1]]
        plan = PrunePlan.of([s.address for s in sites], [*kept, torch.tensor([0])], [s.count for s in sites])
        if sentence:
            with pytest.raises(UserError, match=sentence):
                shrink(model, plan)
        else:
            assert [str(site.address) for site in find_sites(shrink(model, plan), ["heads"])] == ["heads.0"]


def test_from_files_it_is_the_same(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dense", num_hidden_layers=4)
    model = lmprune.load(folder)
    budget = Budget(CostTarget("params", smallest(model) + 400), by="evolution", effort=QUICK)
    whole, streamed = same_in_both_ways(folder, units=UNITS, budget=budget, multiple_of=4)
    assert gone_in(whole) == gone_in(streamed) != {}


def test_the_commands(model: Path, text: Path, tmp_path: Path) -> None:
    """What is said of it is what is there: the record, the plan, the card, `inspect`, and whoever goes on with it."""
    dense = lmprune.load(model)
    words = ("--data", text, "--calibration-tokens", 512, "--seq-len", 32, "--multiple-of", 1, "--answer-tokens", 0)
    words = (*words, "--units", "neurons,heads", "--budget", "ranking", "--target-params", smallest(dense) + 1200)
    shown = command("prune", model, "--out", tmp_path / "out", *words, "--json")
    assert shown.code == 0, shown
    small = lmprune.load(tmp_path / "out")
    assert shown.record["params_after"] == num_params(small) <= smallest(dense) + 1200
    told = command("inspect", tmp_path / "out", "--json")
    assert told.code == 0 and told.record["params"] == num_params(small), told
    left = {str(site.address): site.count for site in find_sites(small, UNITS)}
    plan = PrunePlan.load(tmp_path / "out" / "prune_plan.json")
    assert {str(address): len(units) for address, units in plan.kept.items() if units} == left and 0 in map(
        len, plan.kept.values()
    )
    assert command("prune", tmp_path / "out", "--keep", 0.5, "--out", tmp_path / "less", *words[:10]).code == 0
    finetuned = command(
        "finetune", tmp_path / "out", "--data", text, "--steps", 2, "--seq-len", 32, "--out", tmp_path / "f"
    )
    assert finetuned.code == 0 and "left aside" not in finetuned.err


def test_analyze_knows_what_is_left_of_the_layers_that_are(model: Path, text: Path, tmp_path: Path) -> None:
    small = lmprune.load(model)
    sites = find_sites(small)
    kept = [torch.arange(count) for count in (12, 0, 24)]
    plan = PrunePlan.of([site.address for site in sites], kept, [site.count for site in sites])
    lmprune.save(shrink(small, plan), tmp_path / "out", tokenizer=lmprune.load_tokenizer(model), plan=plan)
    words = ("--data", text, "--seq-len", 32, "--max-tokens", 128, "--out", tmp_path / "a", "--json")
    layers = command("analyze", tmp_path / "out", *words).record["layers"]
    assert [(layer["layer"], layer["left"]) for layer in layers] == [(0, 0.25), (2, 0.5)]


def test_llama_cpp_runs_it(tmp_path: Path) -> None:
    """The export compares it with the model before anything is written."""
    model = model_of("llama", intermediate_size=64)
    sites = find_sites(model, UNITS)
    kept = [torch.arange(0 if str(s.address) in ("heads.1", "neurons.2") else s.count // 2) for s in sites]
    plan = PrunePlan.of([site.address for site in sites], kept, [site.count for site in sites])
    shrink(model, plan)
    lmprune.save(model, tmp_path / "out", tokenizer=bpe(), plan=plan)
    file = tmp_path / "m.gguf"
    shown = command("export", tmp_path / "out", "--to", "gguf", "--dtype", "f32", "--out", file)
    assert shown.code == 0 and read_gguf(file).arch == "deci", shown


@pytest.mark.parametrize("worse", [True, False])
def test_what_could_stay_goes_only_where_that_is_nearer(worse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that make attentions cheap, and a real cut that says otherwise, or the same."""
    plain, seen = Levels.of, list[bool]()

    def cheap(address: Address, gone: torch.Tensor, cost: torch.Tensor, counts: tuple[int, ...]) -> Levels:
        return plain(address, gone, cost * (1e-6 if address.kind == "heads" else 1), counts)

    def losses(_trial: Tryout, counts: list[int]) -> dict[str, float]:
        seen.append(0 in counts)
        return {"loss": float((0 in counts) == worse)}

    monkeypatch.setattr(Levels, "of", cheap)
    monkeypatch.setattr(Look, "_gains", lambda _look, _counts, looked: (1.0, dict.fromkeys(looked, 0.0)))
    monkeypatch.setattr(Tryout, "losses", losses)
    model = tiny_model("llama")
    budget = Budget(CostTarget("params", 0.8 * num_params(model)), by="ranking")
    plan = lmprune.prune(model, units=UNITS, data=text(), multiple_of=1, budget=budget)
    assert seen == [True, False] and (0 in map(len, plan.kept.values())) != worse
    assert num_params(model) <= 0.8 * num_params(tiny_model("llama"))


def test_a_table_serves_models_that_lost_whole_branches_of_it() -> None:
    kinds = {**table().kinds, "heads": Timing((2, 1, 0), (1.0, 0.9, 0.6), (2.0, 1.8, 1.2))}
    measured, model = table(kinds=kinds, cut=True), tiny_model("llama")
    before, whole = find_sites(model, UNITS), measured.costs(find_sites(model, UNITS))
    left = {site.address: 0 if str(site.address) == "heads.1" else site.count for site in before}
    before[2].keep(torch.arange(0))
    sites = find_sites(model, UNITS)
    costs = measured.costs(sites, blocks=3)
    assert len(sites) == 5 and costs.total({s.address: s.count for s in sites}) == pytest.approx(whole.total(left))
    assert whole.total(left) == pytest.approx(3 - 1.2 / 3)  # a third of what all heads are worth
    for other in (None, 2):
        with pytest.raises(UserError, match="whose layers have other heads"):
            measured.costs(sites, blocks=other)


def test_seconds_of_layers_without_any(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `latency` measures is a model that kept the first one's; a layer's share is of those that went."""
    monkeypatch.setattr(job, "Worker", FakeWorker)
    out = tmp_path / "table.json"
    words = ("--out", out, "--prompt-tokens", 8, "--new-tokens", 2, "--repeats", 3, "--multiple-of", 8)
    assert command("latency", model, *words).code == 0
    found, dense = LatencyTable.load(out), lmprune.load(model)
    assert found.kinds["heads"].counts == (2, 1, 0) and found.kinds["neurons"].counts[-2:] == (8, 0)
    sites = find_sites(dense, UNITS)
    before = {site.address: site.count for site in sites}
    less = lmprune.load(model)
    heads = find_sites(less, ["heads"])
    heads[1].keep(torch.arange(0))
    share = found.costs(sites).total({**before, heads[1].address: 0}) / found.costs(sites).total(before)
    assert share == pytest.approx(num_params(less) / num_params(dense), rel=1e-6)
    assert "the best possible is" in refused(
        "prune", model, "--latency-table", out, "--target-speedup", 1000, "--budget", "ranking", "--units",
        "neurons,heads", "--data", "self", "--out", tmp_path / "fast",
    )  # fmt: skip
