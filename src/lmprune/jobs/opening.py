"""What a command opens before it works: text, tokenizer and model, the quickest to be wrong first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

from ..checkpoints import devices, models
from ..checkpoints.sources import resolve
from ..data import TextData, needs_model
from ..data.records import PairData
from ..data.tokens import SAMPLE, check_same
from ..errors import UserError
from ..progress import Teller, silent

#: memory beside the weights, as their multiple: what is computed with them
_OVERHEAD = 1.25
#: bytes that a stored one is computed with at most: of float16 or, in GGUF, of two bits, as float64
_MOST_COMPUTED = {False: 4, True: 32}

Data = TypeVar("Data", TextData, PairData)


def check_tokenizer(
    terminal: Teller, tokenizer: Any, source: str, text: TextData, whose: str, trust_remote_code: bool
) -> None:
    """Raises: UserError where another model that is to read the same tokens has a tokenizer with others.

    source: that model; whose: what a message calls it. One without a tokenizer is told of.
    """
    try:
        other = models.load_tokenizer(source, trust_remote_code=trust_remote_code, note=silent)
    except UserError:
        terminal.note(f"{whose} has no tokenizer; that it was trained on these tokens is taken for granted")
        return
    check_same(tokenizer, other, next(filter(None, text.documents))[:SAMPLE], whose)


def check_streams(stream: bool, ffn: str | None) -> None:
    """Raises: UserError for what can't be done to a model that is read block by block."""
    if stream and ffn is not None:
        raise UserError(
            "--ffn is proved on the whole model, and --stream leaves it in its files; leave out one of them"
        )


def check_trains(stream: bool) -> None:
    """Raises: UserError for a training of a model that is read block by block."""
    if stream:
        raise UserError("--stream prunes at once: a training needs the whole model in memory; leave out one of the two")


def one_device(device: str) -> str:
    """Where a training's model is: on one device, also where there are several accelerators."""
    return str(devices.check_device(device))


def streaming(terminal: Teller, source: str, how: Mapping[str, Any]) -> dict[str, Any]:
    """`how` to load the model; where it is streamed by itself, because memory is short, that is said."""
    about = how["dtype"], how["trust_remote_code"], how.get("device", "cpu")
    if how.get("stream") is False and not fits(source, *about):
        terminal.note(f"{source} does not fit into memory as a whole: its blocks are read one by one")
        return {**how, "stream": True}
    return {**how}


def fits(source: str, dtype: str, trust_remote_code: bool, device: str) -> bool:
    """Whether the model may be loaded as a whole; one that is not downloaded yet can't be read otherwise."""
    found = resolve(source)
    if found.on_hub:
        return True
    available, spread = psutil.virtual_memory().available, devices.spreads(device)
    files = [Path(str(found))] if found.gguf else Path(found.place).glob("*.safetensors")
    stored = sum(file.stat().st_size for file in files)
    if not spread and _MOST_COMPUTED[bool(found.gguf)] * stored < available:
        return True
    skeleton = models.skeleton(source, trust_remote_code=trust_remote_code)
    kind = skeleton.dtype if dtype == "auto" else models.DTYPES[dtype]
    if spread and devices.places(skeleton, kind.itemsize) is None:
        return False
    return _OVERHEAD * sum(p.numel() for p in skeleton.parameters()) * kind.itemsize < available


def open_model(
    terminal: Teller,
    source: str,
    data: str,
    read: Callable[..., Data] | None,
    *,
    data_dir: Path | None = None,
    **how: Any,
) -> tuple[Any, Any, Data | None]:
    """(model, tokenizer, text). The text comes first, as it is the quicker to be wrong, but for what a model writes.

    data, data_dir: what `read` reads. read: `texts.load` but for model and tokenizer; None where no text is needed, and
        a tokenizer only to pass it on.
    """
    devices.check_device(how["device"])
    models.check_dtype(how["dtype"])
    tokenizer = text = None
    try:
        tokenizer = models.load_tokenizer(source, trust_remote_code=how["trust_remote_code"], note=terminal.note)
    except UserError as error:
        if read is not None:
            raise
        missing = error
    else:
        missing = None
    from_model = read is not None and needs_model(data, data_dir)
    if read is not None and not from_model:
        with terminal.busy(f"reading {data}"):
            text = read(tokenizer=tokenizer)
    with terminal.busy(f"loading {source}"):
        model = models.load(source, note=terminal.note, **streaming(terminal, source, how))
    if missing is not None:
        terminal.note(f"{missing}; the checkpoint will have none either")
    if read is not None and from_model:
        with terminal.busy("the model writes its own text"):
            text = read(model=model, tokenizer=tokenizer)
    if text is not None:
        for sentence in text.notes:
            terminal.note(sentence)
    return model, tokenizer, text
