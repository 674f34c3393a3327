"""`obs` written out in plain torch: drift, token weights, ridge, metric, a brute-force order, and `lstsq`.

The model is seen through whole forward passes, never block by block, and every layer's choice and refit is computed
again from the tokens themselves. Nothing of lmprune's is used on that side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import exactly
from tiny_models import LAYERS, WIDTH, tiny_model
from torch import Tensor, nn
from torch.nn import functional

import lmprune
from lmprune.sites.find import find_sites
from lmprune.solve.obs import PLAIN, ObsSettings, obs

KEPT = 30
#: a block of granite adds so much of what its FFN puts out; that of gpt2 all of it, and its `down` has a bias
GAINS = {"granite": 0.25, "gpt2": 1.0}
#: 0.5 of the drift, a ridge of 0.2 · E[x²] a neuron
COMPENSATION, RIDGE = 0.5, 0.2


def fresh(name: str) -> Any:
    changes = {"residual_multiplier": 0.25} if name == "granite" else {}
    return tiny_model(name, **changes).double()


def text(rows: int = 6, length: int = 20) -> Tensor:
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(3))


# -- written out


def blocks_of(model: Any) -> Sequence[Any]:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def down_of(model: Any, layer: int) -> Any:
    mlp = blocks_of(model)[layer].mlp
    return mlp.c_proj if hasattr(mlp, "c_proj") else mlp.down_proj


def reader_of(model: Any, layer: int) -> Tensor:
    """(F, D), with the bias, where there is one, as a last row."""
    down = down_of(model, layer)
    rows = down.weight if hasattr(down, "nf") else down.weight.T
    return (rows if down.bias is None else torch.cat([rows, down.bias[None]])).detach().clone()


def write_reader(model: Any, layer: int, kept: list[int], reader: Tensor) -> None:
    """All other neurons' columns become 0, which is their removal."""
    down = down_of(model, layer)
    rows = torch.zeros(WIDTH, reader.shape[1])
    rows[kept] = reader[: len(kept)]
    down.weight.data = rows if hasattr(down, "nf") else rows.T.contiguous()
    if down.bias is not None:
        down.bias.data = reader[-1].clone()


