"""`obs` on whole models: exact where it can be, sequential where it says so, in every family."""

from __future__ import annotations

import weakref

import pytest
import torch
from in_parts import few
from tiny_models import NAMES, logits, tiny_model
from torch import nn

from lmprune.budget.selection import num_kept, select
from lmprune.scores.curvature import output_curvature
from lmprune.sites.find import find_sites
from lmprune.sites.walk import Blocks
from lmprune.solve.elimination import LeastSquares
from lmprune.solve.ends import residual_gain
from lmprune.solve.moments import Moments
from lmprune.solve.obs import PLAIN, ObsSettings, obs, obs_refit, obs_to_counts
from lmprune.solve.targets import layer_problems


def text(rows: int = 16, length: int = 32, seed: int = 3) -> torch.Tensor:
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", [ObsSettings(), PLAIN])
@pytest.mark.parametrize("name", few(NAMES))
def test_keeping_all_leaves_every_weight_as_it_is(name: str, settings: ObsSettings):
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    obs(model, find_sites(model), text(), 1.0, settings=settings)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("settings", "touched"), [(ObsSettings(), [1, 2]), (ObsSettings(compensation=0), [1]), (PLAIN, [1])]
)
def test_a_whole_layer_changes_only_to_make_up_for_what_was_cut_before_it(settings: ObsSettings, touched: list[int]):
    model, before = tiny_model("llama"), find_sites(tiny_model("llama"))
    ffns = find_sites(model)
    obs_to_counts(model, ffns, text(), [48, 24, 48], settings=settings)
    assert [
        ffn.layer for ffn, old in zip(ffns, before, strict=True) if not torch.equal(ffn.reader(), old.reader())
    ] == touched


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", few(NAMES))
def test_counts_are_exact(name: str, scope):
    model = tiny_model(name)
    ffns = find_sites(model)
    before = [ffn.width for ffn in ffns]
    kept = obs(model, ffns, text(), 0.4, scope=scope)
    widths = [len(indices) for indices in kept]
    assert [ffn.width for ffn in ffns] == widths
    if scope == "local":
        assert widths == [num_kept(width, 0.4) for width in before]
    else:
        assert sum(widths) == num_kept(sum(before), 0.4) and min(widths) >= 1
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "phi", "gemma2", "gpt_neox-parallel"])
def test_redundant_neurons_go_without_a_trace(name: str):
    """Every second neuron is a copy of its neighbour: half of the neurons carry all there is."""
    model = tiny_model(name)
    ffns = find_sites(model)
    with torch.no_grad():
        for ffn in ffns:
            for rows in (*ffn.writers(), *ffn.writer_biases()):
                rows[1::2] = rows[0::2]
    before = logits(model)
    kept = obs(model, ffns, text(rows=32), 0.5, settings=ObsSettings(rel_damp=1e-9))
    assert all(len({int(j) // 2 for j in indices}) == 24 for indices in kept)
    torch.testing.assert_close(logits(model), before, rtol=1e-2, atol=1e-2 * float(before.std()))


def test_redundant_neurons_by_weight_norm_leave_a_trace():
    """Control for the test above: the same cut without a refit changes the logits."""
    model = tiny_model("llama")
    ffns = find_sites(model)
    before = logits(model)
    for ffn, kept in zip(ffns, select([f.reader().norm(dim=1) for f in ffns], 0.5, scope="local"), strict=True):
        ffn.keep(kept)
    assert not torch.allclose(logits(model), before, rtol=1e-2, atol=1e-2 * float(before.std()))


@torch.no_grad()
def test_sequential_reads_what_the_pruned_blocks_put_out():
    """The last layer's moments are those of the model whose earlier layers are cut; in a dense pass they are not."""
    input_ids = text()
    for sequential in (True, False):
        model = tiny_model("gpt2")
        ffns = find_sites(model)
        problems = layer_problems(model, ffns, input_ids, sequential=sequential, rel_damp=0.0)
        for ffn, problem in problems:
            if ffn.layer == 2:
                moment = problem.gram_FF
                break
            ffn.keep(torch.arange(0, 48, 3))
        if not sequential:
            model = tiny_model("gpt2")
            ffns = find_sites(model)
        seen: list[torch.Tensor] = []
        ffns[2].reader_linear.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0].flatten(0, -2)))
        model(input_ids)
        h_NF = torch.cat([seen[0], torch.ones(len(seen[0]), 1)], dim=1).double()
        torch.testing.assert_close(moment, h_NF.T @ h_NF / len(h_NF), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_moments_of_a_wide_layer_are_added_up_in_panels():
    site = find_sites(tiny_model("llama", intermediate_size=700))[0]
    draw = torch.Generator().manual_seed(0)
    h_NF, weights_N = torch.randn(2000, 700, generator=draw), torch.rand(2000, generator=draw)
    moments = Moments(site)
    for h, weights in zip(h_NF.split(900), weights_N.split(900), strict=True):
        moments.add(h, weights)
    expected = (h_NF.double() * weights_N.double()[:, None]).T @ h_NF.double() / weights_N.double().sum()
    found = moments.problem(site, rel_damp=0.0, per_neuron=False).gram_FF[:700, :700]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_no_two_layers_problems_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch, scope):
    """A square of 11,008 in float64 is a gigabyte: the sums become the problem, and it goes before the next."""
    held: list[weakref.ref[LeastSquares]] = []
    stated, counted = Moments.problem, Moments.__init__

    def begin(moments: Moments, site, own: float = 1.0) -> None:
        assert not any(problem() for problem in held)
        counted(moments, site, own)

    def state(moments: Moments, site, **how) -> LeastSquares:
        problem = stated(moments, site, **how)
        assert problem.gram_FF is moments.sum_FF
        held.append(weakref.ref(problem))
        return problem

    monkeypatch.setattr(Moments, "__init__", begin)
    monkeypatch.setattr(Moments, "problem", state)
    model = tiny_model("llama")
    obs(model, find_sites(model), text(), 0.5, scope=scope)
    assert len(held) == {"local": 3, "global": 6}[scope]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_curvature_is_the_second_moment_of_unit_gradients(name: str):
    model = tiny_model(name)
    ffns = find_sites(model)
    input_ids = text(rows=3, length=10)
    found = output_curvature(model, ffns, input_ids, rel_damp=0.0)
    outs: dict[int, torch.Tensor] = {}

    def keep_grad(layer: int):
        def hook(_module: nn.Module, _args: object, out: torch.Tensor) -> None:
            out.retain_grad()
            outs[layer] = out

        return hook

    for ffn in ffns:
        ffn.reader_linear.register_forward_hook(keep_grad(ffn.layer))
    logits_BTV = model(input_ids).logits
    nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten(), reduction="sum"
    ).backward()
    assert sorted(found) == [ffn.layer for ffn in ffns]
    for layer, curvature_DD in found.items():
        grad = outs[layer].grad
        assert grad is not None
        grad_BTD = grad.double().view(3, 10, -1)[:, :-1]  # the last token predicts nothing
        norms_BT = grad_BTD.norm(dim=2)
        expected = torch.zeros_like(curvature_DD)
        for grad_TD, norm_T in zip(grad_BTD, norms_BT, strict=True):
            unit_TD = grad_TD / norm_T[:, None]
            expected += unit_TD.T @ unit_TD * norm_T.square().median() / (3 * 9)
        torch.testing.assert_close(curvature_DD, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_refit_of_a_given_choice_equals_choosing_it():
    chosen, given = tiny_model("qwen2"), tiny_model("qwen2")
    kept = obs(chosen, find_sites(chosen), text(), 0.5)
    obs_refit(given, find_sites(given), text(), kept)
    assert torch.equal(logits(chosen), logits(given))


@pytest.mark.conformance
def test_the_ladder_of_methods_on_a_trained_model(shared):
    """On a real model: sequential obs beats activation scores without a refit, by the loss on other text."""
    import lmprune

    folder = shared / "models" / "stories260k"
    tokenizer = lmprune.load_tokenizer(folder)
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her friends. "
        "One day, she saw a big red ball. She wanted to play with it, but it was too high. Her mom said, 'Lily, do not "
        "go there.' Lily was sad. She went to her mom and said, 'I want to play with the ball.' Her mom smiled. "
    )
    held_out = tokenizer(story, return_tensors="pt").input_ids
    losses: dict[str, float] = {}
    data = lmprune_text(lmprune.load(folder), tokenizer)
    for method in ("obs", "plain_obs", "activation", "random"):
        model = lmprune.load(folder)
        dense = loss(model, held_out)
        lmprune.prune(model, tokenizer, method=method, keep=0.5, data=data, multiple_of=2)
        losses[method] = loss(model, held_out) - dense
    assert losses["obs"] < losses["activation"] < losses["random"]
    assert losses["plain_obs"] < losses["activation"]


