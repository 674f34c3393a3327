"""Optimal-brain-surgeon selection and least-squares refit of one layer: pure linear algebra, no model.

For one layer (METHODS section 5): X (N, F) the seam's input, Y (N, D) what the reader should put out, W0 (F, D) the
dense reader. All in float64; the statistics come in as mean second moments, so N does not appear here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LeastSquares:
    """Minimise E‖x·W - y‖² + Σ_j δ_j ‖W_j - W0_j‖²: least squares with a ridge towards the dense reader.

    gram_FF: E[x xᵀ] + diag(δ). cross_FD: E[x yᵀ] + diag(δ) W0. pinned: how many of the last rows are never removed
    and carry no ridge: a bias is one more row, with x = 1. drifted: whether y differs from what the dense reader gives.
    """

    gram_FF: Tensor
    cross_FD: Tensor
    pinned: int = 0
    drifted: bool = False

    @classmethod
    def of(
        cls, moment_FF: Tensor, cross_FD: Tensor, reader_FD: Tensor, *,
        rel_damp: float, per_neuron: bool = False, pinned: int = 0,
    ):  # fmt: skip
        """moment_FF: E[x xᵀ]; cross_FD: E[x yᵀ]; reader_FD: W0, each with its `pinned` last rows.

        rel_damp: ρ. per_neuron: the ridge of neuron j is ρ · E[x_j²], as if every neuron's output were multiplied by
        noise of variance ρ, so that no refit can rest on neurons cancelling each other out; otherwise it is one δ for
        all, ρ · mean_j E[x_j²]. It grows tenfold, as often as it takes, where H is not positive definite otherwise.
        """
        number = len(moment_FF) - pinned
        powers_F = moment_FF.diagonal()[:number].double()
        mean = powers_F.mean().clamp_min(1e-30)
        ridge_F = torch.zeros(len(moment_FF), dtype=torch.float64)
        ridge_F[:number] = rel_damp * (powers_F.clamp_min(1e-6 * mean) if per_neuron else mean)
        gram_FF = moment_FF.double() + ridge_F.diag()
        while torch.linalg.cholesky_ex(gram_FF).info:  # the moments' fp32 rounding can outweigh a small ridge
            gram_FF += 9 * ridge_F.diag()
            ridge_F *= 10
        return cls(gram_FF, cross_FD.double() + ridge_F[:, None] * reader_FD.double(), pinned)

    @property
    def width(self) -> int:
        """F, without the pinned rows."""
        return len(self.gram_FF) - self.pinned

    def refit(self, kept: Tensor) -> Tensor:
        """(H_KK)⁻¹ G_K: the exact least-squares reader on the kept neurons, (K + pinned, D)."""
        rows = torch.cat([kept, torch.arange(self.width, self.width + self.pinned)])
        return torch.cholesky_solve(self.cross_FD[rows], torch.linalg.cholesky(self.gram_FF[rows][:, rows]))


@dataclass(frozen=True)
class Elimination:
    """The order in which neurons go, and what each removal costs.

    gone: indices of the removed neurons, the first to go first. cost: float64, the increase of the layer's error (half
    the squared output error a token, under the metric) that each removal added; its cumulative sum is the error curve.
    kept: sorted indices of the neurons that stay.
    """

    gone: Tensor
    cost: Tensor
    kept: Tensor

    def scores(self) -> Tensor:
        """(F,), larger = keep: the cost at which a neuron goes, never less than what went before it; ∞ if it stays."""
        scores_F = torch.full((len(self.gone) + len(self.kept),), torch.inf, dtype=torch.float64)
        scores_F[self.gone] = self.cost.cummax(0).values
        return scores_F


def eliminate(
    problem: LeastSquares, *, until: int, metric_DD: Tensor | None = None, step: int = 32, seed: int = 0
) -> Elimination:
    """Remove neurons, the cheapest first, until `until` are left; every removal is compensated by the rest.

    cost_j = ½ ‖W_j‖²_C / (H⁻¹)_jj with C the metric (identity if None): how much the end loss cares about each
    direction of the output, e.g. E[g gᵀ] of the gradients g there (the Kronecker-factored curvature of LLM Surgeon).
    step: how many neurons go between two updates of the whole layer. In between, removals are exact within the
    2·step cheapest candidates, so that of two neurons that can stand in for each other only one goes.
    Equal costs are broken by a permutation drawn from `seed`.
    """
    inverse_FF = torch.cholesky_inverse(torch.linalg.cholesky(problem.gram_FF))
    reader_FD = inverse_FF @ problem.cross_FD
    if metric_DD is not None:
        reader_FD = reader_FD @ torch.linalg.cholesky(metric_DD.double())
    alive = torch.randperm(problem.width, generator=torch.Generator().manual_seed(seed))
    order, costs = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.float64)]
    while len(alive) > until:
        cost_F = 0.5 * torch.linalg.vector_norm(reader_FD, dim=1).square() / inverse_FF.diagonal()
        pool = alive[cost_F[alive].argsort(stable=True)[: 2 * step]]
        candidates_PD = reader_FD[pool]
        picked, cost = _cheapest(
            candidates_PD @ candidates_PD.T, inverse_FF[pool][:, pool], number=min(step, len(alive) - until, len(pool))
        )
        gone = pool[picked]
        compensation_FJ = inverse_FF[:, gone] @ torch.linalg.inv(inverse_FF[gone][:, gone])
        reader_FD.addmm_(compensation_FJ, reader_FD[gone], alpha=-1)
        inverse_FF.addmm_(compensation_FJ, inverse_FF[gone], alpha=-1)
        alive = alive[~torch.isin(alive, gone)]
        order.append(gone)
        costs.append(cost)
    return Elimination(torch.cat(order), torch.cat(costs), alive.sort().values)


def _cheapest(readers_PP: Tensor, inverse_PP: Tensor, *, number: int) -> tuple[Tensor, Tensor]:
    """One-at-a-time elimination among a pool of candidates: positions in the pool, and what each removal cost.

    readers_PP: inner products of their rows of W, all that the costs need. inverse_PP: their part of H⁻¹.
    """
    left = torch.ones(len(inverse_PP), dtype=torch.bool)
    picked, costs = [], []
    for _ in range(number):
        cost_P = (0.5 * readers_PP.diagonal() / inverse_PP.diagonal()).where(left, torch.inf)
        j = int(cost_P.argmin())
        picked.append(j)
        costs.append(cost_P[j])
        left[j] = False
        share_P = inverse_PP[:, j] / inverse_PP[j, j]  # row k of W becomes W_k - share_k · W_j
        with_j_P = readers_PP[j] - 0.5 * readers_PP[j, j] * share_P
        readers_PP = readers_PP - share_P.outer(with_j_P) - with_j_P.outer(share_P)
        inverse_PP = inverse_PP - share_P.outer(inverse_PP[j])
    return torch.tensor(picked), torch.stack(costs)
