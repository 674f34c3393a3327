"""Every statistic against a reference written the long way, with autograd's own weight gradients, in fp64."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from arithmetic import tolerance
from tiny_models import LAYERS, NAMES, WIDTH, tiny_model, tokens
from torch import nn

from lmprune.errors import UserError
from lmprune.scores.passes import loss_gradient
from lmprune.scores.statistics import FORWARD, GRADIENT, collect
from lmprune.sites.find import find_sites
from lmprune.sites.masks import masked

SEQ_LEN, NUM_SEQUENCES = 11, 5
KINDS = ["llama", "gpt2", "phi3", "opt"]  # gated with biases; Conv1D; fused gate; biases and no mlp module


def tiny(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return tiny_model(name).to(torch.float32 if name == "xglm" else dtype)  # xglm's own mask code fails in fp64


def ids_of(num_sequences: int = NUM_SEQUENCES) -> torch.Tensor:
    return tokens(num_sequences, SEQ_LEN)


def sequence_loss(model: nn.Module, ids_T: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(ids_T[None]).logits[0, :-1], ids_T[1:])


def neuron_gradients(ffn) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(weights, gradients) neuron-major, then of the writers' biases, from `.grad`, through a copy that holds it."""
    shadow = copy.deepcopy(ffn)
    for linear, own in zip(shadow.linears, ffn.linears, strict=True):
        for parameter, mine in zip(linear.parameters(), own.parameters(), strict=True):
            parameter.data = mine.grad.clone()
    parts = [*ffn.writers(), ffn.reader(), *ffn.writer_biases()]
    grads = [*shadow.writers(), shadow.reader(), *shadow.writer_biases()]
    return [p.detach() for p in parts], [g.detach() for g in grads]