@torch.no_grad()
def loss(model, input_ids: torch.Tensor) -> float:
    return float(model(input_ids, labels=input_ids).loss)


def lmprune_text(model, tokenizer) -> torch.Tensor:
    """8,192 tokens that the model writes itself."""
    from lmprune import data
    from lmprune.data.tokens import sequences

    written = data.load("self", "train", model=model, tokenizer=tokenizer, num_tokens=8192)
    return sequences(tokenizer, written, seq_len=256, num_tokens=7168, seed=0)


@pytest.mark.parametrize(
    ("name", "expected"), [("llama", 1.0), ("gpt_neox-parallel", 1.0), ("granite", 0.25), ("gemma2", None)]
)
@torch.no_grad()
def test_what_a_block_adds_of_its_ffn_is_found_from_outside(name: str, expected: float | None):
    model = tiny_model(name, residual_multiplier=0.25) if name == "granite" else tiny_model(name)
    ffns = find_sites(model)
    blocks = Blocks(model, [ffn.block for ffn in ffns])
    found = residual_gain(blocks, ffns[1], blocks.inputs(text()))
    assert found is None if expected is None else found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite"])
@torch.no_grad()
def test_full_compensation_asks_for_what_the_dense_model_has_after_the_block(name: str):
    """With a reader that meets the target exactly, the pruned stream is back on the dense one."""
    model = tiny_model(name)
    ffns = find_sites(model)
    input_ids = text(rows=1, length=24)  # fewer tokens than neurons: least squares can meet any target
    dense_after = hidden_after(model, ffns, 1, input_ids)
    for ffn, problem in layer_problems(model, ffns, input_ids, sequential=True, rel_damp=1e-5, compensation=1.0):
        if ffn.layer == 0:
            ffn.set_reader(0.7 * ffn.reader())  # a disturbance for the next layer to make up for
        if ffn.layer == 1:
            reader = problem.refit(torch.arange(ffn.width))
            ffn.set_reader(reader[: ffn.width], reader[ffn.width] if problem.pinned else None)
            break
    disturbed = hidden_after(model, ffns, 0, input_ids)
    assert not torch.allclose(disturbed, hidden_after(tiny_model(name), find_sites(model), 0, input_ids), atol=1e-2)
    torch.testing.assert_close(hidden_after(model, ffns, 1, input_ids), dense_after, rtol=1e-2, atol=1e-2)


def hidden_after(model, ffns, layer: int, input_ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids, output_hidden_states=True).hidden_states[layer + 1]
