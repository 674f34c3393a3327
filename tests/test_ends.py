"""A walk that needs not run a block again after its cut: the same problems and readers, in every family."""

from __future__ import annotations

import pytest
import torch
from in_parts import few
from tiny_models import NAMES, tiny_model
from torch import Tensor

from lmprune.sites.find import find_sites
from lmprune.sites.site import Site, seams
from lmprune.solve.obs import ObsSettings, obs_refit
from lmprune.solve.targets import _Streams, layer_problems
from lmprune.solve.walks import cut


def text(rows: int = 16, length: int = 32) -> Tensor:
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(3))


def half_of(site: Site) -> Tensor:
    """Units that are not the first ones."""
    return torch.randperm(site.count, generator=torch.Generator().manual_seed(site.layer))[::2].sort().values


def refitted(model, units=("neurons",)) -> tuple[list[Tensor], int]:
    """What `obs` makes of the readers of half of the units, and how often the last block but one was run."""
    sites = seams(find_sites(model, units), "a test")
    runs, block = [], sites[-1 - len(units)].block
    handle = block.register_forward_pre_hook(lambda *_: runs.append(1) and None)
    obs_refit(model, sites, text(), [half_of(site) for site in sites], settings=ObsSettings())
    handle.remove()
    return [site.reader().detach().clone() for site in sites], len(runs)


def assert_near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Each reader as a whole: how far a single weight is off tells of the problem's condition."""
    assert [reader.shape for reader in ours] == [reader.shape for reader in theirs]
    off = [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]
    assert max(off) < 1e-4, off


def without_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Streams, "ends", lambda *_: False)


@pytest.mark.parametrize("name", few(NAMES))
def test_readers_are_those_of_a_walk_that_runs_each_block_again(name: str, monkeypatch: pytest.MonkeyPatch):
    short, _ = refitted(tiny_model(name))
    without_ends(monkeypatch)
    long, _ = refitted(tiny_model(name))
    assert_near(short, long)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox-parallel"])
def test_a_block_is_not_run_again_where_its_reader_is_added_to_the_stream(name: str, monkeypatch: pytest.MonkeyPatch):
    """Four batches: one pass to learn the arguments, the dense one, the moments', two first batches to see the end."""
    _, short = refitted(tiny_model(name))
    without_ends(monkeypatch)
    _, long = refitted(tiny_model(name))
    assert (long - short) == 4 - 2


def test_heads_are_cut_before_and_change_what_follows(monkeypatch: pytest.MonkeyPatch):
    short, _ = refitted(tiny_model("llama"), ("neurons", "heads"))
    without_ends(monkeypatch)
    long, _ = refitted(tiny_model("llama"), ("neurons", "heads"))
    assert_near(short, long)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_layer_that_adds_more_or_less_than_the_first_is_run_again(scale: float, monkeypatch: pytest.MonkeyPatch):
    def model():
        made = tiny_model("llama")
        made.model.layers[1].mlp.register_forward_hook(lambda _module, _args, out: out * scale)
        return made

    short, runs = refitted(model())
    without_ends(monkeypatch)
    long, all_runs = refitted(model())
    assert runs == all_runs + 2
    assert_near(short, long)


def test_states_carry_no_gradients():
    """The walk's caller need not have switched them off: what lies in memory would grow with every block."""
    model = tiny_model("llama")
    entered: list[bool] = []
    model.model.layers[-1].register_forward_pre_hook(
        lambda _block, args: entered.append(args[0].requires_grad) and None
    )
    sites, how = seams(find_sites(model), "a test"), {"sequential": True, "rel_damp": 0.1, "compensation": 0.5}
    with torch.enable_grad():
        for site, problem in layer_problems(model, sites, text(), **how):
            cut(site, half_of(site), problem)
    assert entered and not any(entered[1:])


def test_a_gain_is_known(monkeypatch: pytest.MonkeyPatch):
    short, runs = refitted(tiny_model("granite", residual_multiplier=0.25))
    without_ends(monkeypatch)
    long, all_runs = refitted(tiny_model("granite", residual_multiplier=0.25))
    assert runs < all_runs
    assert_near(short, long)
