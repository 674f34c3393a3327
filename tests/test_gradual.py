"""Pruning while training, step by step and without a trainer: over every method of the table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_parts import few
from tiny_models import LAYERS, WIDTH, logits, tiny_model, tokens

from lmprune.budget.selection import num_kept
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.gradual import GradualPruner, GradualSettings
from lmprune.gradual.goal import Goal
from lmprune.gradual.schedules import cubic, milestone_steps
from lmprune.gradual.similarity import Rows, SimilarityEstimate, absolute_cosines, mean_similarity
from lmprune.gradual.soft import SoftThreshold
from lmprune.gradual.warm_start import SPREAD
from lmprune.methods import METHODS
from lmprune.pruning import prune
from lmprune.sites.find import find_sites
from lmprune.sites.masks import UnitMasks
from lmprune.solve.obs import error_curves, obs_refit

STEPS, KEEP = 20, 0.25
TRAINABLE = [name for name, row in METHODS.items() if row.refit != "bias" and "neurons" in row.kinds]
EXACT = [name for name in TRAINABLE if name != "soft"]


def pruner_of(model: Any, method: str, **settings: Any) -> GradualPruner:
    how = {name: settings.pop(name) for name in ("keep", "scope", "multiple_of", "seed") if name in settings}
    return GradualPruner(
        model, method=method, num_steps=STEPS, calibration=tokens(6, 16, seed=3), settings=GradualSettings(**settings),
        **{"keep": KEEP, **how},
    )  # fmt: skip


def optimizer_of(model: Any, pruner: GradualPruner, lr: float = 1e-2) -> torch.optim.Optimizer:
    scores = pruner.masks.scores
    others = [p for p in model.parameters() if all(p is not s for s in scores)]
    groups: list[dict[str, Any]] = [{"params": others, "lr": 1e-3}]
    if scores:
        groups.append({"params": scores, "lr": lr, "eps": 1e-4})
    return torch.optim.AdamW(groups, weight_decay=0.0)


def steps_of(model: Any, pruner: GradualPruner, num_steps: int = STEPS, lr: float = 1e-2) -> Iterator[int]:
    """Train, and stop after `begin_step` of each step."""
    optimizer = optimizer_of(model, pruner, lr)
    model.train()
    for step in range(num_steps):
        pruner.begin_step(step)
        yield step
        batch = tokens(4, 16, seed=step)
        loss = model(batch, labels=batch).loss
        if (penalty := pruner.penalty()) is not None:
            loss = loss + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.end_step()
    model.eval()


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", EXACT)
def test_the_count_is_exact_at_every_step_and_the_cut_is_the_masked_model(name: str, scope: Any):
    model = tiny_model("llama")
    pruner = pruner_of(model, name, scope=scope)
    schedule, steps = cubic(KEEP, STEPS), pruner_steps(pruner)
    asked = 1.0
    for step in steps_of(model, pruner):
        asked = schedule(step) if steps is None or step in steps else asked
        widths = [len(kept) for kept in pruner.masks.kept]
        expected = LAYERS * num_kept(WIDTH, asked) if scope == "local" else num_kept(LAYERS * WIDTH, asked)
        assert sum(widths) == expected, step
        assert min(widths) >= 1 and (scope == "global" or len(set(widths)) == 1)
        assert all(torch.equal(k, k.unique()) for k in pruner.masks.kept)
    trained = logits(model)
    plan = pruner.finish()
    assert not torch.allclose(logits(model), trained, atol=1e-4)  # the control: the whole model is another
    assert plan.widths_before == [WIDTH] * LAYERS and plan.settings["method"] == name
    shrink(model, plan)
    assert torch.allclose(logits(model), trained, atol=1e-4)


def pruner_steps(pruner: GradualPruner) -> list[int] | None:
    """Where the mask moves at milestones only: those; None = at every step."""
    return getattr(pruner.chooser, "steps", None)


def test_a_layer_that_does_not_change_ends_where_one_shot_would():
    """At each milestone the neurons that are left are chosen among; their numbers are those of the whole layer."""
    pruner, text = pruner_of(tiny_model("llama"), "activation", scope="local"), tokens(6, 16, seed=3)
    assert len(pruner_steps(pruner) or []) > 2
    for step in range(STEPS):
        pruner.begin_step(step)
        pruner.end_step()
    once = prune(tiny_model("llama"), method="activation", keep=KEEP, scope="local", data=text, multiple_of=1)
    first, *_ = once.addresses  # those behind it see what the ones before them lost
    assert pruner.finish().kept[first] == once.kept[first]


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("method", ["activation", "obs"])
@pytest.mark.parametrize(
    ("kind", "keep", "left", "widths"),
    [
        ("neurons", 0.5, (64, 40, 24), [32, 24, 16]),
        ("neurons", 0.75, (56, 30, 10), [40, 24, 8]),
        ("heads", 0.5, (4, 2, 4), [2, 1, 2]),
    ],
)
def test_layers_of_several_widths_end_where_one_shot_does(
    kind: Any, keep: float, left: Any, widths: list[int], method: str, scope: Any
):
    model = tiny_model("llama", intermediate_size=64, num_key_value_heads=4)
    for site, count in zip(find_sites(model, (kind,)), left, strict=True):
        site.keep(torch.arange(count))
    pruner = GradualPruner(
        model, units=(kind,), method=method, keep=keep, scope=scope, num_steps=STEPS, multiple_of=8,
        calibration=tokens(6, 16, seed=3),
    )  # fmt: skip
    for step in range(STEPS):
        pruner.begin_step(step)
        pruner.end_step()
    found = [len(units) for units in pruner.finish().indices()]
    if scope == "local":
        assert found == widths
    else:
        assert kind == "heads" or all(
            count % 8 == 0 or count == whole for count, whole in zip(found, left, strict=True)
        )
        assert abs(sum(found) - num_kept(sum(left), keep)) <= (0 if kind == "heads" else LAYERS * 8 / 2)


def test_a_run_that_goes_on_has_the_effort_of_the_soft_penalty():
    goal = Goal(KEEP, STEPS)
    first, second = (SoftThreshold(pruner_of(tiny_model("llama"), "soft").masks, goal) for _ in range(2))
    first.effort = 3.0
    second.load_state(first.state())
    assert second.effort == 3.0


def test_a_goal_of_the_whole_model_can_be_asked_layer_by_layer():
    """As the soft method asks for floors: by scores that leave the first layer nothing."""
    sites = find_sites(tiny_model("llama"))
    scores = [torch.arange(site.count) + 100.0 * site.layer for site in sites]
    goal = Goal(0.5, num_steps=20, scope="global")
    assert len({len(kept) for kept in goal.best(sites, scores, 0.5)}) > 1
    assert [len(kept) for kept in goal.best(sites, scores, 0.5, scope="local")] == [site.count // 2 for site in sites]


def test_ties_are_no_trouble_and_two_processes_agree():
    """All scores are 0 at first: the count must be right from the first masked step, and the same everywhere."""
    kept = []
    for _ in range(2):
        model = tiny_model("gpt_neo")
        pruner = pruner_of(model, "top_v", seed=5)
        pruner.begin_step(STEPS)
        kept.append(pruner.finish().indices())
        assert sum(map(len, kept[-1])) == num_kept(LAYERS * WIDTH, KEEP)
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


@pytest.mark.parametrize("name", ["top_v", "gum", "hard", "magnitude"])
def test_multiples_are_kept_to(name: str):
    model = tiny_model("llama")
    pruner = pruner_of(model, name, multiple_of=8, keep=0.5)
    for _ in steps_of(model, pruner):
        assert all(len(kept) % 8 == 0 for kept in pruner.masks.kept)


def test_both_ways_to_compute_learn_the_same_while_nothing_is_masked():
    found = []
    for compute in ("full", "gathered"):
        model = tiny_model("llama")
        pruner = pruner_of(model, "gum", compute=compute)
        for _ in steps_of(model, pruner, 3):
            pass
        found.append([s.detach().clone() for s in pruner.masks.scores])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
    assert all(s.abs().sum() > 0 for s in found[0])


@pytest.mark.parametrize("compute", ["full", "gathered"])
def test_a_masked_neuron_feels_the_loss_and_returns_where_all_are_computed(compute: str):
    model = tiny_model("gpt2")
    pruner = pruner_of(model, "top_v", compute=compute)
    gone, back, felt = [torch.zeros(WIDTH, dtype=torch.bool)] * LAYERS, 0, []
    for _ in steps_of(model, pruner, lr=0.1):
        felt += [scores.grad[out] for scores, out in zip(pruner.masks.scores, gone, strict=True) if out.any()]
        before, gone = gone, [~torch.isin(torch.arange(WIDTH), kept) for kept in pruner.masks.kept]
        back += sum(int((was & ~now).sum()) for was, now in zip(before, gone, strict=True))
    assert len(felt) > LAYERS
    if compute == "full":
        assert back > 0 and all(grad.abs().min() > 0 for grad in felt)
    else:  # nothing is computed of them; they come back only where others sink past them
        assert not torch.cat(felt).any()


def test_the_warm_starts_refit_is_that_of_the_neurons_that_left_at_this_step():
    model = tiny_model("llama")
    pruner = pruner_of(model, "top_v", warm_start=True, keep=0.5)
    first = milestone_steps(STEPS, 5)[0]
    for step in range(first):
        pruner.begin_step(step)
    before = pruner.masks.kept
    pruner.begin_step(first)
    expected = tiny_model("llama")
    for ffn, kept in zip(find_sites(expected), before, strict=True):
        ffn.keep(kept)
    stay = [torch.isin(old, new).nonzero()[:, 0] for old, new in zip(before, pruner.masks.kept, strict=True)]
    obs_refit(expected, find_sites(expected), tokens(6, 16, seed=3), stay)
    torch.testing.assert_close(logits(model), logits(expected))


@pytest.mark.parametrize(
    ("method", "scope"), [*((name, "local") for name in TRAINABLE), *((name, "global") for name in EXACT)]
)
@pytest.mark.parametrize("name", few(["llama", "gpt2"]))
def test_a_schedule_that_keeps_everything_changes_no_weight_and_no_neuron(name: str, method: str, scope):
    model, before = tiny_model(name), tiny_model(name).state_dict()
    pruner = pruner_of(model, method, keep=1.0, scope=scope, warm_start=METHODS[method].learned)
    for step in range(STEPS):
        pruner.begin_step(step)
        logits(model, tokens(4, 16, seed=step))
        pruner.end_step()
    assert pruner.finish().widths == [WIDTH] * LAYERS
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_warm_start_begins_where_obs_would_prune_and_refits_on_the_way():
    model = tiny_model("llama")
    curves = error_curves(model, find_sites(model), tokens(6, 16, seed=3))
    pruner = pruner_of(model, "top_v", warm_start=True, keep=0.5)
    start = [s.detach().clone() for s in pruner.masks.scores]
    in_order = torch.cat(curves)[torch.cat(start).argsort()]
    assert torch.equal(in_order, in_order.sort().values) and len(in_order.unique()) > 100
    assert float(torch.cat(start).max()) == -float(torch.cat(start).min()) == SPREAD
    first = milestone_steps(STEPS, 5)[0]
    for step in range(first + 1):
        before = [ffn.reader().detach().clone() for ffn in find_sites(model)]
        part = pruner.masks.kept
        pruner.begin_step(step)
        after = [ffn.reader().detach() for ffn in find_sites(model)]
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        lost = [len(new) < len(old) for old, new in zip(part, pruner.masks.kept, strict=True)]
        assert changed == [step == first and any(lost[: layer + 1]) for layer in range(LAYERS)]
    assert any(changed)
    for reader, old, kept in zip(after, before, pruner.masks.kept, strict=True):
        gone = torch.ones(WIDTH, dtype=torch.bool)
        gone[kept] = False
        assert torch.equal(reader[gone], old[gone])  # only what takes part is refitted
    with pytest.raises(UserError, match="no learned scores to warm-start"):
        pruner_of(tiny_model("llama"), "magnitude", warm_start=True)


def test_a_warm_start_reads_a_model_in_training_mode_without_its_dropout():
    starts = []
    for training in (False, True):
        model = tiny_model("gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3).train(training)
        starts.append(pruner_of(model, "top_v", warm_start=True, keep=0.5).masks.scores)
        assert model.training is training
    assert all(torch.equal(*both) for both in zip(*starts, strict=True))


# -- what presses on scores


def look_alikes(**settings: Any) -> tuple[Any, GradualPruner]:
    """A model whose neurons 0…11 of layer 1 are one and the same."""
    model = tiny_model("gpt_neo", resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0)
    ffn = find_sites(model)[1]
    with torch.no_grad():
        for rows in (*ffn.writers(), *ffn.writer_biases(), ffn.reader()):
            rows[:12] = rows[0]
    return model, pruner_of(model, settings.pop("method", "gum"), **settings)


def scores_after(steps: int = 12, **settings: Any) -> torch.Tensor:
    """λ_f is small, since it is shared by only 144 neurons: their gradient must stay near the optimizer's ε."""
    settings = {"penalty_weight": 0.005, **settings}
    model, pruner = look_alikes(similarity_every=1, **settings)
    optimizer = optimizer_of(model, pruner)
    model.train()
    for step in range(steps):  # the penalty alone: what it does is not hidden by the loss
        pruner.begin_step(0)
        pruner.estimate and pruner.estimate.refresh() if step else None
        model(tokens(8, 16, seed=step))
        penalty = pruner.penalty()
        assert penalty is not None
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        pruner.end_step()
    return pruner.masks.scores[1].detach()


