"""Token ids of whole large texts, kept on disk: a second run on WikiText-103 does not tokenise it again.

A file's name is a digest of the tokenizer and of the text, so it can't be taken for another's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints.writing import written_aside
from ..errors import UserError
from ..foreign import reading

#: characters from which on a text is worth a file
LARGE = 2**20


def cached(tokenizer: Any, documents: Sequence[str], encode: Callable[[], Sequence[int]]) -> Tensor:
    """(N,) int64: what `encode` returns, the tokens of all the documents one after the other, computed at most once.

    Small texts, and tokenizers in pure Python, whose settings can't be told apart, are not kept.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or sum(map(len, documents)) < LARGE:
        return torch.tensor(encode(), dtype=torch.int64)
    digest = hashlib.sha256(backend.to_str().encode())
    for document in documents:
        digest.update(len(document).to_bytes(8, "little") + document.encode())
    file = folder() / f"{digest.hexdigest()[:32]}.safetensors"
    try:
        return _read(file)
    except UserError:  # it is not there yet, or damaged
        ids = torch.tensor(encode(), dtype=torch.int64)
    # a disk that is full or read-only only costs the next run its time
    with suppress(UserError), written_aside(file, folder=False) as aside:
        save_file({"ids": ids.int()}, aside, {"sha256": _digest(ids.int())})
    return ids


def _read(file: Path) -> Tensor:
    """Raises: UserError for what is not, to the bit, what was written there."""
    with reading(f"can't read {file}"), safe_open(file, "pt") as found:
        ids = found.get_tensor("ids")
        if ids.dtype != torch.int32 or ids.ndim != 1 or found.metadata()["sha256"] != _digest(ids):
            raise UserError(f"{file} is damaged")
        return ids.long()


def _digest(ids_N: Tensor) -> str:
    return hashlib.sha256(ids_N.numpy().data).hexdigest()


def folder() -> Path:
    """$XDG_CACHE_HOME/lmprune/tokens, as for other programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmprune" / "tokens"
