"""Counts are exact, ties can't change them, larger scores stay: for any scores at all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmprune.budget.selection import Descent, check_keep, num_kept, select
from lmprune.errors import UserError

#: few distinct values, so that ties are the rule
TIED = st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0]), min_size=1, max_size=40)
DISTINCT = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40, unique=True)
LAYERS = st.lists(st.one_of(TIED, DISTINCT), min_size=1, max_size=5).map(lambda ls: [torch.tensor(x) for x in ls])
KEEP = st.floats(0.001, 1.0)
SEED = st.integers(0, 5)


def widths(kept: list[Tensor]) -> list[int]:
    return [len(k) for k in kept]


def well_formed(kept: list[Tensor], scores: list[Tensor]) -> bool:
    """Sorted, unique, within the layer, never empty."""
    return all(
        len(k) > 0 and k.dtype == torch.long and k.tolist() == sorted(set(k.tolist())) and k[0] >= 0 and k[-1] < len(s)
        for k, s in zip(kept, scores, strict=True)
    )


@given(LAYERS, KEEP, SEED)
def test_local_keeps_the_exact_count_of_each_layer(scores: list[Tensor], keep: float, seed: int) -> None:
    kept = select(scores, keep, scope="local", seed=seed)
    assert well_formed(kept, scores)
    for k, s in zip(kept, scores, strict=True):
        assert len(k) == max(1, min(len(s), int(keep * len(s) + 0.5)))
        lost = torch.ones(len(s), dtype=torch.bool).index_fill(0, k, False)
        assert not lost.any() or s[k].min() >= s[lost].max(), "no lost neuron may score above a kept one"


@given(LAYERS, KEEP, SEED)
def test_global_keeps_the_exact_total(scores: list[Tensor], keep: float, seed: int) -> None:
    kept = select(scores, keep, scope="global", seed=seed)
    assert well_formed(kept, scores)
    number = sum(map(len, scores))
    assert sum(widths(kept)) == max(int(keep * number + 0.5), len(scores))


@given(LAYERS, KEEP, SEED)
def test_global_keeps_the_best_of_all_layers(scores: list[Tensor], keep: float, seed: int) -> None:
    """Apart from each layer's best, which always stays: a lost neuron nowhere scores above a kept one."""
    kept = select(scores, keep, scope="global", seed=seed)
    on_merit, lost = [], []
    for k, s in zip(kept, scores, strict=True):
        best_first = s[k].sort(descending=True).values
        on_merit += best_first[1:].tolist()
        assert best_first[0] == s.max()
        lost += s[torch.ones(len(s), dtype=torch.bool).index_fill(0, k, False)].tolist()
    assert not on_merit or not lost or min(on_merit) >= max(lost)


@given(LAYERS, KEEP, st.integers(1, 6), SEED)
def test_global_respects_min_keep(scores: list[Tensor], keep: float, min_keep: int, seed: int) -> None:
    kept = select(scores, keep, scope="global", min_keep=min_keep, seed=seed)
    floors = [min(min_keep, len(s)) for s in scores]
    assert all(w >= floor for w, floor in zip(widths(kept), floors, strict=True))
    assert sum(widths(kept)) == max(num_kept(sum(map(len, scores)), keep), sum(floors))


@given(st.integers(2, 4), st.integers(2, 8), KEEP, st.sampled_from(["local", "global"]), SEED)
def test_multiple_of(layers: int, blocks: int, keep: float, scope, seed: int) -> None:
    k = 4
    scores = list(torch.rand(layers, blocks * k, generator=torch.Generator().manual_seed(seed)))
    kept = select(scores, keep, scope=scope, multiple_of=k, seed=seed)
    assert all(w % k == 0 and w > 0 for w in widths(kept))
    exact = select(scores, keep, scope=scope, seed=seed)
    raised = sum(k - w for w in widths(exact) if w < k / 2)  # a layer is never rounded down to nothing
    assert abs(sum(widths(kept)) - sum(widths(exact))) <= layers * k / 2 + raised


@given(LAYERS, KEEP, st.sampled_from(["local", "global"]), SEED)
def test_deterministic_by_seed(scores: list[Tensor], keep: float, scope, seed: int) -> None:
    first, second = (select(scores, keep, scope=scope, seed=seed) for _ in range(2))
    assert all(map(torch.equal, first, second))


