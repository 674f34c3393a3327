"""Text read forwards and backwards through a model that is left as it was found, whole or block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from ..checkpoints.journal import Stage, stage_of
from ..checkpoints.shelf import Tensors
from ..checkpoints.states import Numbered, States, listed, states_of
from ..precision import precise
from ..progress import Progress
from ..sites.pages import here, pages_of
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

    def state(self) -> Tensors:
        """What was added up, when all batches have been through the site."""
        ...

    def restore(self, state: Tensors) -> None:
        """Be as an observer was that had this state."""
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

    if (pages := pages_of(model)) is not None:
        _read_by_blocks(Blocks(model, pages.blocks), observers, batches, gradients, progress)
        return
    done = 0
    with ExitStack() as stack:
        for observer in observers:
            observer.attach(stack)
        if gradients:
            stack.enter_context(gradients_from_embeddings(model))
        for batch_BT in batches:
            if gradients:
                backward(model, batch_BT)
            else:  # the trunk alone: the output embedding is a large part of a small model's time
                getattr(model, "base_model", model)(batch_BT, use_cache=False)
            for observer in observers:
                observer.end_batch()
            done += len(batch_BT)
            if progress:
                progress(done, sum(map(len, batches)))


def _read_by_blocks(
    blocks: Blocks,
    observers: Sequence[Observer],
    batches: Sequence[Tensor],
    gradients: bool,
    progress: Progress | None,
) -> None:
    """`read`, each block with all batches before the next; of a run that goes on, the blocks that are left."""
    stage, number = stage_of(blocks.model, "calibration"), len(blocks.blocks)
    done = range(number - stage.done, number) if gradients else range(stage.done)

    def watching(layer: int) -> list[Observer]:
        return [observer for observer in observers if observer.site.address.layer == layer]

    def attach(stack: ExitStack, block: nn.Module) -> None:
        for observer in observers:
            if observer.site.block is block:
                observer.attach(stack)

    def end_batch(layer: int) -> None:
        for observer in watching(layer):
            observer.end_batch()

    def end_block(layer: int) -> None:
        for observer in watching(layer):
            stage.found[str(observer.site.address)] = observer.state()

    for observer in observers:
        if observer.site.address.layer in done:
            observer.restore(stage.found[str(observer.site.address)])
    if gradients:
        backward_by_blocks(blocks, batches, attach, stage, end_batch, end_block, progress)
        return
    last = 1 + max(observer.site.address.layer for observer in observers)
    blocks.learn(batches)
    begin = listed(stage.state, batches[0].device) if stage.state else map(blocks.inputs, batches)
    hidden = states_of(blocks.model, begin)
    for layer in range(stage.done, last):
        with ExitStack() as stack:
            attach(stack, here(blocks.blocks[layer]))
            for i, states_BTD in enumerate(hidden):
                hidden[i] = blocks.run(layer, states_BTD)
                end_batch(layer)
        end_block(layer)
        stage.end(partial(Numbered, {"": hidden}))
        if progress:
            progress(layer + 1, last)


def backward(model: nn.Module, batch_BT: Tensor) -> None:
    """One forward and backward pass of Σ_b L_b, L_b the mean next-token cross-entropy of sequence b."""
    logits_BTV = model(batch_BT, use_cache=False).logits
    logits_BTV.backward(loss_gradient(logits_BTV.detach(), batch_BT))


def backward_by_blocks(
    blocks: Blocks,
    batches: Sequence[Tensor],
    watch: Callable[[ExitStack, nn.Module], None],
    stage: Stage,
    after: Callable[[int], None] = lambda _layer: None,
    ended: Callable[[int], None] = lambda _layer: None,
    progress: Progress | None = None,
) -> None:
    """`backward` of each batch, block by block: every block is run once forwards, then, from the last to the first, for
    each batch forwards and backwards. For a model whose blocks are not all in memory.

    What enters each block lies on the disk meanwhile. watch: puts hooks into a block, which is there by then, for the
    way back, in which it sees each batch once. stage: the way back. after: is called with the block's number when a
    batch has been through it; ended: when all have.
    """
    inputs = stage_of(blocks.model, "inputs").found
    number, device = len(blocks.blocks), batches[0].device
    states = _entering(blocks, batches, inputs, number - stage.done)
    if stage.state:
        del states
        states = states_of(blocks.model, listed(stage.state, device))
    else:
        for i, batch_BT in enumerate(batches):
            states[i] = _gradient(blocks, states[i], batch_BT)
    for layer in reversed(range(number - stage.done)):
        with ExitStack() as stack:
            watch(stack, here(blocks.blocks[layer]))
            for i, states_BTD in enumerate(listed(inputs[str(layer)], device)):
                leaf_BTD = states_BTD.requires_grad_()
                blocks.through(layer, leaf_BTD).backward(states[i])
                assert leaf_BTD.grad is not None
                states[i] = leaf_BTD.grad
                after(layer)
        ended(layer)
        stage.end(partial(Numbered, {"": states}))
        del inputs[str(layer)]
        if progress:
            progress(number - layer, number)


def _entering(blocks: Blocks, batches: Sequence[Tensor], inputs: MutableMapping[str, Tensors], number: int) -> States:
    """What comes out of the first `number` of the blocks; what enters each of them is put into `inputs`, where it is
    not there yet."""
    first = next((layer for layer in range(number) if str(layer) not in inputs), number)
    blocks.learn(batches)
    begin = listed(inputs[str(first - 1)], batches[0].device) if first else map(blocks.inputs, batches)
    hidden = states_of(blocks.model, begin)
    for layer in range(max(first - 1, 0), number):
        if layer >= first:
            inputs[str(layer)] = Numbered({"": hidden})
        for i, states_BTD in enumerate(hidden):
            hidden[i] = blocks.run(layer, states_BTD)
    return hidden


def _gradient(blocks: Blocks, states_BTD: Tensor, batch_BT: Tensor) -> Tensor:
    """Of what comes out of the last block."""
    leaf_BTD = states_BTD.requires_grad_()
    logits_BTV = blocks.head(leaf_BTD, batch_BT)
    logits_BTV.backward(loss_gradient(logits_BTV.detach(), batch_BT))
    assert leaf_BTD.grad is not None
    return leaf_BTD.grad


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
    """Evaluation mode and frozen parameters (no weight gradients), for the length of a `with` block.

    What trained before trains again afterwards, though a cut has put another parameter in its place.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(m, name) for m, _ in modes for name, p in m.named_parameters(recurse=False) if p.requires_grad]
    try:
        model.eval()
        for module, name in trained:
            module.get_parameter(name).requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, name in trained:
            module.get_parameter(name).requires_grad_(True)
