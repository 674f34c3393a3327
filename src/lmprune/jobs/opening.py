"""What a command opens before it works: text, tokenizer and model, the quickest to be wrong first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..checkpoints import models
from ..data import TextData, needs_model
from ..data.records import PairData
from ..data.tokens import SAMPLE, check_same
from ..errors import UserError
from ..progress import Teller, silent

Source = TypeVar("Source", TextData, PairData)


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


def open_model(
    terminal: Teller,
    source: str,
    data: str,
    read: Callable[..., Source] | None,
    *,
    data_dir: Path | None = None,
    **how: Any,
) -> tuple[Any, Any, Source | None]:
    """(model, tokenizer, text). The text comes first, as it is the quicker to be wrong, but for what a model writes.

    data, data_dir: what `read` reads. read: `texts.load` but for model and tokenizer; None where no text is needed, and
        a tokenizer only to pass it on.
    """
    models.check_device(how["device"])
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
        model = models.load(source, note=terminal.note, **how)
    if missing is not None:
        terminal.note(f"{missing}; the checkpoint will have none either")
    if read is not None and from_model:
        with terminal.busy("the model writes its own text"):
            text = read(model=model, tokenizer=tokenizer)
    if text is not None:
        for sentence in text.notes:
            terminal.note(sentence)
    return model, tokenizer, text
