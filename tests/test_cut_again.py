"""What happens a second time: a model that was loaded, cut and saved is cut, saved and loaded again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import lmprune
from tiny_models import NAMES, is_pruned_class, logits, tiny_model

from lmprune import prune
from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.sites.address import Kind
from lmprune.sites.find import find_sites


def cut(model: Any, kind: Kind, *counts: int) -> None:
    """The first units of each layer stay."""
    sites = find_sites(model, [kind])
    kept = [torch.arange(count) for count in counts]
    shrink(model, PrunePlan.of([site.address for site in sites], kept, [site.count for site in sites]))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_loaded_and_cut_is_loaded_and_cut_again(name: str, tmp_path: Path) -> None:
    model = models.load(checkpoint.save(tiny_model(name), tmp_path / "dense"))
    cut(model, "neurons", 40, 24, 32)
    assert is_pruned_class(model)
    again = models.load(checkpoint.save(model, tmp_path / "cut"))
    assert torch.equal(logits(again), logits(model))
    cut(model, "neurons", 16, 16, 16)  # in memory, where it has been saved meanwhile
    stock = models.load(checkpoint.save(model, tmp_path / "again"))
    assert torch.equal(logits(stock), logits(model))


def test_what_was_cut_trained_and_cut_again_comes_from_the_first(model: Path, text: Path, tmp_path: Path) -> None:
    """So that a latency table of that one serves it; a plan that was made of another model is no origin."""
    cut, trained, again, other = (tmp_path / name for name in ("cut", "trained", "again", "other"))
    how = ("--data", text, "--answer-tokens", 0)
    prune = ("--method", "magnitude", "--multiple-of", 1, *how)
    steps = ("--steps", 1, "--seq-len", 32, "--batch-size", 1, "--grad-accum", 1, "--data", text)
    assert lmprune("prune", model, "--out", cut, *prune).code == 0
    assert lmprune("finetune", cut, "--out", trained, *steps).code == 0
    assert lmprune("prune", trained, "--out", again, *prune).code == 0
    assert [*PrunePlan.load(again / PLAN_FILE).sources()] == [str(trained), str(cut), str(model)]

    twin = shutil.copytree(model, tmp_path / "twin")
    assert lmprune("prune", twin, "--out", other, "--plan", cut / PLAN_FILE, *how).code == 0
    assert [*PrunePlan.load(other / PLAN_FILE).sources()] == [str(twin)]


def test_where_nothing_is_left_to_go_it_says_so() -> None:
    """And does not write a plan of half the heads over a model that has all that it had."""
    model = tiny_model("llama", num_key_value_heads=4)
    cut(model, "heads", 1, 1, 1)
    for scope in ("local", "global"):
        with pytest.raises(UserError, match="no heads can go: each layer has only what it needs"):
            prune(model, units=("heads",), method="magnitude", keep=0.5, scope=scope)
    both = prune(
        model, units=("heads", "neurons"), method="magnitude", keep={"heads": 1, "neurons": 0.5}, multiple_of=1
    )
    assert both.counts("heads")[1] == [1, 1, 1] and both.widths == [24, 24, 24]