def reference(model: nn.Module, input_ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """One sequence after the other, `h` made a leaf-like tensor by retain_grad, weights differentiated by autograd."""
    ffns = find_sites(model)
    sums = [dict.fromkeys(FORWARD | GRADIENT, 0.0) for _ in ffns]
    weight_sums: list[list[torch.Tensor]] = [[] for _ in ffns]
    for ids_T in input_ids:
        seen: dict[int, torch.Tensor] = {}

        def hook(layer, seen=seen):
            def remember(_module, args):
                args[0].retain_grad()
                seen[layer] = args[0]

            return remember

        handles = [ffn.reader_linear.register_forward_pre_hook(hook(layer)) for layer, ffn in enumerate(ffns)]
        model.zero_grad()
        sequence_loss(model, ids_T).backward()
        for handle in handles:
            handle.remove()
        for layer, ffn in enumerate(ffns):
            h = seen[layer].detach().reshape(SEQ_LEN, -1)
            g = seen[layer].grad.reshape(SEQ_LEN, -1)
            weights, grads = neuron_gradients(ffn)
            theta = sum((w * d).reshape(ffn.width, -1).sum(1) for w, d in zip(weights, grads, strict=True))
            one = {
                "sum_h": h.sum(0),
                "sum_h2": (h**2).sum(0),
                "mean_abs_sq": h.abs().mean(0) ** 2,
                "norm_per_sequence": h.norm(dim=0),
                "taylor": (h * g).sum(0).abs(),
                "fisher": ((h * g) ** 2).sum(0),
                "sensitivity": theta.abs(),
            }
            for name, value in one.items():
                sums[layer][name] = sums[layer][name] + value
            matrices = [w for w in grads if w.ndim == 2]
            before = weight_sums[layer] or [torch.zeros_like(w) for w in matrices]
            weight_sums[layer] = [a + b for a, b in zip(before, matrices, strict=True)]
    for layer, ffn in enumerate(ffns):
        weights = [*ffn.writers(), ffn.reader()]
        sums[layer]["weight_taylor"] = sum(
            (w.detach() * g).abs().sum(1) for w, g in zip(weights, weight_sums[layer], strict=True)
        )
    return sums


def check_against_reference(name: str, batch_size: int) -> None:
    model, ids = tiny(name), ids_of()
    expected = reference(model, ids)
    got = collect(model, find_sites(model), ids, needs=FORWARD | GRADIENT, batch_size=batch_size)
    assert len(got) == len(expected) == LAYERS
    apart = tolerance(model, ids[:1])
    for stats, sums in zip(got, expected, strict=True):
        assert (stats.num_sequences, stats.num_tokens) == (NUM_SEQUENCES, NUM_SEQUENCES * SEQ_LEN)
        for field, value in sums.items():
            scale = value.abs().max().item()
            assert scale > 1e-9, f"{field} of the reference says nothing"
            diff = (stats.total(field) - value).abs().max().item()
            assert diff <= apart * scale, f"{field} is off by {diff} of {scale}"


@pytest.mark.parametrize("name", NAMES)
def test_every_statistic_equals_the_long_way_in_every_family(name):
    check_against_reference(name, batch_size=2)


def test_the_tolerance_follows_from_the_arithmetic():
    """Float64 throughout in gpt2; norms in float32 in llama, the products of attention in gptj: see `arithmetic`."""
    exact, norms, products = (tolerance(tiny(name), ids_of()) for name in ("gpt2", "llama", "gptj"))
    assert exact < 1e-12 and 1e-5 < norms == products < 1e-3
    assert tolerance(tiny("gpt2", torch.float32), ids_of()) == norms


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("name", KINDS)
def test_the_batch_size_does_not_matter(name, batch_size):
    check_against_reference(name, batch_size)


@pytest.mark.parametrize("name", KINDS)
def test_forward_only_and_single_statistics_agree_with_all_together(name):
    model, ids = tiny(name), ids_of()
    ffns = find_sites(model)
    together = collect(model, ffns, ids, needs=FORWARD | GRADIENT)
    for field in sorted(FORWARD | GRADIENT):
        for alone, stats in zip(collect(model, ffns, ids, needs=frozenset({field})), together, strict=True):
            torch.testing.assert_close(alone.total(field), stats.total(field), rtol=1e-10, atol=1e-16)
            assert [f for f in FORWARD | GRADIENT if getattr(alone, f) is not None] == [field]


def test_loss_gradient_is_autograds():
    logits = torch.randn(3, 7, 13, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 13, (3, 7))
    sum(F.cross_entropy(logits[b, :-1], ids[b, 1:]) for b in range(3)).backward()
    torch.testing.assert_close(loss_gradient(logits.detach(), ids), logits.grad)


@pytest.mark.parametrize("name", KINDS)
def test_taylor_is_the_first_order_of_masking_a_neuron(name):
    model, ids = tiny(name), ids_of(1)
    ffns = find_sites(model)
    stats = collect(model, ffns, ids, needs=frozenset({"taylor"}))
    step = 3e-3  # Llama's norms compute in fp32 whatever the dtype
    for layer in (0, LAYERS - 1):
        neuron, losses = stats[layer].total("taylor").argsort()[-5], []
        for sign in (1, -1):
            masks = [torch.ones(ffn.width, dtype=torch.float64) for ffn in ffns]
            masks[layer][neuron] += sign * step
            with torch.no_grad(), masked(ffns, masks):
                losses.append(sequence_loss(model, ids[0]))
        slope = (losses[0] - losses[1]).abs() / (2 * step)
        assert slope > 1e-4
        torch.testing.assert_close(stats[layer].total("taylor")[neuron], slope, rtol=2e-3, atol=0)


def test_a_masked_neuron_counts_as_masked():
    model, ids = tiny("llama"), ids_of()
    ffns = find_sites(model)
    masks = [torch.ones(ffn.width) for ffn in ffns]
    masks[1][5] = 0
    with masked(ffns, masks):
        stats = collect(model, ffns, ids, needs=frozenset({"sum_h2", "taylor"}))[1]
    for name in ("sum_h2", "taylor"):
        assert stats.total(name).eq(0).nonzero().flatten().tolist() == [5]


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model, ids = tiny("llama", torch.float32), ids_of()
    model.train()
    model.model.layers[0].eval()
    frozen = model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    sequence_loss(model, ids[0]).backward()
    before = {n: (p.requires_grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()}
    modes = {n: m.training for n, m in model.named_modules()}

    def stop(done, total):
        assert hooks_of(model) > 0 and not model.training and not model.lm_head.weight.requires_grad
        if fails:
            raise KeyboardInterrupt

    try:
        collect(model, find_sites(model), ids, needs=FORWARD | GRADIENT, progress=stop)
        assert not fails
    except KeyboardInterrupt:
        assert fails
    assert hooks_of(model) == 0 and not frozen.requires_grad and torch.is_grad_enabled()
    assert {n: m.training for n, m in model.named_modules()} == modes
    for name, parameter in model.named_parameters():
        requires_grad, grad = before[name]
        assert parameter.requires_grad == requires_grad
        assert (parameter.grad is None and grad is None) or torch.equal(parameter.grad, grad)


def test_works_under_no_grad_and_reports_progress():
    model, ids, seen = tiny("gpt2"), ids_of(), []
    with torch.no_grad():
        stats = collect(
            model,
            find_sites(model),
            ids,
            needs=frozenset({"taylor"}),
            batch_size=2,
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen == [(2, 5), (4, 5), (5, 5)] and stats[0].total("taylor").min() > 0


def test_activations_are_freed_after_each_batch():
    model, ids, alive = tiny("llama"), ids_of(), []
    mlp = model.model.layers[0].mlp
    for linear in (mlp.up_proj, mlp.gate_proj, mlp.down_proj):
        linear.register_forward_hook(lambda m, args, out: alive.extend([weakref.ref(args[0]), weakref.ref(out)]))
    gc.disable()  # reference counts alone must do it: a cycle through a tensor hook would keep every batch
    try:
        collect(model, find_sites(model), ids, needs=FORWARD | GRADIENT, batch_size=1)
        assert len(alive) == 5 * 6 and not any(ref() is not None for ref in alive)
    finally:
        gc.enable()


def test_bf16_sums_do_not_stall():
    """A running sum in bf16 stops growing near 256 × its terms; the exact mean of the bf16 values must come out."""
    model, ids = tiny("llama", torch.bfloat16), ids_of(120)
    seen = []
    handle = find_sites(model)[0].reader_linear.register_forward_pre_hook(lambda m, args: seen.append(args[0].double()))
    stats = collect(model, find_sites(model), ids, needs=frozenset({"sum_h", "sum_h2"}), batch_size=2)[0]
    handle.remove()
    h_NF = torch.cat([h.flatten(0, 1) for h in seen])
    torch.testing.assert_close(stats.per_token("sum_h2"), h_NF.square().mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(stats.variance(), h_NF.var(0, correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("needs", ["sum_h2", "fisher"])
def test_nan_names_the_layer(needs):
    model = tiny("llama")
    with torch.no_grad():
        find_sites(model)[1].writers()[0][3] = float("nan")
    with pytest.raises(UserError, match=f"layer 1.*NaN.*{needs}" if needs == "sum_h2" else "layer 0.*NaN.*fisher"):
        collect(model, find_sites(model), ids_of(), needs=frozenset({needs}))


def test_too_little_text_and_a_reader_that_is_not_called_are_errors():
    model = tiny("llama")
    ffns = find_sites(model)
    for ids, needs in [(ids_of()[:0], "sum_h"), (ids_of()[:, :1], "taylor"), (ids_of()[0], "sum_h")]:
        with pytest.raises(UserError, match="too few"):
            collect(model, ffns, ids, needs=frozenset({needs}))
    ffns[1].reader_linear = nn.Linear(WIDTH, 32)  # stands apart from the model
    with pytest.raises(UserError, match=r"layer 1.*did not see"):
        collect(model, ffns, ids_of(), needs=frozenset({"sum_h"}))


def test_a_model_that_changes_its_embeddings_in_place_can_be_read_backwards():
    def doubled(_block: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        args[0].mul_(2)

    model = tiny_model("llama")
    model.model.layers[0].register_forward_pre_hook(doubled)
    (found, *_) = collect(model, find_sites(model), ids_of(), needs=frozenset({"taylor"}))
    assert found.total("taylor").gt(0).all()
