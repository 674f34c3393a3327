"""Predictions on disk: written batch by batch, so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.pairs import Item
from ..errors import UserError, shown
from ..foreign import json_file, json_of, misfit, reading
from .decoding import Output

SETTINGS, PREDICTIONS, SCORES = "settings.json", "predictions.jsonl", "scores.json"


class Predictions:
    """Outputs by the index of their item, in memory and, where there is a folder, on disk too."""

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]):
        """folder: new or empty, or begun by an evaluation with the same `settings`: all that the outputs depend on.

        Raises: UserError for other settings, a folder that holds something else, or can't be written.
        """
        self.outputs: dict[int, Output] = {}
        self._folder = folder
        if folder is None:
            return
        check_predictions_folder(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (file := folder / SETTINGS).exists():
                self._resume(folder, json_file(file, "damaged", "choose another --out"), settings)
            else:
                file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"can't write {folder}: {error.strerror}") from error

    def add(self, batch: Mapping[int, Output], items: Sequence[Item]) -> None:
        """Keep one batch, whole."""
        self.outputs |= batch
        if self._folder is not None:
            lines = [json.dumps(_line(i, items[i], output), ensure_ascii=False) + "\n" for i, output in batch.items()]
            with (self._folder / PREDICTIONS).open("a", encoding="utf-8") as file:
                file.write("".join(lines))

    def _resume(self, folder: Path, old: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        if changed := [name for name in settings if settings[name] != old.get(name)]:
            name = changed[0]
            raise UserError(
                f"{folder} has predictions of another evaluation ({name} was {shown(old.get(name))}, "
                f"is {shown(settings[name])}); choose another --out"
            )
        file = folder / PREDICTIONS
        content = file.read_bytes() if file.exists() else b""
        if not content.endswith(b"\n") and content:  # stopped in the middle of writing, perhaps of a character
            file.write_bytes(content := content[: content.rfind(b"\n") + 1])
        with reading(f"{file} is damaged", "choose another --out"):
            for row in map(json_of, content.split(b"\n")[:-1]):
                if misfit(row, {"index": int, "prediction": str, "finished": bool}):
                    raise ValueError("a line of it is no prediction")
                self.outputs[row["index"]] = Output(row["prediction"], row["finished"])


def check_predictions_folder(folder: Path) -> None:
    """Call it before long work. Raises: UserError where `Predictions` could not use the folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder for predictions and scores")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS).exists():
        raise UserError(f"{folder} holds something other than predictions; choose another --out")


def _line(index: int, item: Item, output: Output) -> dict[str, Any]:
    return {
        "index": index,
        "prediction": output.text,
        "references": [reference.strip() for reference in item.references],
        "context": item.context,
        "finished": output.finished,
    }
