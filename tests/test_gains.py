"""What a reader puts out behind a norm: which families have one, and what a target in the stream is before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_obs import hidden_after, text
from tiny_models import FAMILIES, tiny_model
from torch import Tensor

import lmprune
from lmprune.sites.address import Kind
from lmprune.sites.find import find_sites
from lmprune.sites.walk import Blocks, list_of
from lmprune.solve.gains import Norm, ends_in_norm, norm_behind, residual_gain
from lmprune.solve.targets import layer_problems

BEHIND_A_NORM = ("exaone4", "gemma2", "gemma3_text", "glm4", "olmo2", "olmo3")


def opened(model: Any, kind: Kind = "neurons") -> tuple[Blocks, Any, Tensor]:
    """The second block's site, and what enters the block."""
    site = next(site for site in find_sites(model, [kind]) if site.layer == 1)
    blocks = Blocks(model, [*list_of(model, site.block)])
    return blocks, site, blocks.run(0, blocks.inputs(text(rows=2)))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_not_added_ends_in_a_norm(name: str):
    """Of every family one of the two is known, so that what the stream has drifted can be made up for in all."""
    blocks, site, states = opened(tiny_model(name))
    gain, normed = residual_gain(blocks, site, states), ends_in_norm(blocks, site, states)
    assert (normed, gain is None) == ((True, True) if name in BEHIND_A_NORM else (False, False))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "neurons") for name in BEHIND_A_NORM),
        *((name, "heads") for name in BEHIND_A_NORM if "olmo" not in name),
    ],
)
def test_the_norm_s_weights_are_found_from_outside(name: str, kind: Kind):
    model = tiny_model(name)
    norms = [m for n, m in model.named_modules() if "norm" in n.rsplit(".", 1)[-1]]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    blocks, site, states = opened(model, kind)
    found = norm_behind(lambda: blocks.run(1, states), site)
    assert found is not None
    theirs = {n: m for n, m in site.block.named_modules() if "norm" in n}
    expected = [m.weight.detach() + ("gemma" in name) for m in theirs.values() if m.weight.shape == found.shape]
    nearest = min(float((found - weight).abs().max()) for weight in expected)
    assert nearest < 1e-2, "a norm's ε is something beside what so small a model's attention puts out"


def test_what_goes_through_something_else_is_no_norm(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("gemma2")
    blocks, site, states = opened(model)
    norm = model.model.layers[1].post_feedforward_layernorm
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: plain(x).tanh() + x.roll(1, -1))
    assert norm_behind(lambda: blocks.run(1, states), site) is None and not ends_in_norm(blocks, site, states)


def test_a_target_before_the_norm_moves_what_is_behind_it_as_asked():
    """To first order, but for what goes along the output itself; tokens weigh as their error does in the stream."""
    torch.manual_seed(0)
    site = next(s for s in find_sites(tiny_model("gemma2")) if s.layer == 0)
    weight_D = torch.rand(site.reader().shape[1]) + 0.5
    weight_D[3] = 1e-9
    h_NF, drift_BTD = torch.randn(10, site.width), 1e-3 * torch.randn(2, 5, len(weight_D))
    weights, more = Norm(site, weight_D).before(h_NF, torch.ones(10), drift_BTD)
    assert weights is not None and more is not None and bool((more[..., 3] == 0).all())
    out_ND = h_NF @ site.reader().detach()

    def behind(values_ND: Tensor) -> Tensor:
        return weight_D * values_ND / values_ND.square().mean(1, keepdim=True).sqrt()

    moved_ND, unit_ND = behind(out_ND + more.flatten(0, 1)) - behind(out_ND), out_ND / out_ND.norm(dim=1, keepdim=True)
    asked_ND = drift_BTD.flatten(0, 1) / weight_D
    asked_ND[:, 3] = 0
    asked_ND -= (asked_ND * unit_ND).sum(1, keepdim=True) * unit_ND
    torch.testing.assert_close(moved_ND / weight_D, asked_ND, rtol=0.05, atol=2e-5)
    torch.testing.assert_close(weights, 1 / out_ND.square().mean(1))
    assert Norm(site, weight_D).before(h_NF, None, None) == (None, None)


@pytest.mark.parametrize("name", BEHIND_A_NORM)
@torch.no_grad()
def test_a_disturbance_is_made_up_for_behind_a_norm(name: str):
    """With a reader that meets the target, most of what can be turned by it comes back; without, nothing does."""
    left = {}
    for compensation in (0.0, 1.0):
        model = tiny_model(name)
        ffns = find_sites(model)
        input_ids = text(rows=1, length=24)
        dense = hidden_after(model, ffns, 1, input_ids)
        how = {"sequential": True, "rel_damp": 1e-5, "compensation": compensation}
        for ffn, problem in layer_problems(model, ffns, input_ids, **how):
            if ffn.layer == 0:
                ffn.set_reader(ffn.reader() + 0.02 * ffn.reader().roll(1, 0))
            if ffn.layer == 1:
                reader = problem.refit(torch.arange(ffn.width))
                ffn.set_reader(reader[: ffn.width], reader[ffn.width] if problem.pinned else None)
                break
        left[compensation] = float((hidden_after(model, ffns, 1, input_ids) - dense).norm())
    assert left[1.0] < 0.6 * left[0.0]


@pytest.mark.parametrize("name", BEHIND_A_NORM)
def test_layers_that_stay_are_refitted_behind_norms_too(name: str):
    """It was the same as `shortgpt`, and nobody said so."""
    far = {}
    for method in ("shortgpt", "obs"):
        model, dense = tiny_model(name, num_hidden_layers=4), tiny_model(name, num_hidden_layers=4)
        scores = [torch.tensor([1.0, 0.0, 1.0, 1.0])]  # the second one goes, and two are left to make up for it
        lmprune.prune(model, units=["layers"], method=method, keep=0.75, data=text(rows=16), scores=scores)
        with torch.no_grad():
            p, q = (m(text(rows=16)).logits.log_softmax(-1) for m in (dense, model))
        far[method] = float((p.exp() * (p - q)).sum(-1).mean())
    assert far["obs"] < far["shortgpt"]
