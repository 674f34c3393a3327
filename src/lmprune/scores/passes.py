"""Text read forwards and backwards through a model that is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def backward(model: nn.Module, batch_BT: Tensor) -> None:
    """One forward and backward pass of Σ_b L_b, L_b the mean next-token cross-entropy of sequence b."""
    logits_BTV = model(batch_BT, use_cache=False).logits
    logits_BTV.backward(loss_gradient(logits_BTV.detach(), batch_BT))


def loss_gradient(logits_BTV: Tensor, input_ids_BT: Tensor) -> Tensor:
    """∂(Σ_b L_b)/∂logits, (B, T, V), L_b the mean next-token cross-entropy of sequence b.

    Written out, (softmax - one-hot) / (T - 1), because autograd's way holds four copies of the logits.
    """
    grad_BTV = logits_BTV.softmax(-1, dtype=precise(logits_BTV))
    targets = input_ids_BT[:, 1:, None]
    grad_BTV[:, :-1].scatter_add_(2, targets, grad_BTV.new_full((1,), -1.0).expand(targets.shape))
    grad_BTV[:, -1] = 0
    return grad_BTV.div_(input_ids_BT.shape[1] - 1).to(logits_BTV.dtype)


def precise(values: Tensor) -> torch.dtype:
    """fp32, or fp64 where the values already are."""
    return torch.promote_types(values.dtype, torch.float32)


@contextmanager
def gradients_from_embeddings(model: nn.Module) -> Iterator[None]:
    """Gradients flow from the embeddings on, so that hooks see them though every parameter is frozen."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    # a clone, because some models go on to change their embeddings in place, which a leaf does not allow
    handle = embeddings.register_forward_hook(lambda _module, _args, output: output.requires_grad_().clone())
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters (no weight gradients), for the length of a `with` block."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)