def test_look_alikes_sink_faster_under_gum_and_slower_under_anti_gum():
    gum, anti = scores_after(), scores_after(method="anti_gum")
    assert gum[:12].mean() < gum[12:].mean() - 1e-3
    assert anti[:12].mean() > anti[12:].mean() + 1e-3


@pytest.mark.parametrize("num_steps", [10, 50, 200])
def test_the_first_estimate_is_made_before_the_first_neuron_goes(num_steps: int):
    model = tiny_model("gpt_neo")
    pruner = GradualPruner(model, method="gum", keep=KEEP, num_steps=num_steps)
    for step in range(num_steps):
        pruner.begin_step(step)
        if pruner.masks.keep < 1:
            break
        model(tokens(2, 16, seed=step))
        pruner.end_step()
    assert pruner.progress()["similarity"] > 0 and step <= 0.1 * num_steps + 1


@pytest.mark.parametrize("method", ["soft", "gum"])
def test_the_log_has_the_penalty_that_was_in_the_loss(method: str):
    """What is left of the loss without it is the model's own, though the scores have moved since."""
    model = tiny_model("gpt_neo")
    pruner = GradualPruner(model, method=method, keep=KEEP, num_steps=30)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3))
    moved = []
    for step in range(30):
        with pruner.step(step):
            ids = tokens(2, 16, seed=step)
            own = model(ids, labels=ids).loss
            loss = pruner.loss(own)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert pruner.progress()["penalty"] == pytest.approx((loss - own).item(), abs=1e-5)
        now = pruner.penalty()
        assert now is not None
        moved.append(abs((now - loss + own).item()))
    assert max(moved) > 1e-3


