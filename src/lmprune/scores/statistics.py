"""What is seen of each neuron while the model reads text: streaming sums at the seam, the input of `down`.

Axes: B sequences of a batch, T tokens of a sequence, N tokens, D model width, F neurons of a layer, V vocabulary.
Everything is observed from outside, through hooks that are gone afterwards; the model is left as it was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..precision import in_float64, precise
from ..processes import Share
from ..progress import Progress
from ..sites.address import SEAM_KINDS, Kind
from ..sites.expert_neurons import ExpertNeurons
from ..sites.pages import here
from ..sites.place import Place
from ..sites.site import Site, Writer
from .passes import read, undisturbed
from .routing import ROUTING, RoutingObserver

#: statistics that a forward pass gives, and those that need the loss's gradient too
FORWARD = frozenset({"sum_h", "sum_h2", "mean_abs_sq", "norm_per_sequence"})
GRADIENT = frozenset({"taylor", "fisher", "sensitivity", "weight_taylor"})
STATISTICS = FORWARD | GRADIENT | ROUTING


@dataclass(frozen=True)
class SeamStatistics:
    """Sums over the text at one seam, fp64 on the CPU, or None where it was not asked for: one an input of the seam,
    (F,), or one a unit, (U,). For neurons, runs of one input, that is the same.

    `h` is what enters the reader; `g = ∂L/∂h` with L the mean next-token loss of one sequence.

    sum_h, sum_h2 (F,): Σ_n h and Σ_n h².
    mean_abs_sq (F,): Σ_sequences (mean_n |h|)².
    norm_per_sequence (F,): Σ_sequences sqrt(Σ_n h²).
    taylor (U,): Σ_sequences |Σ_n h·g|, h·g summed over the unit's run: the first order of removing the unit.
    fisher (U,): Σ_n (h·g)², likewise.
    sensitivity (U,): Σ_sequences |Σ_θ θ·∂L/∂θ| over the unit's writer rows and biases and reader column.
    weight_taylor (U,): Σ_θ |θ · Σ_sequences ∂L/∂θ| over the unit's weights without biases (LLM-Pruner, Torch-Pruning).
    """

    num_tokens: int = 0
    num_sequences: int = 0
    sum_h: Tensor | None = None
    sum_h2: Tensor | None = None
    mean_abs_sq: Tensor | None = None
    norm_per_sequence: Tensor | None = None
    taylor: Tensor | None = None
    fisher: Tensor | None = None
    sensitivity: Tensor | None = None
    weight_taylor: Tensor | None = None

    def total(self, name: str) -> Tensor:
        """The sum `name` (F,) itself."""
        value = getattr(self, name)
        assert value is not None, f"{name} was not collected; add it to `needs`"
        return value

    def per_token(self, name: str) -> Tensor:
        """(F,): the sum `name` over the number of tokens."""
        return self.total(name) / self.num_tokens

    def per_sequence(self, name: str) -> Tensor:
        """(F,): the sum `name` over the number of sequences."""
        return self.total(name) / self.num_sequences

    def variance(self) -> Tensor:
        """(F,): the variance of h over tokens; needs sum_h and sum_h2."""
        return (self.per_token("sum_h2") - self.per_token("sum_h").square()).clamp_min(0)


def collect(
    model: nn.Module,
    sites: Sequence[Place],
    input_ids: Tensor,
    *,
    needs: frozenset[str],
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[Any]:
    """Let the model read `input_ids` and sum up what each site's units do: SeamStatistics, or what OBSERVERS says.

    input_ids: (sequences, T) int64, no padding. needs: names of the statistics' fields.
    batch_size: sequences read at once, which changes speed and memory but not the sums; by default 4, or 1 where a
    gradient is needed, since all activations of a batch are then in memory. (`weight_taylor` adds one fp32 copy of the
    FFN weights.) Masks attached to the seam are respected: `h` is then the masked output.
    Raises: UserError where a sum is not finite, or where there is too little text.
    """
    assert needs <= STATISTICS, f"unknown statistics {sorted(needs - STATISTICS)}"
    gradients = bool(needs & GRADIENT)
    if input_ids.ndim != 2 or len(input_ids) == 0 or input_ids.shape[1] < 1 + gradients:
        raise UserError(
            f"calibration tokens of shape {tuple(input_ids.shape)} are too few: at least one sequence of "
            f"{1 + gradients} tokens is needed"
        )
    num_sequences, seq_len = input_ids.shape
    observers = [OBSERVERS[site.address.kind](site, needs, seq_len) for site in sites]
    if any(site.address.kind == "expert_neurons" for site in sites):
        batch_size = 1  # which of an expert's tokens are of one sequence is seen no other way
    device = next(model.parameters()).device
    share = Share(input_ids, whole=any(site.address.kind not in SEAM_KINDS for site in sites))
    batches = [batch.to(device) for batch in share.mine.split(batch_size or (1 if gradients else 4))]
    with undisturbed(model), torch.set_grad_enabled(gradients):
        read(model, observers, batches, gradients=gradients, progress=progress)
    for observer in observers:
        if isinstance(observer, _Observer):
            observer.add_up(share)
    return [observer.result(num_sequences) for observer in observers]


class _Observer:
    """Adds up one layer's statistics as batches pass forward, then backward, through its linears.

    seq_len: tokens of a sequence; None where a batch is one sequence, of which any tokens pass, or none.
    """

    def __init__(self, site: Site, needs: frozenset[str], seq_len: int | None):
        self.site = site
        self.needs = needs
        self.seq_len = seq_len
        self.num_tokens = 0
        self.sums: dict[str, Tensor] = {}
        self.weight_grads: dict[nn.Module, Tensor] = {}  # writer: (its outputs, D), reader: (F, D); Σ_sequences ∂L/∂θ
        self.theta_grad_BU: Tensor | None = None  # this batch's Σ_θ θ·∂L/∂θ of each sequence, as far as it is known

    def attach(self, stack: ExitStack) -> None:
        stack.callback(self.site.reader_linear.register_forward_hook(self._on_reader).remove)
        if self.needs & {"sensitivity", "weight_taylor"}:
            for writer in self.site.made_by:
                stack.callback(writer.linear.register_forward_hook(partial(self._on_writer, writer)).remove)

    def _on_reader(self, reader: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        h = args[0].detach()
        self._on_outputs(self._by_sequence(h))
        if self.needs & {"taylor", "fisher", "sensitivity"}:
            args[0].register_hook(lambda grad: self._on_output_gradients(self._by_sequence(h), self._by_sequence(grad)))
        if "weight_taylor" in self.needs:
            out.register_hook(lambda grad: self._add_weight_grad(reader, _rows(h).T @ _rows(grad)))

    def _on_writer(self, writer: Writer, linear: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        x, z = args[0].detach(), out.detach()  # detached: a hook that held its own tensor would never be freed
        if "sensitivity" in self.needs:
            out.register_hook(
                lambda grad: self._on_writer_gradients(writer, self._by_sequence(z), self._by_sequence(grad))
            )
        if "weight_taylor" in self.needs:
            out.register_hook(lambda grad: self._add_weight_grad(linear, _rows(grad).T @ _rows(x)))

    def _on_outputs(self, h_BTF: Tensor) -> None:
        self.num_tokens += h_BTF.shape[0] * h_BTF.shape[1]
        if "sum_h" in self.needs:
            self._add("sum_h", h_BTF.sum((0, 1)))
        if self.needs & {"sum_h2", "norm_per_sequence"}:
            squares_BF = h_BTF.square().sum(1)
            self._add("sum_h2", squares_BF.sum(0))
            self._add("norm_per_sequence", squares_BF.sqrt().sum(0))
        if "mean_abs_sq" in self.needs:
            self._add("mean_abs_sq", h_BTF.abs().mean(1).square().sum(0))

    def _on_output_gradients(self, h_BTF: Tensor, grad_BTF: Tensor) -> None:
        product_BTU = self._per_unit(h_BTF * grad_BTF)
        self._add("taylor", product_BTU.sum(1).abs().sum(0))
        self._add("fisher", product_BTU.square().sum((0, 1)))
        self._add_theta_grad(product_BTU.sum(1))

    def _on_writer_gradients(self, writer: Writer, z_BTF: Tensor, grad_BTF: Tensor) -> None:
        for run in writer.split((z_BTF * grad_BTF).sum(1), self.site.count, dim=-1):
            self._add_theta_grad(self._per_unit(run))

    def _per_unit(self, values: Tensor) -> Tensor:
        """(…, U): sums over the runs of the units along the last dimension."""
        count = self.site.count
        return values if values.shape[-1] == count else values.unflatten(-1, (count, -1)).sum(-1)

    def _add(self, name: str, value: Tensor) -> None:
        if name in self.needs:
            self.sums[name] = self.sums.get(name, 0) + in_float64(value)

    def _add_theta_grad(self, part_BU: Tensor) -> None:
        self.theta_grad_BU = part_BU if self.theta_grad_BU is None else self.theta_grad_BU + part_BU

    def _add_weight_grad(self, linear: nn.Module, grad: Tensor) -> None:
        self.weight_grads[linear] = self.weight_grads[linear].add_(grad) if linear in self.weight_grads else grad

    def _by_sequence(self, values: Tensor) -> Tensor:
        """(B, T, …), also in families that flatten (B, T, …) to (B·T, …) before the FFN."""
        values = values.to(precise(values))
        return (
            values.flatten(0, -2)[None] if self.seq_len is None else values.reshape(-1, self.seq_len, values.shape[-1])
        )

    def end_batch(self) -> None:
        if self.theta_grad_BU is not None:
            self._add("sensitivity", self.theta_grad_BU.abs().sum(0))
        self.theta_grad_BU = None

    def add_up(self, share: Share) -> None:
        """What the other processes have seen comes in."""
        self.num_tokens = round(share.number(self.num_tokens))
        for name in sorted(self.sums):
            share.total(self.sums[name])
        for grad in self.weight_grads.values():
            share.total(grad)

    def result(self, num_sequences: int) -> SeamStatistics:
        if self.seq_len is None and not self.num_tokens:
            nothing = torch.zeros(self.site.width, dtype=torch.float64)
            return SeamStatistics(1, num_sequences, **dict.fromkeys(self.needs, nothing))
        if self.seq_len is not None and self.num_tokens != num_sequences * self.seq_len:
            raise UserError(f"layer {self.site.layer}: {self.site.what!r} did not see every token; is it the reader?")
        self._with_weights()
        sums = {name: value.cpu() for name, value in self.sums.items()}
        for name, value in sums.items():
            if not value.isfinite().all():
                raise UserError(
                    f"layer {self.site.layer}: {int((~value.isfinite()).sum())} {self.site.address.kind} have NaN or "
                    f"infinite {name}; check the checkpoint's weights, or use a wider dtype (--dtype float32)"
                )
        return SeamStatistics(self.num_tokens, num_sequences, **sums)

    def _with_weights(self) -> None:
        """What the gradients of the weights were added up for, once all of them are there."""
        if not self.weight_grads:
            return
        here((site := self.site).block)
        grads = [run for w in site.made_by for run in w.split(self.weight_grads.pop(w.linear), site.count)]
        grads.append(self.weight_grads.pop(site.reader_linear))
        for weight, grad in zip([*site.writers(), site.reader()], grads, strict=True):
            self._add("weight_taylor", site.per_unit((weight.detach() * grad).abs().sum(1)))

    def state(self) -> dict[str, Tensor]:
        self._with_weights()
        return {"num_tokens": torch.tensor(self.num_tokens), **self.sums}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.sums = {name: values for name, values in state.items() if name != "num_tokens"}
        self.num_tokens = int(state["num_tokens"])


class _OfEachExpert:
    """Adds up the statistics of each expert's neurons, over the tokens that go to it; a batch is one sequence."""

    def __init__(self, site: ExpertNeurons, needs: frozenset[str], _seq_len: int):
        self.site = site
        self.observers = [_Observer(seam, needs, None) for seam in site.seams()]

    def attach(self, stack: ExitStack) -> None:
        seams = self.site.seams()  # anew: they are of the tensors that are there now
        stack.enter_context(self.site.opened(seams))
        for observer, observer.site in zip(self.observers, seams, strict=True):
            observer.attach(stack)

    def end_batch(self) -> None:
        for observer in self.observers:
            observer.end_batch()

    def result(self, num_sequences: int) -> list[SeamStatistics]:
        return [observer.result(num_sequences) for observer in self.observers]

    def state(self) -> dict[str, Tensor]:
        states = enumerate(observer.state() for observer in self.observers)
        return {f"{expert}.{name}": values for expert, state in states for name, values in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for expert, observer in enumerate(self.observers):
            begin = f"{expert}."
            own = {name: values for name, values in state.items() if name.startswith(begin)}
            observer.restore({name.removeprefix(begin): values for name, values in own.items()})


#: what watches the units of a kind
OBSERVERS: Mapping[Kind, Callable[[Any, frozenset[str], int], _Observer | RoutingObserver | _OfEachExpert]] = {
    "expert_neurons": _OfEachExpert,
    "neurons": _Observer,
    "heads": _Observer,
    "experts": RoutingObserver,
}


def _rows(values: Tensor) -> Tensor:  # (N, …) from (B, T, …) or (B·T, …)
    return values.to(precise(values)).flatten(0, -2)
