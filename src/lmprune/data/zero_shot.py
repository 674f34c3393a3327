"""The zero-shot tasks that the field reports: where lm-eval defines each, and their items in a folder of JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown
from . import files, hub
from .records import names

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class ZeroShot:
    """definition: lm-eval's file, in its folder of tasks. hub_id: where that has its data.

    fields: what a row of a local file must have. item: such a row as the hub has it; fails where it is no item of the
    task (`read` says so).
    """

    definition: str
    hub_id: str
    fields: tuple[str, ...]
    item: Callable[[Fields], dict[str, Any]]


def _labelled(row: Fields) -> dict[str, Any]:
    texts, labels = list(row["choices"]["text"]), list(row["choices"]["label"])
    _hold(len(texts) == len(labels) > 0 and row["answerKey"].strip() in labels)
    return {**_texts(row, *(row.keys() - {"choices"})), "choices": {"text": texts, "label": labels}}


def _hellaswag(row: Fields) -> dict[str, Any]:
    endings, label = list(row["endings"]), int(row["label"])
    _hold(0 <= label < len(endings) and all(isinstance(text, str) for text in endings))
    return {**_texts(row, "ctx_a", "ctx_b", "activity_label"), "endings": endings, "label": str(label)}


def _piqa(row: Fields) -> dict[str, Any]:
    return {**_texts(row, "goal", "sol1", "sol2"), "label": (0, 1).index(row["label"])}


def _winogrande(row: Fields) -> dict[str, Any]:
    _hold("_" in row["sentence"] and row["answer"] in ("1", "2"))
    return _texts(row, "sentence", "option1", "option2") | {"answer": row["answer"]}


def _boolq(row: Fields) -> dict[str, Any]:
    return {**_texts(row, "question", "passage"), "label": (False, True).index(row["answer"])}


def _sciq(row: Fields) -> dict[str, Any]:
    return _texts(row, *_SCIQ)


def _lambada(row: Fields) -> dict[str, Any]:
    """lm-eval cuts the text at its last space again."""
    _texts(row, "context", "continuation")
    _hold(row["continuation"].strip() != "" and " " not in row["continuation"])
    return {"text": f"{row['context']} {row['continuation']}"}


def _texts(row: Fields, *fields: str) -> dict[str, Any]:
    _hold(all(isinstance(row[field], str) for field in fields))
    return {field: row[field] for field in fields}


def _hold(condition: bool) -> None:
    if not condition:
        raise ValueError


_ARC = ("question", "choices", "answerKey")
_SCIQ = ("question", "support", "distractor1", "distractor2", "distractor3", "correct_answer")

#: by the names that the files in a folder have, in the order in which reports list them
ZERO_SHOT = {
    "arc_easy": ZeroShot("arc/arc_easy.yaml", "allenai/ai2_arc", _ARC, _labelled),
    "arc_challenge": ZeroShot("arc/arc_challenge.yaml", "allenai/ai2_arc", _ARC, _labelled),
    "hellaswag": ZeroShot(
        "hellaswag/hellaswag.yaml", "Rowan/hellaswag", ("ctx_a", "ctx_b", "activity_label", "endings", "label"),
        _hellaswag,
    ),
    "piqa": ZeroShot("piqa/piqa.yaml", "baber/piqa", ("goal", "sol1", "sol2", "label"), _piqa),
    "winogrande": ZeroShot(
        "winogrande/default.yaml", "allenai/winogrande", ("sentence", "option1", "option2", "answer"), _winogrande
    ),
    "boolq": ZeroShot("super_glue/boolq/default.yaml", "aps/super_glue", ("question", "passage", "answer"), _boolq),
    "openbookqa": ZeroShot(
        "openbookqa/openbookqa.yaml", "allenai/openbookqa", ("question_stem", "choices", "answerKey"), _labelled
    ),
    "sciq": ZeroShot("sciq/sciq.yaml", "allenai/sciq", _SCIQ, _sciq),
    "lambada": ZeroShot(
        "lambada/lambada_openai.yaml", "EleutherAI/lambada_openai", ("context", "continuation"), _lambada
    ),
}  # fmt: skip


def parse(names: str) -> list[str]:
    """The tasks of `--tasks a,b`. Raises: UserError for one that there is not, or that is named twice."""
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in ZERO_SHOT:
            raise unknown("zero-shot task", name, ZERO_SHOT)
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise UserError(f"--tasks names {twice} twice; name each task once")
    return found


def check(names: Sequence[str], data_dir: Path | None) -> None:
    """Raises: UserError where a task's file is not in the folder, or the hub, without one, can't be reached."""
    for name in names:
        if data_dir is None:
            hub.find(ZERO_SHOT[name].hub_id, None, "validation", cure=_cure(name))
        else:
            file_of(name, data_dir)


def file_of(name: str, data_dir: Path) -> Path:
    """Raises: UserError where it is not there."""
    path = data_dir / f"{name}.jsonl"
    if not path.is_file():
        raise UserError(f"no {name}.jsonl in {data_dir}{files.missing(data_dir)}, where the task {name} has its items")
    return path


def read(name: str, data_dir: Path) -> list[dict[str, Any]]:
    """The items of a task, in the fields that lm-eval's definition reads. Raises: UserError for a row that is none."""
    row_of = ZERO_SHOT[name]
    found = []
    for where, row in files.rows(file_of(name, data_dir)):
        if missing := [field for field in row_of.fields if field not in row]:
            raise UserError(
                f"{where}: no field {missing[0]!r}, which an item of {name} has beside "
                f"{', '.join(field for field in row_of.fields if field != missing[0])}; it has: {names(row)}"
            )
        try:
            found.append(row_of.item({field: row[field] for field in row_of.fields}))
        except (ArithmeticError, AttributeError, KeyError, IndexError, TypeError, ValueError):
            raise UserError(
                f"{where}: not an item of {name}; expected {', '.join(row_of.fields)} as the original data set has them"
            ) from None
    return found


def _cure(name: str) -> str:
    return f"pass --data-dir with a folder that holds {name}.jsonl"
