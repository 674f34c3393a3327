"""Text read forwards and backwards through a model that is left as it was found, whole or block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..checkpoints.rooms import scratch
from ..precision import precise
from ..progress import Progress
from ..sites.pages import pages_of
from ..sites.place import Place
from ..sites.walk import Blocks


class Observer(Protocol):
    """Adds up what the units of a site do while batches pass."""

    @property
    def site(self) -> Place: ...
    def attach(self, stack: ExitStack) -> None:
        """Put hooks in place, until the stack ends."""
        ...

    def end_batch(self) -> None:
        """A batch has been through the site, backwards too if it goes back."""
        ...


def read(
    model: nn.Module,
    observers: Sequence[Observer],
    batches: Sequence[Tensor],
    *,
    gradients: bool,
    progress: Progress | None = None,
) -> None:
    """Let the model read the batches (B, T), backwards too where gradients are wanted, under the observers' eyes.

    A model whose blocks are not all in memory reads them block by block, each with all batches before the next.
    """

    def attach(stack: ExitStack) -> None:
        for observer in observers:
            observer.attach(stack)

    def end_batch(layer: int | None = None) -> None:
        for observer in observers:
            if layer in (None, observer.site.address.layer):
                observer.end_batch()

    if (pages := pages_of(model)) is not None:
        blocks = Blocks(model, pages.blocks)
        if gradients:
            backward_by_blocks(blocks, batches, attach, end_batch, progress)
        else:
            last = max(observer.site.address.layer for observer in observers)
            _forward_by_blocks(blocks, batches, attach, end_batch, last + 1, progress)
        return
    done = 0
    with ExitStack() as stack:
        attach(stack)
        if gradients:
            stack.enter_context(gradients_from_embeddings(model))
        for batch_BT in batches:
            if gradients:
                backward(model, batch_BT)
            else:  # the trunk alone: the output embedding is a large part of a small model's time
                getattr(model, "base_model", model)(batch_BT, use_cache=False)
            end_batch()
            done += len(batch_BT)
            if progress:
                progress(done, sum(map(len, batches)))


def _forward_by_blocks(
    blocks: Blocks,
    batches: Sequence[Tensor],
    watch: Callable[[ExitStack], None],
    after: Callable[[int], None],
    number: int,
    progress: Progress | None,
) -> None:
    """Through the first `number` of the blocks; see `backward_by_blocks`."""
    hidden = [blocks.inputs(batch_BT) for batch_BT in batches]
    with ExitStack() as stack:
        watch(stack)
        for layer in range(number):
            for i, states_BTD in enumerate(hidden):
                hidden[i] = blocks.run(layer, states_BTD)
                after(layer)
            if progress:
                progress(layer + 1, number)


def backward(model: nn.Module, batch_BT: Tensor) -> None:
    """One forward and backward pass of Σ_b L_b, L_b the mean next-token cross-entropy of sequence b."""
    logits_BTV = model(batch_BT, use_cache=False).logits
    logits_BTV.backward(loss_gradient(logits_BTV.detach(), batch_BT))


def backward_by_blocks(
    blocks: Blocks,
    batches: Sequence[Tensor],
    watch: Callable[[ExitStack], None],
    after: Callable[[int], None] = lambda _layer: None,
    progress: Progress | None = None,
) -> None:
    """`backward` of each batch, block by block: every block is run once forwards, then, from the last to the first, for
    each batch forwards and backwards. For a model whose blocks are not all in memory.

    What enters each block lies on the disk meanwhile. watch: puts hooks in place for the way back, in which each block
    sees each batch once. after: is called with the block's number when a batch has been through it.
    """
    with scratch("inputs") as folder:
        files = [folder / f"{layer}.safetensors" for layer in range(len(blocks.blocks))]
        hidden = [blocks.inputs(batch_BT) for batch_BT in batches]
        for layer, file in enumerate(files):
            save_file({str(i): states_BTD.contiguous() for i, states_BTD in enumerate(hidden)}, file)
            hidden = [blocks.run(layer, states_BTD) for states_BTD in hidden]
        grads: list[Tensor] = []
        for states_BTD, batch_BT in zip(hidden, batches, strict=True):
            leaf_BTD = states_BTD.requires_grad_()
            logits_BTV = blocks.head(leaf_BTD, batch_BT)
            logits_BTV.backward(loss_gradient(logits_BTV.detach(), batch_BT))
            assert leaf_BTD.grad is not None
            grads.append(leaf_BTD.grad)
        with ExitStack() as stack:
            watch(stack)
            for layer, file in reversed([*enumerate(files)]):
                entered = load_file(file)
                file.unlink()
                for i in range(len(batches)):
                    leaf_BTD = entered[str(i)].to(grads[i].device).requires_grad_()
                    blocks.through(layer, leaf_BTD).backward(grads[i])
                    assert leaf_BTD.grad is not None
                    grads[i] = leaf_BTD.grad
                    after(layer)
                if progress:
                    progress(len(files) - layer, len(files))


def loss_gradient(logits_BTV: Tensor, input_ids_BT: Tensor) -> Tensor:
    """∂(Σ_b L_b)/∂logits, (B, T, V), L_b the mean next-token cross-entropy of sequence b.

    Written out, (softmax - one-hot) / (T - 1), because autograd's way holds four copies of the logits.
    """
    grad_BTV = logits_BTV.softmax(-1, dtype=precise(logits_BTV))
    targets = input_ids_BT[:, 1:, None]
    grad_BTV[:, :-1].scatter_add_(2, targets, grad_BTV.new_full((1,), -1.0).expand(targets.shape))
    grad_BTV[:, -1] = 0
    return grad_BTV.div_(input_ids_BT.shape[1] - 1).to(logits_BTV.dtype)


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
