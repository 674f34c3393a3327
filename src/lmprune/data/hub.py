"""Text from a data set on the Hugging Face hub, streamed. Code that comes with a data set is never run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .records import Record, Records, pick

#: Text to read for each token wanted: several times what a token covers, so that a random choice stays one.
_CHARACTERS_PER_TOKEN = 20
_LOCAL_FILE = "pass a local .txt or .jsonl file instead"


def parse(source: str) -> tuple[str, str | None] | None:
    """(id, config) of a source that reads `org/name` or `org/name:config`, else None.

    >>> parse("allenai/c4:en")
    ('allenai/c4', 'en')
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", source)
    return None if match is None else (match[1], match[2])


@dataclass(frozen=True)
class Dataset:
    """A data set at one revision, as `find` saw it. split: any that the data set has."""

    name: str
    config: str | None
    split: str
    revision: str
    cure: str

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in order, as they arrive. Raises: UserError for an unknown config or split, or a lost hub."""
        import datasets

        with _explained(self.name, self.cure):
            # datasets >= 4 has no code path that runs a data set's own script
            yield from datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )

    @property
    def provenance(self) -> dict[str, str | int]:
        return {"hub_id": self.name, "config": self.config or "default", "revision": self.revision}


def find(name: str, config: str | None, split: str, *, revision: str | None = None, cure: str = _LOCAL_FILE) -> Dataset:
    """Ask the hub for the data set, once: `load_dataset` would retry for half a minute without a network.

    revision: a branch or commit; None = the main one. cure: what to do instead where the hub can't be reached.
    """
    from huggingface_hub import HfApi

    with _explained(name, cure):
        info = HfApi().dataset_info(name, revision=revision, timeout=10)
    return Dataset(name, config, split, info.sha or revision or "main", cure)


def load(
    name: str, config: str | None, split: str, *, chat_template: bool, num_tokens: int | None, field: str | None = None
) -> Records:
    """Each row's `text` (or `messages` with a chat template), at most as many rows as `num_tokens` calls for.

    field: another column to read.
    """
    dataset = find(name, config, split)
    wanted = characters(num_tokens)
    records: list[Record] = []
    length = 0
    for number, row in enumerate(dataset.rows(), 1):
        record = pick(row, field, chat_template=chat_template, where=f"data set {name}, row {number}")
        records.append(record)
        length += len(record) if isinstance(record, str) else sum(len(message["content"]) for message in record)
        if length >= wanted:
            break
    return Records(f"{name}{f':{config}' if config else ''} {split} (hub)", records, dataset.provenance)


def characters(num_tokens: int | None) -> float:
    """How many characters to read from a stream that may be endless."""
    return float("inf") if num_tokens is None else num_tokens * _CHARACTERS_PER_TOKEN


@contextmanager
def _explained(name: str, cure: str) -> Iterator[None]:
    """Turn what datasets and huggingface_hub raise into one sentence."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    # httpx's HTTPError, wherever this hub version takes it from
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # pyright: ignore[reportPrivateImportUsage]

    try:
        yield
    except (RepositoryNotFoundError, DatasetNotFoundError):
        raise UserError(
            f"no data set {name!r} on the hub, or it is private or gated (then log in with `hf auth login`)"
        ) from None
    except (DatasetsError, ValueError, RuntimeError) as error:  # an unknown config or split, a script, bad files
        raise UserError(f"data set {name!r} can't be read: {_one_line(error)}") from None
    except (HTTPError, OSError) as error:
        raise UserError(f"can't reach the hub for {name!r} ({_one_line(error)}); {cure}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
