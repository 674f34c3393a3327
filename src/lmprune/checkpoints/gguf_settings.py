"""What is left of a GGUF file's hyper-parameters while its config is being made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..runtimes.gguf_file import GGUFFile


class Settings:
    """left: those that nobody has taken yet, without the architecture's name before them."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.left = file, file.settings()

    def take(self, key: str, default: Any = None) -> Any:
        return self.left.pop(key, default)

    def number(self, key: str, default: Any = None) -> Any:
        """Of a key that may have a value for each layer. Raises: UserError where they differ."""
        found = self.take(key, default)
        if not isinstance(found, Sequence) or isinstance(found, str):
            return found
        if len(set(found)) != 1:
            raise self.refused(key, "which differs between layers, as only feed_forward_length may")
        return found[0]

    def refused(self, key: str, why: str) -> UserError:
        value = str(self.file.settings()[key])
        shown = value if len(value) < 40 else value[:37] + "..."
        return UserError(f"{self.file.path} has {self.file.arch}.{key} = {shown}, {why}; start from its safetensors")


def tidy(value: Any) -> Any:
    """A float32 as the shortest decimal that is the same float32: 1e-05, as its config said."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
