"""Optimal-brain-surgeon selection and least-squares refit of one site: pure linear algebra, no model.

X (N, F) is what enters the reader, Y (N, D) what it should put out, W0 (F, D) the dense reader. A unit is a run of
`size` rows of the reader; a neuron is a run of one. All in float64; the statistics come in as mean second moments, so N
does not appear here. Sources: Optimal Brain Surgeon (1993); ZipLM (NeurIPS 2023) for runs of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sites.runs import runs_of


@dataclass(frozen=True)
class LeastSquares:
    """Minimise E‖x·W - y‖² + Σ_j δ_j ‖W_j - W0_j‖²: least squares with a ridge towards the dense reader.

    gram_FF: E[x xᵀ] + diag(δ). cross_FD: E[x yᵀ] + diag(δ) W0. pinned: how many of the last rows are never removed
    and carry no ridge: a bias is one more row, with x = 1. size: rows of a unit.
    drifted: whether y differs from what the dense reader gives.
    """

    gram_FF: Tensor
    cross_FD: Tensor
    pinned: int = 0
    size: int = 1
    drifted: bool = False

    @classmethod
    def of(
        cls, moment_FF: Tensor, cross_FD: Tensor, reader_FD: Tensor, *,
        rel_damp: float, per_neuron: bool = False, pinned: int = 0, size: int = 1,
    ):  # fmt: skip
        """moment_FF: E[x xᵀ]; cross_FD: E[x yᵀ]; reader_FD: W0, each with its `pinned` last rows. The moments become
        the problem's where they are float64: a layer's may be a gigabyte.

        rel_damp: ρ. per_neuron: the ridge of input j is ρ · E[x_j²], as if every neuron's output were multiplied by
        noise of variance ρ, so that no refit can rest on neurons cancelling each other out; otherwise it is one δ for
        all, ρ · mean_j E[x_j²]. It grows tenfold, as often as it takes, where H is not positive definite otherwise.
        """
        number = len(moment_FF) - pinned
        powers_F = moment_FF.diagonal()[:number].double()
        mean = powers_F.mean().clamp_min(1e-30)
        ridge_F = torch.zeros(len(moment_FF), dtype=torch.float64, device=moment_FF.device)
        ridge_F[:number] = rel_damp * (powers_F.clamp_min(1e-6 * mean) if per_neuron else mean)
        gram_FF = moment_FF.double()
        gram_FF.diagonal().add_(ridge_F)
        while torch.linalg.cholesky_ex(gram_FF).info:  # the moments' fp32 rounding can outweigh a small ridge
            gram_FF.diagonal().add_(9 * ridge_F)
            ridge_F *= 10
        return cls(gram_FF, cross_FD.double().addcmul(ridge_F[:, None], reader_FD.double()), pinned, size)

    @property
    def width(self) -> int:
        """F, without the pinned rows."""
        return len(self.gram_FF) - self.pinned

    @property
    def count(self) -> int:
        """U, the number of units."""
        return self.width // self.size

    def rows(self, units: Tensor) -> Tensor:
        """The rows of `units` (K,), (K · size,), where the problem is."""
        return runs_of(units.to(self.gram_FF.device), self.size)

    def refit(self, kept: Tensor) -> Tensor:
        """(H_KK)⁻¹ G_K: the exact least-squares reader on the kept units, (K · size + pinned, D)."""
        pinned = torch.arange(self.width, self.width + self.pinned, device=self.gram_FF.device)
        rows = torch.cat([self.rows(kept), pinned])
        return torch.cholesky_solve(self.cross_FD[rows], torch.linalg.cholesky(self.gram_FF[rows[:, None], rows]))

    def inverse(self) -> Tensor:
        """H⁻¹ (F, F), in the memory of the factor that it is made of."""
        factor_FF = torch.linalg.cholesky(self.gram_FF)
        return torch.cholesky_inverse(factor_FF, out=factor_FF)

    def masked(self, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same for `Site.set_reader`, float32: a whole reader (F, D), zero where units went, and the bias (D,).
        Where all went, so does the bias."""
        full = self.cross_FD.new_zeros(self.width + self.pinned, self.cross_FD.shape[1], dtype=torch.float32)
        if len(kept):
            refitted, rows = self.refit(kept).float(), self.rows(kept)
            full[rows], full[self.width :] = refitted[: len(rows)], refitted[len(rows) :]
        return full[: self.width], full[self.width] if self.pinned else None