@torch.no_grad()
def seen(model: Any, layer: int, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of all tokens: what enters `down` (N, F), with a 1 for its bias, and the stream after the block (N, D)."""
    found: dict[str, Tensor] = {}

    def enters(_down: Any, args: tuple[Tensor, ...]) -> None:
        found["x"] = args[0].flatten(0, -2)

    def leaves(_block: Any, _args: Any, out: Any) -> None:
        found["after"] = (out[0] if isinstance(out, tuple) else out).flatten(0, -2)

    handles = [
        down_of(model, layer).register_forward_pre_hook(enters),
        blocks_of(model)[layer].register_forward_hook(leaves),
    ]
    model(input_ids)
    for handle in handles:
        handle.remove()
    if down_of(model, layer).bias is not None:
        found["x"] = torch.cat([found["x"], torch.ones(len(found["x"]), 1)], dim=1)
    return found["x"], found["after"]


def curvature(model: Any, layer: int, input_ids: Tensor) -> Tensor:
    """Mean over sequences of median ‖g‖² times the mean of ĝ ĝᵀ, g the gradient of a sequence's summed losses where
    `down` puts out; and a thousandth of its mean diagonal on top."""
    total = 0.0
    for ids in input_ids:
        outs: list[Tensor] = []
        handle = down_of(model, layer).register_forward_hook(lambda _m, _a, out, outs=outs: outs.append(out))
        logits = model(ids[None]).logits[0, :-1]
        handle.remove()
        (grad,) = torch.autograd.grad(functional.cross_entropy(logits, ids[1:], reduction="sum"), outs[0])
        grad = grad.flatten(0, -2)[:-1]
        sizes = grad.norm(dim=1)
        unit = grad / sizes[:, None]
        total = total + sizes.square().median() * unit.T @ unit / len(unit) / len(input_ids)
    assert isinstance(total, Tensor)
    return total + 1e-3 * total.diagonal().mean() * torch.eye(len(total))


def error_left(gram: Tensor, cross: Tensor, kept: list[int], metric: Tensor) -> Tensor:
    """Half the squared error of the best reader on the neurons `kept`, less a constant."""
    best = torch.linalg.solve(gram[kept][:, kept], cross[kept])
    return -0.5 * torch.trace(best.T @ cross[kept] @ metric)


def greedy(gram: Tensor, cross: Tensor, until: int, metric: Tensor) -> tuple[list[int], list[float]]:
    """The neurons that are left when at each step the one goes whose loss costs least, all others refitted; and what
    the error was after each step. Rows beyond the neurons (a bias) stay."""
    left, bias, errors = list(range(WIDTH)), list(range(WIDTH, len(gram))), []
    while len(left) > until:
        rests = [[k for k in left if k != j] for j in left]
        costs = [float(error_left(gram, cross, rest + bias, metric)) for rest in rests]
        left = rests[costs.index(min(costs))]
        errors.append(min(costs))
    return left, errors


def prune_written_out(name: str, input_ids: Tensor, widths: Sequence[int]) -> tuple[Any, list[list[int]]]:
    """The pruned model (removed neurons still there, unread), and each layer's neurons."""
    dense, pruned, chosen = fresh(name), fresh(name), []
    for layer in range(LAYERS):
        x, after = seen(pruned, layer, input_ids)
        _, wanted = seen(dense, layer, input_ids)
        reader = reader_of(dense, layer)
        target = x @ reader + COMPENSATION * (wanted - after) / GAINS[name]
        weights = 1 / wanted.square().mean(1)
        weights = weights / weights.sum()
        ridge = RIDGE * (weights[:, None] * x.square()).sum(0)
        ridge[WIDTH:] = 0
        gram = x.T @ (weights[:, None] * x) + ridge.diag()
        cross = x.T @ (weights[:, None] * target) + ridge[:, None] * reader
        kept, _ = greedy(gram, cross, widths[layer], curvature(dense, layer, input_ids))
        rows = [*kept, *range(WIDTH, x.shape[1])]
        observed = weights.sqrt()[:, None]
        a = torch.cat([observed * x[:, rows], ridge[rows].sqrt().diag()])
        b = torch.cat([observed * target, ridge[rows].sqrt()[:, None] * reader[rows]])
        write_reader(pruned, layer, kept, torch.linalg.lstsq(a, b).solution)
        chosen.append(kept)
    return pruned, chosen


# -- lmprune's


@pytest.mark.parametrize("name", GAINS)
def test_obs_is_the_problem_written_out(name: str):
    with exactly():
        expected, chosen = prune_written_out(name, text(), [KEPT] * LAYERS)
        model = fresh(name)
        kept = obs(model, find_sites(model), text(), KEPT / WIDTH)
        assert [k.tolist() for k in kept] == chosen
        for layer in range(LAYERS):
            rows = [*chosen[layer], *range(WIDTH, len(reader_of(expected, layer)))]
            torch.testing.assert_close(
                reader_of(model, layer), reader_of(expected, layer)[rows], rtol=1e-4, atol=1e-6
            )  # fmt: skip
        torch.testing.assert_close(model(text()).logits, expected(text()).logits, rtol=1e-4, atol=1e-5)


def test_each_part_of_the_problem_shows():
    """Control: another share of the drift, gain, ridge, weight of tokens, or metric is another model."""
    with exactly():
        model = fresh("granite")
        obs(model, find_sites(model), text(), KEPT / WIDTH)
        logits = model(text()).logits
        ours = ObsSettings()
        for settings in (
            replace(ours, compensation=COMPENSATION * GAINS["granite"]),  # as if the gain were left out
            replace(ours, rel_damp=RIDGE / 10),
            replace(ours, per_neuron=False),
            replace(ours, end_loss=False),
            replace(ours, sequential=False),
            replace(ours, gradient_tokens=20),  # of one sequence only
        ):
            other = fresh("granite")
            obs(other, find_sites(other), text(), KEPT / WIDTH, settings=settings)
            assert (other(text()).logits - logits).abs().max() > 1e-3, settings


@pytest.mark.parametrize("name", GAINS)
def test_under_global_scope_the_cheapest_removals_of_a_dense_pass_decide_the_widths(name: str):
    with exactly():
        dense, rises = fresh(name), []
        for layer in range(LAYERS):
            x, _ = seen(dense, layer, text())
            reader = reader_of(dense, layer)
            moment = x.T @ x / len(x)  # of the dense pass: every token weighs 1, and there is no drift
            ridge = RIDGE * moment.diagonal()
            ridge[WIDTH:] = 0
            gram, cross = moment + ridge.diag(), moment @ reader + ridge[:, None] * reader
            metric = curvature(dense, layer, text())
            rows = list(range(len(gram)))
            _, errors = greedy(gram, cross, 1, metric)
            steps = torch.tensor([float(error_left(gram, cross, rows, metric)), *errors]).diff()
            rises += [(float(rise), layer) for rise in steps.cummax(0).values]
        gone = [layer for _, layer in sorted(rises)[: LAYERS * (WIDTH - KEPT)]]
        widths = [WIDTH - gone.count(layer) for layer in range(LAYERS)]
        assert len(set(widths)) > 1
        expected, chosen = prune_written_out(name, text(), widths)
        model = fresh(name)
        kept = obs(model, find_sites(model), text(), KEPT / WIDTH, scope="global")
        assert [k.tolist() for k in kept] == chosen
        torch.testing.assert_close(model(text()).logits, expected(text()).logits, rtol=1e-4, atol=1e-5)


def test_plain_obs_is_one_dense_pass_with_a_ridge_of_a_thousandth():
    """As ZipLM and OSSCAR have it: the dense model's outputs, all directions alike, one ridge for all neurons."""
    with exactly():
        dense, model = fresh("gpt2"), fresh("gpt2")
        kept = obs(model, find_sites(model), text(), KEPT / WIDTH, settings=PLAIN)
        for layer in range(LAYERS):
            x, _ = seen(dense, layer, text())
            reader = reader_of(dense, layer)
            moment = x.T @ x / len(x)
            ridge = torch.full((WIDTH + 1,), 1e-3 * float(moment.diagonal()[:WIDTH].mean()))
            ridge[WIDTH] = 0
            gram, cross = moment + ridge.diag(), moment @ reader + ridge[:, None] * reader
            expected, _ = greedy(gram, cross, KEPT, torch.eye(reader.shape[1]))
            assert kept[layer].tolist() == expected
            rows = [*expected, WIDTH]
            a = torch.cat([x[:, rows] / len(x) ** 0.5, ridge[rows].sqrt().diag()])
            b = torch.cat([x @ reader / len(x) ** 0.5, ridge[rows].sqrt()[:, None] * reader[rows]])
            refitted = torch.linalg.lstsq(a, b).solution
            torch.testing.assert_close(reader_of(model, layer), refitted, rtol=1e-4, atol=1e-6)


# -- criteria that read the loss's gradient


def first_order(model: Any, input_ids: Tensor, method: str) -> list[Tensor]:
    """Scores from autograd's own gradients, sequence after sequence."""
    layers = range(LAYERS)
    scores, summed = [torch.zeros(WIDTH) for _ in layers], [[] for _ in layers]
    for ids in input_ids:
        entering: list[Tensor] = []
        hook = lambda _m, args, entering=entering: entering.append(args[0])  # noqa: E731
        handles = [down_of(model, layer).register_forward_pre_hook(hook) for layer in layers]
        loss = functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:])
        for handle in handles:
            handle.remove()
        parameters: list[list[nn.Parameter]] = []
        for block in blocks_of(model):
            parameters.append([block.mlp.c_fc.weight, block.mlp.c_proj.weight, block.mlp.c_fc.bias])
        flat = [p for ours in parameters for p in ours]
        grads = list(torch.autograd.grad(loss, [*entering, *flat]))
        for layer in layers:
            up, down, bias = (p * g for p, g in zip(parameters[layer], grads[LAYERS + 3 * layer :][:3], strict=True))
            if method == "taylor":
                scores[layer] += (entering[layer] * grads[layer]).flatten(0, -2).sum(0).abs() / len(input_ids)
            if method == "sensitivity":
                scores[layer] += (up.sum(0) + down.sum(1) + bias).abs() / len(input_ids)
            summed[layer].append((up, down))
    if method == "llm_pruner":
        for layer in layers:
            up, down = (torch.stack(each).sum(0) for each in zip(*summed[layer], strict=True))
            scores[layer] = up.abs().sum(0) + down.abs().sum(1)
    return [s.detach() for s in scores]


@pytest.mark.parametrize("method", ["taylor", "sensitivity", "llm_pruner"])
def test_gradients_of_all_sequences_choose_the_neurons(method: str):
    with exactly():
        model = fresh("gpt2")
        expected, few = (first_order(model, ids, method) for ids in (text(), text()[:1]))
        plan = lmprune.prune(model, method=method, data=text(), keep=0.5, multiple_of=1)
    best, others = ([s.argsort()[WIDTH // 2 :].sort().values.tolist() for s in each] for each in (expected, few))
    assert [kept.tolist() for kept in plan.indices()] == best
    assert best != others, "control: one sequence alone chooses others"
