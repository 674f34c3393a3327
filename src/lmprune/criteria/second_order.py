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
    """The layer's least-squares problem: minimise E‖x·W - y‖² + δ‖W - W0‖², a ridge towards the dense reader.

    gram_FF: E[x xᵀ] + δI. cross_FD: E[x yᵀ] + δ W0. pinned: how many of the last rows are never removed and carry no
    ridge: a bias is one more row, with x = 1.
    """

    gram_FF: Tensor
    cross_FD: Tensor
    pinned: int = 0

    @classmethod
    def of(cls, moment_FF: Tensor, cross_FD: Tensor, reader_FD: Tensor, *, rel_damp: float, pinned: int = 0):
        """moment_FF: E[x xᵀ]; cross_FD: E[x yᵀ]; reader_FD: W0, each with its `pinned` last rows.

        rel_damp: ρ in δ = ρ · mean(diag E[x xᵀ]), the mean over the rows that are not pinned.
        """
        number = len(moment_FF) - pinned
        ridge = torch.zeros(len(moment_FF), dtype=torch.float64)
        ridge[:number] = rel_damp * moment_FF.diagonal()[:number].double().mean().clamp_min(1e-30)
        gram = moment_FF.double() + ridge.diag()
        return cls(gram, cross_FD.double() + ridge[:, None] * reader_FD.double(), pinned)

    @property
    def width(self) -> int:
        """F, without the pinned rows."""
        return len(self.gram_FF) - self.pinned

    def refit(self, kept: Tensor) -> Tensor:
        """(H_KK)⁻¹ G_K: the exact least-squares reader on the kept neurons, (K + pinned, D)."""
        rows = torch.cat([kept, torch.arange(self.width, self.width + self.pinned)])
        return torch.cholesky_solve(self.cross_FD[rows], _cholesky(self.gram_FF[rows][:, rows]))


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
    problem: LeastSquares, *, until: int, metric_DD: Tensor | None = None, step: int = 16, seed: int = 0
) -> Elimination:
    """Remove neurons, the cheapest first, until `until` are left; every removal is compensated by the rest.

    cost_j = ½ ‖W_j‖²_C / (H⁻¹)_jj with C the metric (identity if None): how much the end loss cares about each
    direction of the output, e.g. E[g gᵀ] of the gradients g there (the Kronecker-factored curvature of LLM Surgeon).
    step: how many neurons go between two evaluations of the costs.
    Equal costs are broken by a permutation drawn from `seed`.
    """
    inverse_FF = torch.cholesky_inverse(_cholesky(problem.gram_FF))
    reader_FD = inverse_FF @ problem.cross_FD
    if metric_DD is not None:
        reader_FD = reader_FD @ _cholesky(metric_DD.double())
    number, width = problem.width, reader_FD.shape[1]
    alive = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
    joint = torch.cat([reader_FD, inverse_FF], dim=1)  # updated together: [W | H⁻¹]
    order, costs = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.float64)]
    while len(alive) > until:
        cost = 0.5 * joint[alive, :width].square().sum(1) / joint[alive, width + alive]
        ranking = cost.argsort(stable=True)
        gone_positions = ranking[: min(step, len(alive) - until)]
        gone = alive[gone_positions]
        block = joint[gone][:, width + gone]
        solved = torch.linalg.solve(block, joint[gone])
        exact = 0.5 * (joint[gone, :width] * solved[:, :width]).sum()
        share = cost[gone_positions] / cost[gone_positions].sum().clamp_min(1e-300)
        order.append(gone)
        costs.append(exact * share)
        joint -= joint[:, width + gone] @ solved
        alive = alive[~torch.isin(torch.arange(len(alive)), gone_positions)]
    return Elimination(torch.cat(order), torch.cat(costs), alive.sort().values)


def _cholesky(matrix: Tensor) -> Tensor:
    return torch.linalg.cholesky(matrix)