@dataclass(frozen=True)
class Elimination:
    """The order in which units go, and what each removal costs.

    gone: indices of the removed units, the first to go first. cost: float64, the increase of the layer's error (half
    the squared output error a token, under the metric) that each removal added; its cumulative sum is the error curve.
    kept: sorted indices of the units that stay.
    """

    gone: Tensor
    cost: Tensor
    kept: Tensor

    def scores(self) -> Tensor:
        """(U,), larger = keep: the cost at which a unit goes, never less than what went before it; ∞ if it stays."""
        scores_U = torch.full((len(self.gone) + len(self.kept),), torch.inf, dtype=torch.float64)
        scores_U[self.gone] = self.cost.cummax(0).values
        return scores_U


def eliminate(
    problem: LeastSquares, *, until: int, metric_DD: Tensor | None = None, step: int = 32, seed: int = 0
) -> Elimination:
    """Remove units, the cheapest first, until `until` are left; every removal is compensated by the rest.

    cost_J = ½ tr(W_Jᵀ ((H⁻¹)_JJ)⁻¹ W_J) for the run J of a unit's rows, which for a neuron is ½ ‖W_j‖² / (H⁻¹)_jj; W is
    measured in the metric C (identity if None): how much the end loss cares about each direction of the output, e.g.
    E[g gᵀ] of the gradients g there (the Kronecker-factored curvature of LLM Surgeon).
    step: how many units go between two updates of the whole layer. In between, removals are exact within the
    2·step cheapest candidates, so that of two units that can stand in for each other only one goes.
    Equal costs are broken by a permutation drawn from `seed`. The last unit of all takes the pinned rows along.
    """
    inverse_FF = problem.inverse()
    reader_FD = inverse_FF @ problem.cross_FD
    if metric_DD is not None:
        reader_FD = reader_FD @ torch.linalg.cholesky(metric_DD.to(reader_FD))
    alive = torch.randperm(problem.count, generator=torch.Generator().manual_seed(seed)).to(reader_FD.device)
    order, costs = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.float64)]
    while len(alive) > until:
        cost_A = _costs(problem, alive, reader_FD, inverse_FF)
        pool = alive[cost_A.argsort(stable=True)[: 2 * step]]
        rows = problem.rows(pool)
        candidates_PD = reader_FD[rows]
        picked, cost = _cheapest(  # on the processor: it is small, and takes a step for each unit
            (candidates_PD @ candidates_PD.T).cpu(), inverse_FF[rows][:, rows].cpu(),
            size=problem.size, number=min(step, len(alive) - until, len(pool)),
        )  # fmt: skip
        gone = pool[picked.to(pool.device)]
        rows = problem.rows(gone)
        compensation_FJ = inverse_FF[:, rows] @ torch.linalg.inv(inverse_FF[rows][:, rows])
        reader_FD.addmm_(compensation_FJ, reader_FD[rows], alpha=-1)
        inverse_FF.addmm_(compensation_FJ, inverse_FF[rows], alpha=-1)
        alive = alive[~torch.isin(alive, gone)]
        order.append(gone.cpu())
        costs.append(cost)
    if not until and problem.pinned:
        bias_PD, own_PP = reader_FD[problem.width :], inverse_FF[problem.width :, problem.width :]
        costs[-1][-1] += 0.5 * (bias_PD * torch.linalg.solve(own_PP, bias_PD)).sum().cpu()
    return Elimination(torch.cat(order), torch.cat(costs), alive.cpu().sort().values)