def test_the_penalty_s_size_reaches_the_scores():
    """The optimizer's ε: with torch's 1e-8 every score would sink by lr × sign, whatever the weight."""
    weak, strong = scores_after(penalty_weight=0.001), scores_after(penalty_weight=0.01)
    assert strong.mean() < 3 * weak.mean() < 0
    alike = [scores_after(similarity_weight=w) for w in (0.0, 5.0)]
    assert (alike[0][:12].mean() - alike[0][12:].mean()).abs() < 1e-5
    assert alike[1][:12].mean() < alike[1][12:].mean() - 1e-3


@pytest.mark.parametrize("num_steps", [40, 100, 200])
@pytest.mark.parametrize("asked", [0.25, 0.5, 0.8])
def test_soft_lands_within_1_percent(asked: float, num_steps: int):
    """Scores that drift up on their own, some faster: the controller has to press them down to the count."""
    model = tiny_model("llama")
    masks = UnitMasks(model, find_sites(model), learned=True, compute="full")
    soft = SoftThreshold(masks, Goal(asked, num_steps))
    pull = [torch.rand(WIDTH) * 2e-4 for _ in masks.scores]
    optimizer = torch.optim.AdamW(masks.scores, lr=10 / num_steps, eps=1e-4, weight_decay=0.0)
    schedule = cubic(asked, num_steps)
    for step in range(num_steps):
        kept = soft.choose(step, schedule(step))
        if kept is not None:
            masks.set(kept)
        for scores, up in zip(masks.scores, pull, strict=True):
            pressed = scores.detach().sigmoid()
            pressed = pressed * (1 - pressed) / WIDTH / LAYERS
            scores.grad = soft.penalty_weight(step, 0.67) * pressed - up
        optimizer.param_groups[0]["lr"] = 10 / num_steps * (1 - step / num_steps)
        optimizer.step()
    assert masks.keep == pytest.approx(asked, abs=0.01)
    floor = num_kept(WIDTH, asked)
    assert all(len(kept) >= floor for kept in masks.kept)


