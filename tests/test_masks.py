"""Masks on a model in training: what they compute, what gradient scores get, and that they come off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from tiny_models import NAMES, WIDTH, logits, tiny_model, tokens

import lmprune
from lmprune.errors import UserError
from lmprune.gradual import GradualPruner
from lmprune.sites.find import find_sites
from lmprune.sites.masks import ATTRIBUTE, COMPUTES, UnitMasks, masked

KEPT = [torch.tensor(k) for k in ([0, 1, 5, 17, 40], [*range(0, WIDTH, 2)], [3])]


def on(model: Any, compute: Any = "gathered", *, learned: bool = True) -> UnitMasks:
    return UnitMasks(model, find_sites(model), learned=learned, compute=compute)


def zero_one(kept: torch.Tensor, width: int = WIDTH) -> torch.Tensor:
    mask = torch.zeros(width)
    mask[kept] = 1
    return mask


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_to_compute_are_the_mask_at_the_seam_and_the_cut(name: str):
    model = tiny_model(name)
    ffns = find_sites(model)
    with masked(ffns, [zero_one(k, ffn.width) for k, ffn in zip(KEPT, ffns, strict=True)]):
        expected = logits(model)
    wrong = [torch.tensor([0, 1, 5, 17, 41]), *KEPT[1:]]
    for compute in COMPUTES:
        masks = on(model, compute)
        masks.set(KEPT)
        assert torch.allclose(logits(model), expected, atol=1e-5), compute
        masks.set(wrong)
        assert not torch.allclose(logits(model), expected, atol=1e-5)  # the control: one other neuron shows
        masks.detach()
    for ffn, kept in zip(find_sites(model), KEPT, strict=True):
        ffn.keep(kept)
    assert torch.allclose(logits(model), expected, atol=1e-5)


def test_detached_masks_leave_nothing_behind():
    model = tiny_model("gpt2")
    before, names = logits(model), set(dict(model.named_parameters()))
    masks = on(model)
    masks.set(KEPT)
    assert set(dict(model.named_parameters())) - names == {f"{ATTRIBUTE}.{i}.scores" for i in range(3)}
    masks.detach()
    assert set(dict(model.named_parameters())) == names and not hasattr(model, ATTRIBUTE)
    assert torch.equal(logits(model), before)
    assert all("forward" not in m.__dict__ for m in model.modules())


def loss_of(model: Any) -> torch.Tensor:
    """In the model's own precision; transformers' loss is always fp32."""
    predicted = model(tokens()).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(predicted, tokens()[:, 1:].flatten())


def score_gradients(model: Any, masks: UnitMasks) -> list[torch.Tensor]:
    model.train()
    model.zero_grad()
    loss_of(model).backward()
    grads = [s.grad for s in masks.scores]
    assert all(g is not None for g in grads)
    return [g.clone() for g in grads if g is not None]


def numeric(model: Any, layer: int, neuron: int, at: float, eps: float = 1e-2) -> float:
    """dL/dm of a multiplier m on one neuron's output, by central difference around `at`."""
    losses = []
    for m in (at + eps, at - eps):
        masks = [zero_one(k) for k in KEPT]
        masks[layer][neuron] = m
        with masked(find_sites(model), masks), torch.no_grad():
            losses.append(float(loss_of(model)))
    return (losses[0] - losses[1]) / (2 * eps)


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3"])
@pytest.mark.parametrize("compute", COMPUTES)
def test_scores_get_the_gradient_of_a_multiplier_at_the_seam(name: str, compute: Any):
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if name == "gpt2" else {}
    model = tiny_model(name, **no_dropout).double()
    masks = on(model, compute)
    masks.set(KEPT)
    grads = score_gradients(model, masks)
    masks.detach()
    model.eval()
    for layer, neuron in [(0, 5), (1, 2), (2, 3)]:
        assert float(grads[layer][neuron]) == pytest.approx(numeric(model, layer, neuron, 1.0), rel=1e-2, abs=1e-6)
    for layer, neuron in [(0, 2), (1, 3), (2, 7)]:  # masked
        expected = numeric(model, layer, neuron, 0.0) if compute == "full" else 0.0
        assert float(grads[layer][neuron]) == pytest.approx(expected, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("compute", COMPUTES)
def test_weights_get_the_gradient_of_the_cut_model(compute: Any):
    model = tiny_model("llama")
    masks = on(model, compute)
    masks.set(KEPT)
    score_gradients(model, masks)
    whole = [[w.weight.grad for w in f.writer_linears] for f in find_sites(model)]
    readers = [f.reader_linear.weight.grad for f in find_sites(model)]  # type: ignore[union-attr]
    cut = tiny_model("llama")
    for ffn, kept in zip(find_sites(cut), KEPT, strict=True):
        ffn.keep(kept)
    cut.train()
    loss_of(cut).backward()
    for i, (ffn, kept) in enumerate(zip(find_sites(cut), KEPT, strict=True)):
        gone = zero_one(kept) == 0
        for linear, grad in zip(ffn.writer_linears, whole[i], strict=True):
            assert torch.allclose(linear.weight.grad, grad[kept], atol=1e-6)  # type: ignore[union-attr,index]
            assert not grad[gone].any()  # type: ignore[index]
        assert torch.allclose(ffn.reader_linear.weight.grad, readers[i][:, kept], atol=1e-6)  # type: ignore[union-attr,index,arg-type]


def test_gathering_is_really_less_work():
    model = tiny_model("llama")
    masks = on(model)
    widths: list[int] = []
    find_sites(model)[0].reader_linear.register_forward_pre_hook(lambda _m, args: widths.append(args[0].shape[-1]))
    logits(model)
    masks.set(KEPT)
    logits(model)
    assert widths == [WIDTH, 5]


def test_scores_are_trained_by_whoever_trains_the_model():
    model = tiny_model("gpt_neo")
    masks = on(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    score_gradients(model, masks)
    optimizer.step()
    assert all(s.detach().abs().sum() > 0 for s in masks.scores)


def test_off_takes_them_off_for_a_while():
    model = tiny_model("llama")
    before = logits(model)
    masks = on(model)
    masks.set(KEPT)
    with masks.off():
        assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(model), before)
    assert masks.keep == pytest.approx((5 + 24 + 1) / (3 * WIDTH))


def test_what_can_not_be_gathered_is_refused():
    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear):
            super().__init__()
            self.inner = inner
            self.weight, self.bias = inner.weight, inner.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    model = tiny_model("llama")
    ffn = find_sites(model)[0]
    ffn.reader_linear = Wrapped(ffn.reader_linear)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a Wrapped can't be gathered; use --compute full"):
        ffn.compute_only(torch.tensor([0, 1]))