def _costs(problem: LeastSquares, alive: Tensor, reader_FD: Tensor, inverse_FF: Tensor) -> Tensor:
    """What the removal of each unit of `alive` (A,) alone would cost now, (A,)."""
    if problem.size == 1:
        return (0.5 * torch.linalg.vector_norm(reader_FD, dim=1).square() / inverse_FF.diagonal())[alive]
    rows_AS = problem.rows(alive).view(len(alive), problem.size)
    readers_ASD, inverse_ASS = reader_FD[rows_AS], inverse_FF[rows_AS[:, :, None], rows_AS[:, None, :]]
    return 0.5 * (readers_ASD * torch.linalg.solve(inverse_ASS, readers_ASD)).sum((1, 2))


def replaceable(problem: LeastSquares) -> Tensor:
    """How far the other units could stand in for each one that goes alone, (U,) in [0, 1].

    1 - the error that is left when the rest is refitted, over the error where nothing makes up for it: 1 = nothing is
    lost, 0 = no other unit helps.
    """
    inverse_FF = problem.inverse()
    reader_FD = inverse_FF @ problem.cross_FD
    refitted_U = _costs(problem, torch.arange(problem.count, device=reader_FD.device), reader_FD, inverse_FF)
    rows_US = problem.rows(torch.arange(problem.count)).view(problem.count, problem.size)
    gram_USS = problem.gram_FF[rows_US[:, :, None], rows_US[:, None, :]]
    alone_U = 0.5 * (reader_FD[rows_US] * (gram_USS @ reader_FD[rows_US])).sum((1, 2))
    return (1 - refitted_U / alone_U.clamp_min(1e-300)).clamp(0, 1).cpu()


def _cheapest(readers_PP: Tensor, inverse_PP: Tensor, *, size: int, number: int) -> tuple[Tensor, Tensor]:
    """One-at-a-time elimination among a pool of candidates: positions in the pool, and what each removal cost.

    readers_PP: inner products of their rows of W, all that the costs need. inverse_PP: their part of H⁻¹.
    """
    left = torch.ones(len(inverse_PP) // size, dtype=torch.bool)
    one_JJ = torch.eye(size, dtype=inverse_PP.dtype)
    picked, costs = [], []
    for _ in range(number):
        cost_U = _pool_costs(readers_PP, inverse_PP, size).where(left, torch.inf)
        unit = int(cost_U.argmin())
        picked.append(unit)
        costs.append(cost_U[unit])
        left[unit] = False
        run = slice(unit * size, (unit + 1) * size)
        # row k of W becomes W_k - share_k W_J
        mine_PJ, own_JJ = inverse_PP[:, run], inverse_PP[run, run]
        share_PJ = mine_PJ / own_JJ if size == 1 else torch.linalg.solve(own_JJ, mine_PJ, left=False)
        with_it_JP = readers_PP[run] - 0.5 * readers_PP[run, run] @ share_PJ.T
        readers_PP = readers_PP - share_PJ @ with_it_JP - with_it_JP.T @ share_PJ.T
        inverse_PP = inverse_PP - share_PJ @ inverse_PP[run]
        inverse_PP[run, run] = one_JJ  # what is left there is rounding, not a cost
    return torch.tensor(picked), torch.stack(costs)


def _pool_costs(readers_PP: Tensor, inverse_PP: Tensor, size: int) -> Tensor:
    """½ tr(((H⁻¹)_JJ)⁻¹ W_J W_Jᵀ) of each unit of the pool."""
    if size == 1:
        return 0.5 * readers_PP.diagonal() / inverse_PP.diagonal()
    solved_UJJ = torch.linalg.solve(_blocks(inverse_PP, size), _blocks(readers_PP, size))
    return 0.5 * solved_UJJ.diagonal(dim1=1, dim2=2).sum(1)


def _blocks(matrix_PP: Tensor, size: int) -> Tensor:
    """The blocks on the diagonal, (U, size, size)."""
    number = len(matrix_PP) // size
    return matrix_PP.view(number, size, number, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