def test_soft_counts_what_each_kind_asks_for():
    """With a ratio for each kind the penalty grew as if all units had the smallest, though the right ones stood out."""
    keep: Any = {"neurons": 0.75, "heads": 0.5}
    pruner = GradualPruner(tiny_model("llama"), method="soft", units=("neurons", "heads"), keep=keep, num_steps=100)
    for mask, scores in zip(pruner.masks, pruner.masks.scores, strict=True):
        scores.data.fill_(-3)[: round(keep[mask.kind] * mask.count)] = 1
    pruner.begin_step(99)
    assert pruner.penalty_weight() < pruner.settings.penalty_weight, "nobody is to go, so the effort falls"
    assert {kind: pruner.masks.keep_of(kind) for kind in keep} == keep


@pytest.mark.parametrize(("multiple_of", "width"), [(1, 38), (8, 40), (32, 32)])
def test_soft_keeps_the_best_of_the_nearest_multiple(multiple_of: int, width: int):
    model = tiny_model("llama")
    masks = UnitMasks(model, find_sites(model), learned=True, compute="full")
    with torch.no_grad():
        for scores in masks.scores:
            scores.copy_(torch.linspace(1, -3, WIDTH))  # 38 of 48 are above logit(0.1)
    kept = SoftThreshold(masks, Goal(0.5, STEPS, multiple_of=multiple_of)).choose(STEPS, 0.5)
    assert kept is not None and [k.tolist() for k in kept] == [[*range(width)]] * LAYERS