@given(st.lists(DISTINCT, min_size=1, max_size=4), KEEP, st.sampled_from(["local", "global"]), st.randoms())
def test_the_order_of_neurons_and_layers_does_not_matter(lists, keep: float, scope, random) -> None:
    offset = 0
    for values in lists:  # distinct over the whole model, not only within a layer
        values[:] = [float(offset + rank) for rank in torch.tensor(values).double().argsort().argsort().tolist()]
        offset += len(values)
    random.shuffle(flat := [v for values in lists for v in values])
    scores = [torch.tensor(x) for x in _split(flat, [len(v) for v in lists])]
    chosen = {float(s[i]) for s, k in zip(scores, select(scores, keep, scope=scope), strict=True) for i in k}
    permutations = [torch.tensor(random.sample(range(len(s)), len(s))) for s in scores]
    shuffled = [s[p] for s, p in zip(scores, permutations, strict=True)][::-1]
    again = {float(s[i]) for s, k in zip(shuffled, select(shuffled, keep, scope=scope), strict=True) for i in k}
    assert chosen == again


def _split(values: list, sizes: list[int]) -> list[list]:
    it = iter(values)
    return [[next(it) for _ in range(size)] for size in sizes]


@given(LAYERS, st.sampled_from(["local", "global"]))
def test_keep_one_keeps_everything(scores: list[Tensor], scope) -> None:
    assert widths(select(scores, 1.0, scope=scope)) == [len(s) for s in scores]


@settings(max_examples=20)
@given(SEED)
def test_ties_are_broken_by_seed_not_by_layer_or_position(seed: int) -> None:
    scores = [torch.zeros(500), torch.zeros(500)]
    kept = select(scores, 0.5, scope="global", seed=seed)
    assert sum(widths(kept)) == 500
    assert 190 < len(kept[0]) < 310, "position and layer would give 500 and (the floor of) 1"
    assert 150 < kept[0].float().mean() < 350
    other = select(scores, 0.5, scope="global", seed=seed + 1)
    assert kept[0].tolist() != other[0].tolist()


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5), st.lists(KEEP, min_size=1, max_size=5), st.integers(1, 16),
    st.sampled_from(["local", "global"]), SEED,
)  # fmt: skip
def test_a_descent_ends_at_the_widths_of_one_choice(
    numbers: list[int], keeps: list[float], multiple_of: int, scope, seed: int
) -> None:
    order = torch.randperm(sum(numbers), generator=torch.Generator().manual_seed(seed)).float()
    scores, steps = list(order.split(numbers)), sorted(keeps, reverse=True)
    left = [torch.arange(number) for number in numbers]
    for number, keep in enumerate(steps, start=1):
        among = [s[units] for s, units in zip(scores, left, strict=True)]
        descent = Descent(numbers, goes_on=number < len(steps))
        found = select(among, keep, scope=scope, multiple_of=multiple_of, seed=seed, descent=descent)
        left = [units[k] for units, k in zip(left, found, strict=True)]
    once = select(scores, steps[-1], scope=scope, multiple_of=multiple_of, seed=seed)
    assert all(torch.equal(*both) for both in zip(left, once, strict=True))


def test_infinite_scores_rank_first_and_last() -> None:
    scores = [torch.tensor([float("inf"), 0.0, 1.0, float("-inf")])]
    assert select(scores, 0.5, scope="local")[0].tolist() == [0, 2]


def test_close_large_scores_in_low_precision_are_ranked_in_float64() -> None:
    scores = [torch.tensor([1.0, 1.0 + 1e-12, 1.0 + 2e-12], dtype=torch.float64)]
    assert select(scores, 1 / 3, scope="local")[0].tolist() == [2]


def test_nan_scores_are_refused() -> None:
    with pytest.raises(UserError, match="layer 1 has 2 NaN scores"):
        select([torch.ones(3), torch.tensor([float("nan"), 1, float("nan")])], 0.5, scope="local")


@pytest.mark.parametrize("keep", [0, -0.1, 1.0001, 10, float("nan"), float("inf")])
def test_keep_outside_the_unit_interval_is_refused(keep: float) -> None:
    with pytest.raises(UserError, match=r"keep must be in \(0, 1\]"):
        check_keep(keep)


def test_a_percentage_is_told_as_a_ratio() -> None:
    with pytest.raises(UserError, match=r"got 10; to keep 10%, pass 0\.1$"):
        check_keep(10)


@pytest.mark.parametrize(
    ("number", "keep", "multiple_of", "count"),
    [
        (1536, 0.75, 32, 1152),
        (1536, 0.7, 32, 1088),
        (48, 0.01, 32, 32),
        (48, 1.0, 32, 48),
        (10, 0.25, 1, 3),
        (9, 0.5, 1, 5),
    ],
)
def test_num_kept(number: int, keep: float, multiple_of: int, count: int) -> None:
    assert num_kept(number, keep, multiple_of=multiple_of) == count
