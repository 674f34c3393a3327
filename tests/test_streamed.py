"""Models whose blocks stay in their files: the same as in memory, bit for bit, with few blocks there at a time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_bad_input import refused
from test_gguf_reading import some
from tiny_checkpoints import lmprune as command
from tiny_mixtures import tiny_mixture
from tiny_models import NAMES, is_pruned_class, logits, tiny_model, tokens
from transformers import AutoModelForCausalLM

import lmprune
from lmprune import GradualPruner
from lmprune.budget.budget import Budget
from lmprune.budget.search import Effort
from lmprune.checkpoints import models
from lmprune.errors import UserError
from lmprune.jobs import opening
from lmprune.plan import PrunePlan
from lmprune.sites.branches import BLOCKS
from lmprune.sites.families import FAMILIES
from lmprune.sites.find import find_sites
from lmprune.sites.mixtures import MIXTURES
from lmprune.sites.pages import Pages, here, pages_of
from lmprune.solve.second_look import Look

IDS = tokens(6, 20, seed=2)


def both(folder: Path) -> tuple[Any, Any]:
    return models.load(folder), models.load(folder, stream=True)


def saved(folder: Path, name: str = "llama", **changes: Any) -> Path:
    tiny_model(name, **changes).save_pretrained(folder)
    return folder


def there(model: Any) -> list[int]:
    """Numbers of the blocks that are in memory."""
    pages = pages_of(model)
    assert pages is not None
    return [n for n, block in enumerate(pages.blocks) if not any(p.is_meta for p in block.parameters())]


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_pruned_as_it_is_in_memory(name: str, tmp_path: Path) -> None:
    whole, streamed = both(saved(tmp_path / "dense", name))
    assert pages_of(whole) is None and torch.equal(logits(whole), logits(streamed))
    how: dict[str, Any] = {"method": "obs", "scope": "global", "keep": 0.5, "data": IDS, "multiple_of": 1}
    plans = [lmprune.prune(model, **how) for model in (whole, streamed)]
    assert plans[0].kept == plans[1].kept
    assert torch.equal(logits(whole), logits(streamed)) and len(there(streamed)) == 1


@pytest.mark.parametrize(
    "method", ["magnitude", "activation", "flap", "taylor", "llm_pruner", "random", "plain_obs", "sensitivity"]
)
def test_every_kind_of_method(method: str, tmp_path: Path) -> None:
    whole, streamed = both(saved(tmp_path / "dense", num_hidden_layers=4))
    for model in (whole, streamed):
        lmprune.prune(model, method=method, keep=0.5, data=IDS, multiple_of=1, seed=3)
    assert torch.equal(logits(whole), logits(streamed))


def test_heads_and_neurons_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, gains = [], Look._gains
    monkeypatch.setattr(Look, "_gains", lambda look, *how: looks.append(gains(look, *how)) or looks[-1])
    whole, streamed = both(saved(tmp_path / "dense", num_hidden_layers=4))
    how: dict[str, Any] = {"units": ("neurons", "heads"), "keep": 0.5, "data": IDS, "multiple_of": 1}
    plans = [lmprune.prune(model, scope="global", **how) for model in (whole, streamed)]
    assert plans[0].kept == plans[1].kept and torch.equal(logits(whole), logits(streamed))
    assert len(looks) == 2 and looks[0] == looks[1] and looks[0][1], "a second look, and the same one"


def test_few_blocks_are_in_memory_at_a_time(tmp_path: Path, blocks_here: list[int]) -> None:
    streamed = models.load(saved(tmp_path / "dense", num_hidden_layers=6), stream=True)
    assert there(streamed) == []
    lmprune.prune(streamed, method="obs", scope="global", keep=0.5, data=IDS, multiple_of=1)
    assert max(blocks_here) == 1 and len(blocks_here) > 12


def test_what_is_saved_is_what_is_saved_of_the_whole(tmp_path: Path) -> None:
    dense = tiny_model("llama", num_hidden_layers=3, tie_word_embeddings=True).to(torch.bfloat16)
    dense.save_pretrained(tmp_path / "dense")
    for scope in ("local", "global"):
        for name, model in zip(("whole", "streamed"), both(tmp_path / "dense"), strict=True):
            plan = lmprune.prune(model, method="obs", scope=scope, keep=0.5, data=IDS, multiple_of=1)
            lmprune.save(model, tmp_path / f"{name}-{scope}", plan=plan)
        whole, streamed = tmp_path / f"whole-{scope}", tmp_path / f"streamed-{scope}"
        index = json.loads((streamed / "model.safetensors.index.json").read_text())
        files = [load_file(file) for file in sorted(streamed.glob("*.safetensors"))]
        tensors = {key: value for file in files for key, value in file.items()}
        expected = load_file(whole / "model.safetensors")
        assert tensors.keys() == expected.keys() == index["weight_map"].keys() and len(files) == 4
        assert all(torch.equal(tensors[k], expected[k]) and tensors[k].dtype == torch.bfloat16 for k in expected)
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        assert (streamed / "config.json").read_text() == (whole / "config.json").read_text()
        opened = [
            AutoModelForCausalLM.from_pretrained(f, trust_remote_code=scope == "global") for f in (whole, streamed)
        ]
        assert torch.equal(*(logits(model) for model in opened))
        again = models.load(streamed, stream=True)  # what was pruned can be read so, too
        assert is_pruned_class(again) == (scope == "global") and torch.equal(
            logits(again), logits(models.load(streamed))
        )


def test_a_plan_is_carried_out(tmp_path: Path) -> None:
    whole, streamed = both(saved(tmp_path / "dense"))
    plan = lmprune.prune(models.load(tmp_path / "dense"), method="magnitude", keep=0.5, multiple_of=1)
    for model in (whole, streamed):
        lmprune.shrink(model, PrunePlan.from_json(plan.to_json()))
    assert torch.equal(logits(whole), logits(streamed))


def test_what_is_written_into_a_block_stays(tmp_path: Path) -> None:
    whole, streamed = both(saved(tmp_path / "dense", num_hidden_layers=3))
    for model in (whole, streamed):
        site = find_sites(model)[1]
        here(site.block)
        with torch.no_grad():
            site.reader().mul_(2)
    assert there(streamed) == [1] and torch.equal(logits(whole), logits(streamed)) and there(streamed) == [2]
    assert torch.equal(logits(whole), logits(streamed))


# -- the command line


def test_the_command_writes_the_same(model: Path, text: Path, tmp_path: Path) -> None:
    how = ("--data", text, "--calibration-tokens", 512, "--seq-len", 64, "--multiple-of", 1, "--scope", "global")
    records = [command("prune", model, *how, *more, "--out", tmp_path / name, "--json").record
               for name, more in (("whole", ()), ("streamed", ("--stream",)))]  # fmt: skip
    for key in ("widths", "params_after", "ffn_params_after", "stock", "dtype"):
        assert records[0][key] == records[1][key]
    assert torch.equal(*(logits(models.load(tmp_path / name)) for name in ("whole", "streamed")))
    evaluated = ("eval", tmp_path / "whole", "--data", text, "--context", 64, "--baseline", model, "--json")
    scores = [command(*evaluated, *more).record for more in ((), ("--stream",))]
    assert scores[0]["nll"] == scores[1]["nll"] and scores[0]["kl"] == scores[1]["kl"]


def test_it_streams_by_itself_where_memory_is_short(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = ("prune", model, "--method", "magnitude", "--data", text)
    assert "read one by one" not in command(*how, "--out", tmp_path / "a").err
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert (
        "does not fit into memory as a whole: its blocks are read one by one"
        in command(*how, "--out", tmp_path / "b").err
    )


def test_what_can_not_be_streamed(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = ("prune", model, "--stream", "--data", text, "--out", tmp_path / "out")
    assert "--stream prunes at once: a training needs" in refused(*how, "--method", "gum", "--steps", 20)
    assert "--ffn is proved on the whole model" in refused(*how, "--ffn", "up=mlp.up_proj,down=mlp.down_proj")
    assert not (tmp_path / "out").exists()
    streamed = models.load(model, stream=True)
    with pytest.raises(UserError, match="read block by block"):
        GradualPruner(streamed, method="magnitude", keep=0.5, num_steps=20)
    with pytest.raises(UserError, match="the FFN that was named can't be proved on a model that is read block by"):
        lmprune.prune(streamed, keep=0.5, data=IDS, spec=FAMILIES["llama"])
    monkeypatch.setattr(opening, "fits", lambda *_: False)  # it streams by itself
    searched = ("prune", model, "--data", text, "--out", tmp_path / "out", "--seq-len", 32, "--answer-tokens", 0)
    assert "--max-ppl-ratio prunes copies" in refused(*searched, "--max-ppl-ratio", 1.1, "--holdout", 0.2)
    monkeypatch.setattr("lmprune.pruning.meets", lambda: True)
    assert "several processes can't calibrate together" in refused(*searched)
    assert not (tmp_path / "out").exists()


def same_in_both_ways(folder: Path, **how: Any) -> tuple[Any, Any]:
    """A model pruned as a whole, and block by block, from a checkpoint, and written: what is read of it then."""
    plans = []
    for name, model in zip(("whole", "streamed"), both(folder), strict=True):
        plans.append(lmprune.prune(model, data=IDS, **how))
        lmprune.save(model, folder.parent / name, plan=plans[-1], force=True)
    first, second = (re.sub(r'"seconds": [0-9.e-]+', "", plan.to_json()) for plan in plans)
    assert first == second
    first, second = (folder.parent / name for name in ("whole", "streamed"))
    assert (first / "config.json").read_text() == (second / "config.json").read_text()
    again = models.load(first), models.load(second), models.load(second, stream=True)
    assert torch.equal(logits(again[0]), logits(again[1])) and torch.equal(logits(again[0]), logits(again[2]))
    return again[0], again[1]


@pytest.mark.parametrize("name", some(sorted({*NAMES} & {*BLOCKS}), "llama", "gpt2", "gemma2"))
@pytest.mark.parametrize("units", [("layers",), ("attentions", "ffns")])
def test_layers_of_every_family(name: str, units: tuple[Any, ...], tmp_path: Path) -> None:
    folder = saved(tmp_path / "dense", name)
    try:
        lmprune.prune(models.load(folder), units=units, method="random", keep=2 / 3)
    except UserError:  # of these whole layers go alone
        units = ("layers",)
    same_in_both_ways(folder, units=units, method="obs", keep=2 / 3)


@pytest.mark.parametrize("by", some(["ranking", "dp", "evolution"], "evolution"))
def test_budgets_that_are_spread_by_a_search(by: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "dense", num_hidden_layers=4)
    how: dict[str, Any] = {"units": ("neurons", "heads"), "keep": 0.5, "multiple_of": 4}
    same_in_both_ways(folder, budget=Budget(by=by, effort=Effort(reweighings=2, generations=2, offspring=4)), **how)


@pytest.mark.parametrize("method", some(["shortgpt", "ppl_without", "sleb", "random"], "sleb"))
@pytest.mark.parametrize("kind", some(["layers", "attentions", "ffns"], "layers", "attentions"))
def test_every_score_of_layers(method: str, kind: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "dense", num_hidden_layers=4)
    whole, _ = same_in_both_ways(folder, units=(kind,), method=method, keep=0.5)
    assert logits(whole).isfinite().all()


def test_layers_go_from_what_has_lost_some(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dense", num_hidden_layers=6)
    model = models.load(folder, stream=True)
    lmprune.prune(model, units=("attentions",), method="shortgpt", keep=0.5, data=IDS)
    lmprune.save(model, tmp_path / "less")
    same_in_both_ways(tmp_path / "less", units=("attentions",), method="ppl_without", keep=2 / 3)
    same_in_both_ways(tmp_path / "less", units=("layers",), method="shortgpt", keep=0.5)


def test_a_block_is_read_once_for_all_that_its_layers_are_scored_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = models.load(saved(tmp_path / "dense", num_hidden_layers=6), stream=True)
    read: list[int] = []
    stored = Pages._stored
    monkeypatch.setattr(Pages, "_stored", lambda pages, number: read.append(number) or stored(pages, number))
    lmprune.prune(streamed, units=("layers",), method="ppl_without", keep=0.5, data=IDS)
    assert len(read) <= 6 + 2, "and the first once more, for what all are called with"


@pytest.mark.parametrize("method", some(["obs", "magnitude", "activation", "llm_pruner"], "obs", "llm_pruner"))
@pytest.mark.parametrize("name", some(sorted(MIXTURES), "gpt_oss"))
def test_neurons_inside_experts(name: str, method: str, tmp_path: Path) -> None:
    tiny_mixture(name).save_pretrained(tmp_path / "dense")
    how: dict[str, Any] = {"units": ("expert_neurons",), "keep": 0.5, "multiple_of": 8, "scope": "local"}
    same_in_both_ways(tmp_path / "dense", method=method, **how)


def test_a_broken_block_is_named_when_it_comes(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dense")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    streamed = models.load(folder, stream=True)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight holds 1 NaN"):
        lmprune.prune(streamed, method="magnitude", keep=0.5)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_experts_whose_tensors_are_stored_otherwise(name: str, tmp_path: Path) -> None:
    tiny_mixture(name).save_pretrained(tmp_path / "dense")
    whole, streamed = both(tmp_path / "dense")
    for model in (whole, streamed):
        lmprune.prune(model, method="reap", units=("experts",), keep=0.5, data=IDS)
        lmprune.save(model, tmp_path / str(model is streamed))
    assert torch.equal(logits(whole), logits(streamed))
    assert torch.equal(logits(whole), logits(models.load(tmp_path / "True")))
    index = json.loads((tmp_path / "True" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == load_file(tmp_path / "False" / "model.safetensors").keys()


def test_files_that_change_meanwhile(tmp_path: Path) -> None:
    streamed = models.load(saved(tmp_path / "dense", num_hidden_layers=4), stream=True)
    logits(streamed)
    saved(tmp_path / "dense", num_hidden_layers=4)
    with pytest.raises(UserError, match="changed while it was read"):
        logits(streamed)