# -- similarities


def test_cosines_are_the_brute_force_ones_and_a_silent_neuron_has_none():
    h = torch.randn(50, 6, dtype=torch.float64)
    h[:, 2] = 0
    h[:, 5] = -3 * h[:, 0]
    found = absolute_cosines(h.T @ h)
    for j in range(6):
        for k in range(6):
            expected = 0.0
            if j != k and 2 not in (j, k):
                expected = abs(float(h[:, j] @ h[:, k] / (h[:, j].norm() * h[:, k].norm())))
            assert float(found[j, k]) == pytest.approx(expected, abs=1e-9)
    assert float(found[0, 5]) == pytest.approx(1) and float(found.max()) <= 1
    assert float(mean_similarity(h.T @ h, 6.0)[2]) == 0


@contextmanager
def estimating(
    max_rows: int = 1000, stride: int = 1, kind: Any = "neurons"
) -> Iterator[tuple[Any, UnitMasks, SimilarityEstimate]]:
    model = tiny_model("llama").train()
    masks = UnitMasks(model, find_sites(model, (kind,)), learned=True, compute="gathered")
    estimate = SimilarityEstimate(masks, max_rows=max_rows, stride=stride)
    estimate.observe()
    yield model, masks, estimate


def outputs_of(model: Any, layer: int, ids: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = find_sites(model)[layer].reader_linear.register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].detach())
    )
    model(ids)
    handle.remove()
    return seen[0].flatten(0, 1).double()


