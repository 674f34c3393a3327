"""LoRA: the base stays as it was until the merge, scores are trained too, and the cut is of the merged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import refused
from test_resume import RUNS, arguments, killed, result
from tiny_checkpoints import lmprune, tiny_checkpoint
from tiny_models import LAYERS, WIDTH, logits, tiny_model, tokens

from lmprune.checkpoints import models
from lmprune.checkpoints.shrinking import shrink
from lmprune.gradual import GradualPruner, GradualSettings
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.sites.find import find_sites
from lmprune.training.lora import add_lora, merged
from lmprune.training.settings import TrainSettings
from lmprune.training.train import train

pytest.importorskip("peft")
FULL = GradualSettings(compute="full")
SHORT = ("--steps", 12, "--seq-len", 32, "--lora-rank", 4)
GUM = ("--method", "gum", "--keep", 0.5, "--multiple-of", 1)


def examples_of() -> list[dict[str, Any]]:
    return [{"input_ids": row} for row in tokens(16, 24)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "opt"])  # Linear, Conv1D, fused gate, biases
def test_the_base_is_frozen_until_the_merge_and_the_cut_is_of_the_merged_model(name: str):
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = add_lora(model, 4)
    assert torch.equal(logits(model), logits(tiny_model(name)))
    pruner = GradualPruner(model, method="top_v", keep=0.5, num_steps=12, settings=FULL)
    train(wrapped, examples_of(), TrainSettings(steps=12, lr=1e-2), pruner=pruner)
    frozen = {key.replace(".base_layer", ""): value for key, value in model.state_dict().items()}
    assert all(torch.equal(value, frozen[key]) for key, value in before.items())
    assert all(scores.abs().max() > 0 for scores in pruner.masks.scores)
    masked = logits(model.eval())
    plain = merged(wrapped)
    plan = pruner.finish()
    assert {key.split(".lora")[0] for key in plain.state_dict()} == set(before)
    assert not torch.equal(find_sites(plain)[0].reader(), find_sites(tiny_model(name))[0].reader())
    shrink(plain, plan)
    assert sum(plan.widths) == LAYERS * WIDTH // 2
    torch.testing.assert_close(logits(plain), masked, rtol=1e-4, atol=1e-4)


def test_from_the_command_line(model: Path, text: Path, tmp_path: Path):
    record = lmprune("prune", model, "--data", text, *SHORT, *GUM, "--out", tmp_path / "o", "--json").record
    assert record["kept"] == 0.5 and record["params_after"] < record["params_before"]
    loaded = models.load(tmp_path / "o")
    assert sum(p.numel() for p in loaded.parameters()) == record["params_after"]
    assert not [name for name in loaded.state_dict() if "lora" in name or "neuron_masks" in name]
    plan = PrunePlan.load(tmp_path / "o" / PLAN_FILE)
    assert plan.settings["training"]["lora_rank"] == 4 and plan.settings["gradual"]["compute"] == "full"
    assert "LoRA of rank 4" in (tmp_path / "o" / "README.md").read_text()


def test_recovery_and_finetuning(model: Path, text: Path, tmp_path: Path):
    how = ("--data", text, *SHORT)
    oneshot = ("--method", "activation", "--keep", 0.5, "--multiple-of", 1, "--schedule", "oneshot")
    record = lmprune("prune", model, *how, *oneshot, "--out", tmp_path / "o", "--json").record
    assert record["widths"] == [24] * LAYERS
    record = lmprune("finetune", tmp_path / "o", *how, "--lr", 1e-2, "--out", tmp_path / "p", "--json").record
    assert record["training"]["last_loss"] < record["training"]["first_loss"]


def test_a_killed_run_goes_on(text: Path, forks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dense = {"gpt2": tiny_checkpoint(tmp_path / "gpt2", "gpt2", n_positions=256)}
    monkeypatch.setitem(RUNS, "lora", ("prune", "gpt2", (*GUM, "--lora-rank", 4, "--train-tokens", 1024)))
    whole, broken = (arguments("lora", dense, text, tmp_path / out) for out in ("whole", "broken"))
    assert lmprune(*whole).code == 0
    killed(forks, broken, "after", 10)
    assert (tmp_path / "broken.training" / "checkpoint-8" / "adapter_model.safetensors").exists()
    assert lmprune(*broken, "--resume").code == 0
    assert result(tmp_path / "broken") == result(tmp_path / "whole")


# -- what is refused


def test_what_lora_can_not_do(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args = ("prune", model, "--data", text, *SHORT, "--out", tmp_path / "o")
    assert "leave out --compute gathered" in refused(*args, *GUM, "--compute", "gathered")
    assert "method 'obs' works on the whole weights" in refused(*args, "--method", "obs")
    assert "method 'magnitude' works on the whole weights" in refused(*args, "--method", "magnitude")
    assert "--warm-start works on the whole weights" in refused(*args, *GUM, "--warm-start")
    assert "lora-rank must be at least 1, got 0" in refused(*args, *GUM, "--lora-rank", 0)
    monkeypatch.setattr("lmprune.training.lora.find_spec", lambda _name: None)
    assert refused(*args, *GUM) == "--lora-rank needs peft; install it with: pip install 'lmprune[lora]'"
    assert list(tmp_path.iterdir()) == []