def test_weights_that_are_offloaded_are_not_pruned():
    model = tiny_model("llama")
    plan = lmprune.prune(tiny_model("llama"), method="magnitude", keep=0.5, multiple_of=8)
    cpu_offload(model, execution_device=torch.device("cpu"))
    before = logits(model)
    for attempt in (
        lambda: lmprune.prune(model, method="magnitude", keep=0.5, multiple_of=8),
        lambda: lmprune.shrink(model, plan),
        lambda: GradualPruner(model, method="gum", keep=0.5, num_steps=20),
    ):
        with pytest.raises(UserError, match=r"the weights of model\.embed_tokens are offloaded"):
            attempt()
    assert torch.equal(logits(model), before)


class Counting(ModelHook):
    """Notes every call of the layer that it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_hooks_on_the_layers_fire_before_under_and_after_masks(name: str, compute: Any):
    model = tiny_model(name)
    hooks = [Counting() for ffn in find_sites(model) for _ in ffn.linears]
    linears = [linear for ffn in find_sites(model) for linear in ffn.linears]
    for linear, hook in zip(linears, hooks, strict=True):
        add_hook_to_module(linear, hook)
    before, found = logits(model), [dict(linear.__dict__) for linear in linears]
    masks = on(model, compute)
    masks.set(KEPT)
    under = logits(model)
    masks.detach()
    assert torch.equal(logits(model), before) and not torch.allclose(under, before)
    assert [hook.calls for hook in hooks] == [3] * len(hooks)
    assert all(linear.__dict__["forward"] is was["forward"] for linear, was in zip(linears, found, strict=True))
    bare = tiny_model(name)  # the control: under the masks the hooked model computes what the one without hooks does
    on(bare, compute).set(KEPT)
    assert torch.equal(logits(bare), under)


def test_hooks_that_come_or_go_while_masks_are_on_are_left_as_they_are():
    model = tiny_model("llama")
    came, went = (ffn.reader_linear for ffn in find_sites(model)[:2])
    before = logits(model)
    add_hook_to_module(went, Counting())
    masks = on(model)
    masks.set(KEPT)
    hook = Counting()
    add_hook_to_module(came, hook)
    remove_hook_from_module(went)
    under = logits(model)
    masks.detach()
    assert torch.equal(logits(model), before) and not torch.allclose(under, before)
    assert hook.calls == 2 and "forward" not in went.__dict__


@pytest.mark.parametrize("compute", COMPUTES)
def test_an_offloaded_model_stays_offloaded(compute: Any):
    model = tiny_model("llama")
    before = logits(model)
    on(model, compute).set(KEPT)
    under = logits(model)
    model.neuron_masks.detach()
    cpu_offload(model, execution_device=torch.device("cpu"))
    masks = on(model, compute, learned=False)
    masks.set(KEPT)
    assert torch.equal(logits(model), under)
    masks.detach()
    assert torch.equal(logits(model), before)
    assert all(p.is_meta for p in model.parameters())


def test_a_forward_that_somebody_put_into_a_layer_is_kept_and_not_gathered():
    model = tiny_model("llama")
    down = find_sites(model)[1].reader_linear
    down.forward = own = lambda x: torch.nn.functional.linear(x, down.weight, down.bias) + 1  # type: ignore[assignment]
    before = logits(model)
    masks = on(model, "full")
    masks.set(KEPT)
    masks.detach()
    assert down.forward is own and torch.equal(logits(model), before)
    with pytest.raises(
        UserError, match="layer 1: the forward that was put into a Linear can't be gathered; use --comp"
    ):
        on(model).set(KEPT)