def test_the_estimate_of_all_rows_is_exact_and_masked_neurons_have_0():
    with estimating() as (model, masks, estimate):
        kept = [torch.arange(0, WIDTH, 3)] * LAYERS
        masks.set(kept)
        model(tokens(4, 12))
        estimate.end_step()
        estimate.refresh()
        found = [u.clone() for u in estimate.similarities]
        h = outputs_of(model, 1, tokens(4, 12))
        for position, j in enumerate(kept[1].tolist()):
            each = [abs(float(torch.cosine_similarity(h[:, position], h[:, k], dim=0))) for k in range(h.shape[1])]
            assert float(found[1][j]) == pytest.approx((sum(each) - 1) / (WIDTH * masks.keep), rel=1e-3)
        gone = torch.ones(WIDTH, dtype=torch.bool)
        gone[kept[1]] = False
        assert not found[1][gone].any()


@pytest.mark.parametrize("kind", ["neurons", "heads"])
def test_as_many_tokens_are_kept_of_units_of_any_size(kind: str):
    """Of heads there was one token a number of inputs of a head: the u of a few tokens."""
    found = []
    for max_rows in (24, 1000):
        with estimating(max_rows=max_rows, kind=kind) as (model, _masks, estimate):
            model(tokens(2, 12))
            estimate.refresh()
            found.append(torch.cat(estimate.similarities))
    assert torch.allclose(*found, atol=1e-6)


def test_padding_does_not_count():
    with estimating() as (model, _masks, estimate):
        model(tokens(1, 8))
        estimate.refresh()
        alone = [u.clone() for u in estimate.similarities]
    with estimating() as (model, _masks, estimate):
        padded = torch.cat([tokens(1, 8), torch.full((1, 5), 7)], dim=1)
        model(padded, attention_mask=torch.tensor([[1] * 8 + [0] * 5]))
        estimate.refresh()
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(alone, estimate.similarities, strict=True))
        model(padded)
        estimate.refresh()  # the control: counted, the padding shows
        assert not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(alone, estimate.similarities, strict=True))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_the_newest_rows_stay(capacity: int, sizes: list[int]):
    rows, added = Rows(capacity, 3, torch.device("cpu")), torch.arange(1.0, sum(sizes) + 1)
    for piece in added.split(sizes):
        rows.add(piece[:, None], torch.tensor([1]))
    newest = added[-capacity:]
    assert rows.seen[:, 1].sort().values.tolist() == newest.tolist()
    assert not rows.seen[:, [0, 2]].any()


def test_a_batch_in_parts_leaves_the_same_rows():
    states = []
    for parts in (1, 4):
        with estimating(max_rows=40, stride=4) as (model, _masks, estimate):
            for step in range(6):
                for part in tokens(4, 16, seed=step).chunk(parts):
                    model(part)
                estimate.end_step()
            estimate.refresh()
            states.append([u.clone() for u in estimate.similarities])
            assert all(rows is not None and len(rows.seen) == 40 for rows in estimate._rows)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*states, strict=True))


