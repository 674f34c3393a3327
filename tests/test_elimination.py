"""The solver against independent references: torch.linalg.lstsq and brute force on tiny cases."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lmprune.solve.elimination import Elimination, LeastSquares, eliminate


def data(num_tokens: int = 60, width: int = 7, out: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=g, dtype=torch.float64)
    x_NF = torch.randn(num_tokens, width, generator=g, dtype=torch.float64) @ mix
    reader_FD = torch.randn(width, out, generator=g, dtype=torch.float64)
    y_ND = x_NF @ reader_FD + 0.3 * torch.randn(num_tokens, out, generator=g, dtype=torch.float64)
    return x_NF, y_ND, reader_FD


def problem_of(x_NF: Tensor, y_ND: Tensor, reader_FD: Tensor, rel_damp: float = 0.0, pinned: int = 0) -> LeastSquares:
    n = len(x_NF)
    return LeastSquares.of(x_NF.T @ x_NF / n, x_NF.T @ y_ND / n, reader_FD, rel_damp=rel_damp, pinned=pinned)


def error(x_NF: Tensor, y_ND: Tensor, kept: list[int], metric_DD: Tensor | None = None) -> float:
    """Half the mean squared output error of the best reader on `kept`, by lstsq; under a metric C, ½ E[eᵀ C e]."""
    fitted = torch.linalg.lstsq(x_NF[:, kept], y_ND, driver="gelsd").solution
    rest_ND = y_ND - x_NF[:, kept] @ fitted
    metric = torch.eye(y_ND.shape[1], dtype=torch.float64) if metric_DD is None else metric_DD
    return 0.5 * float(((rest_ND @ metric) * rest_ND).sum() / len(x_NF))


def test_refit_is_least_squares():
    x_NF, y_ND, reader_FD = data()
    kept = torch.tensor([0, 2, 5])
    expected = torch.linalg.lstsq(x_NF[:, kept], y_ND).solution
    torch.testing.assert_close(problem_of(x_NF, y_ND, reader_FD).refit(kept), expected)


def test_ridge_pulls_towards_the_dense_reader():
    x_NF, y_ND, reader_FD = data()
    kept = torch.tensor([1, 3, 4, 6])
    moment = x_NF.T @ x_NF / len(x_NF)
    delta = 0.1 * moment.diagonal().mean()
    # the same ridge as extra rows: sqrt(N·δ) w = sqrt(N·δ) w0
    weight = (len(x_NF) * delta).sqrt()
    rows = torch.cat([x_NF[:, kept], weight * torch.eye(4, dtype=torch.float64)])
    targets = torch.cat([y_ND, weight * reader_FD[kept]])
    expected = torch.linalg.lstsq(rows, targets).solution
    torch.testing.assert_close(problem_of(x_NF, y_ND, reader_FD, rel_damp=0.1).refit(kept), expected)


def test_a_ridge_per_neuron_is_multiplicative_noise():
    """E over noise of ‖(x ⊙ (1 + ε))·W - y‖² with Var ε = ρ is the plain error plus ρ Σ_j E[x_j²] ‖W_j‖²."""
    x_NF, y_ND, _ = data()
    problem = LeastSquares.of(
        x_NF.T @ x_NF / 60, x_NF.T @ y_ND / 60, torch.zeros(7, 4), rel_damp=0.5, per_neuron=True
    )  # fmt: skip
    rows = torch.cat([x_NF, (0.5 * x_NF.square().sum(0)).sqrt().diag()])
    expected = torch.linalg.lstsq(rows, torch.cat([y_ND, torch.zeros(7, 4, dtype=torch.float64)])).solution
    torch.testing.assert_close(problem.refit(torch.arange(7)), expected)


def test_keeping_all_on_the_dense_outputs_gives_back_the_dense_reader():
    x_NF, _, reader_FD = data()
    problem = problem_of(x_NF, x_NF @ reader_FD, reader_FD, rel_damp=1e-3)
    torch.testing.assert_close(problem.refit(torch.arange(7)), reader_FD)


def test_a_pinned_row_is_an_unpenalised_intercept():
    x_NF, y_ND, reader_FD = data()
    y_ND = y_ND + 3.0
    ones = torch.cat([x_NF, torch.ones(len(x_NF), 1, dtype=torch.float64)], dim=1)
    augmented = torch.cat([reader_FD, torch.zeros(1, 4, dtype=torch.float64)])
    problem = problem_of(ones, y_ND, augmented, rel_damp=0.0, pinned=1)
    kept = torch.tensor([0, 1, 2])
    expected = torch.linalg.lstsq(ones[:, [0, 1, 2, 7]], y_ND).solution
    torch.testing.assert_close(problem.refit(kept), expected)
    strong = problem_of(ones, y_ND, augmented, rel_damp=1e6, pinned=1)  # the bias must not feel the ridge
    centred = (y_ND - x_NF[:, kept] @ reader_FD[kept]).mean(0)
    torch.testing.assert_close(strong.refit(kept)[-1], centred, rtol=1e-3, atol=1e-3)
    assert len(eliminate(problem, until=2).kept) == 2 and 7 not in eliminate(problem, until=2).kept


@pytest.mark.parametrize("with_metric", [False, True])
def test_elimination_is_brute_force_greedy(with_metric: bool):
    """Each step removes the neuron whose loss raises the least-squares error least, and says by how much."""
    x_NF, y_ND, reader_FD = data()
    metric = None
    if with_metric:
        root = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        metric = root @ root.T + 0.01 * torch.eye(4, dtype=torch.float64)
    found = eliminate(problem_of(x_NF, y_ND, reader_FD), until=1, metric_DD=metric, step=1)
    left = list(range(7))
    for gone, cost in zip(found.gone.tolist(), found.cost.tolist(), strict=True):
        before = error(x_NF, y_ND, left, metric)
        rises = {j: error(x_NF, y_ND, [k for k in left if k != j], metric) - before for j in left}
        assert gone == min(rises, key=rises.__getitem__)
        assert cost == pytest.approx(rises[gone], rel=1e-6)
        left.remove(gone)
    assert found.kept.tolist() == left


def test_the_metric_changes_the_choice():
    """Control for the test above: a metric that cares for one output only must lead to another order."""
    x_NF, y_ND, reader_FD = data()
    problem = problem_of(x_NF, y_ND, reader_FD)
    metric = torch.diag(torch.tensor([1.0, 1e-6, 1e-6, 1e-6], dtype=torch.float64))
    plain, partial = (eliminate(problem, until=1, metric_DD=m, step=1).gone.tolist() for m in (None, metric))
    assert plain != partial


@pytest.mark.parametrize("step", [1, 3, 16])
def test_costs_add_up_to_the_error_whatever_the_step(step: int):
    x_NF, y_ND, reader_FD = data(width=12)
    found = eliminate(problem_of(x_NF, y_ND, reader_FD), until=4, step=step)
    expected = error(x_NF, y_ND, found.kept.tolist()) - error(x_NF, y_ND, list(range(12)))
    assert float(found.cost.sum()) == pytest.approx(expected, rel=1e-6)
    assert sorted([*found.gone.tolist(), *found.kept.tolist()]) == list(range(12))


def test_greedy_is_close_to_the_best_subset():
    x_NF, y_ND, reader_FD = data(width=8)
    found = error(x_NF, y_ND, eliminate(problem_of(x_NF, y_ND, reader_FD), until=4, step=1).kept.tolist())
    every = sorted(error(x_NF, y_ND, list(subset)) for subset in itertools.combinations(range(8), 4))
    assert every.index(min(every, key=lambda e: abs(e - found))) <= len(every) // 10


def test_scores_rank_by_removal_and_never_fall():
    x_NF, y_ND, reader_FD = data()
    found = eliminate(problem_of(x_NF, y_ND, reader_FD), until=2, step=2)
    scores = found.scores()
    assert scores[found.kept].isinf().all()
    assert (scores[found.gone].diff() >= 0).all() and scores[found.gone].isfinite().all()
    assert scores.argsort()[:5].sort().values.tolist() == found.gone.sort().values.tolist()


def test_an_unneeded_neuron_goes_first_at_no_cost():
    x_NF, _, reader_FD = data()
    x_NF[:, 3] = 2 * x_NF[:, 5]  # a copy: what one of the two does, the other can do
    problem = problem_of(x_NF, x_NF @ reader_FD, reader_FD, rel_damp=1e-9)
    found = eliminate(problem, until=6, step=1)
    assert found.gone.item() in (3, 5) and found.cost.item() < 1e-6


def test_a_ridge_that_is_too_small_grows_until_the_system_can_be_solved():
    moment = torch.ones(4, 4, dtype=torch.float64)
    moment[0, 0] -= 1e-4  # indefinite, as rounding can leave it
    reader = torch.randn(4, 2, dtype=torch.float64)
    problem = LeastSquares.of(moment.clone(), moment @ reader, reader, rel_damp=1e-9)
    assert problem.refit(torch.arange(4)).isfinite().all()
    sound = LeastSquares.of(moment + torch.eye(4), moment @ reader, reader, rel_damp=1e-9)
    torch.testing.assert_close(sound.gram_FF, moment + torch.eye(4), rtol=0, atol=1e-8)  # and no more than needed


def test_scores_never_fall_along_the_order_in_which_units_went() -> None:
    """A unit that became cheap because another had gone must not go before it."""
    found = Elimination(torch.tensor([2, 0, 3]), torch.tensor([3.0, 1.0, 4.0]).double(), torch.tensor([1]))
    assert found.scores().tolist() == [3.0, torch.inf, 3.0, 4.0]