def test_what_gradient_checkpointing_computes_again_is_not_seen_again():
    seen = []
    for checkpointing in (False, True):
        with estimating() as (model, _masks, estimate):
            if checkpointing:
                model.gradient_checkpointing_enable()
            model(tokens(4, 12)).logits.sum().backward()
            assert model.is_gradient_checkpointing == checkpointing
            seen.append([estimate.state()[f"{layer}.rows"] for layer in range(LAYERS)])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_the_state_goes_on_where_it_was():
    model = tiny_model("llama")
    pruner = pruner_of(model, "gum", similarity_every=4)
    for step in steps_of(model, pruner, 15):
        if step == 14:
            saved = {name: value.clone() for name, value in pruner.state().items()}
    other = tiny_model("llama")
    again = pruner_of(other, "gum", similarity_every=4)
    assert not torch.equal(again.state()["estimate.0.similarities"], saved["estimate.0.similarities"])
    again.load_state(saved)
    assert set(again.state()) == set(saved)
    assert all(torch.equal(again.state()[name], value) for name, value in saved.items())
    again.estimate.end_step()  # type: ignore[union-attr]
    again.estimate.refresh()  # type: ignore[union-attr]


def test_similarities_are_where_the_scores_are():
    """`meta` stands for a GPU: it does not compute with the CPU's tensors either."""
    here, there = (pruner_of(tiny_model("llama").to(device), "gum") for device in ("cpu", "meta"))
    penalty = there.penalty()
    assert penalty is not None and penalty.device.type == "meta"
    there.load_state(here.state())
    penalty = there.penalty()
    assert penalty is not None and penalty.device.type == "meta"


# -- what is refused


def test_bad_requests_leave_the_model_untouched():
    model = tiny_model("llama")
    names = set(dict(model.named_parameters()))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"method": "gum", "keep": 0.5, "num_steps": 5}, "too few for the cubic"),
        ({"method": "gumm", "keep": 0.5, "num_steps": 50}, "did you mean gum"),
        ({"method": "gum", "keep": 50, "num_steps": 50}, "pass 0.5"),
        ({"method": "flap", "keep": 0.5, "num_steps": 50, "calibration": tokens()}, "--schedule oneshot"),
        ({"method": "obs", "keep": 0.5, "num_steps": 50}, "pass calibration tokens"),
        ({"method": "top_v", "keep": 0.5, "num_steps": 50, "calibration": tokens() + 999}, "the model knows"),
        ({"method": "gum", "keep": 0.5, "num_steps": 50, "multiple_of": 64}, "no neuron could go"),
        ({"method": "gum", "keep": 0.5, "num_steps": 50, "scope": "locale"}, "did you mean local"),
    ]
    for asked, message in wrong:
        with pytest.raises(UserError, match=message):
            GradualPruner(model, **asked)
        assert set(dict(model.named_parameters())) == names


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"compute": "ful"}, "did you mean full"),  # no neuron was masked, nor gathered, until the cut
        ({"num_milestones": 0}, "num_milestones must be at least 1"),  # nothing was pruned
        ({"similarity_every": 0}, "similarity_every must be at least 1"),
        ({"similarity_rows": 0}, "similarity_rows must be at least 1"),  # the first step had no end
        ({"penalty_weight": -1.0}, "penalty_weight must be 0 or more"),
        ({"similarity_weight": math.nan}, "similarity_weight must be 0 or more"),
    ],
)
def test_settings_that_prune_otherwise_than_asked_are_refused(setting: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        GradualSettings(**setting)


def test_a_rate_of_nothing_is_refused_and_not_taken_for_the_usual_one():
    pruner = GradualPruner(tiny_model("llama"), method="gum", keep=0.5, num_steps=50)
    with pytest.raises(UserError, match="must be above 0, got 0"):
        pruner.param_groups(lr=1e-3, score_lr=0)
