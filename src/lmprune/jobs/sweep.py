"""What `lmprune sweep` does: one model pruned to several targets, each a command of its own, and all compared.

A sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.writing import written_aside
from ..data import mix
from ..errors import UserError
from ..progress import Teller
from .compare import check as check_compared
from .compare import compare
from .run import record_of, steps_of

#: in the sweep's folder: a line for each target that is reached, and the page
RECORDS, PAGE = "sweep.jsonl", "sweep.html"
#: what models are compared on that were calibrated on a mix
FOR_MIXES = "python-docs"
#: how a target is written -> the option of `prune` that it is
_FORMS: Sequence[tuple[str, str]] = (
    (r"0?\.\d+", "keep"),
    (r"\d+(\.\d+)?x", "target-speedup"),
    (r"\d+(\.\d+)?m?s", "target-latency"),
    (r"\d+(\.\d+)?[kmg]i?b", "target-bytes"),
    (r"\d+|\d+(\.\d+)?[kmgb]", "target-params"),
)


@dataclass(frozen=True)
class Aim:
    """option: of `prune`, with its value as `text` says it."""

    option: str
    text: str

    @property
    def name(self) -> str:
        """Of the checkpoint's folder."""
        return f"{self.option.removeprefix('target-')}-{self.text}"


def parse_aims(text: str) -> list[Aim]:
    """What `--targets` names. Raises: UserError.

    >>> [aim.name for aim in parse_aims("0.75,100M,80MB,1.5x,20ms")]
    ['keep-0.75', 'params-100M', 'bytes-80MB', 'speedup-1.5x', 'latency-20ms']
    """
    found = []
    for part in (part.strip() for part in text.split(",")):
        option = next((option for form, option in _FORMS if re.fullmatch(form, part, re.IGNORECASE)), None)
        if option is None:
            raise UserError(
                f"{part!r} is no target; give --targets such as 0.9,0.75 (shares that stay), 100M (parameters), 80MB, "
                "1.5x (as fast) or 20ms"
            )
        found.append(Aim(option, part))
    if twice := sorted({aim.name for aim in found if found.count(aim) > 1}):
        raise UserError(f"--targets names {twice[0]} twice")
    return found


def sweep(
    terminal: Teller, *, model: str, out: Path, targets: str, words: Sequence[str],
    check: Callable[[Sequence[str]], Mapping[str, Any]], force: bool, eval_data: str | None, **how: Any,
) -> dict[str, Any]:  # fmt: skip
    """words: options of `prune` for all targets. check: what `prune` would refuse, before the first; what it was given
    is returned. how: options of `lmprune compare`.

    Raises: UserError, before the first model is pruned for all that can be known to be wrong by then.
    """
    start, place = time.perf_counter(), out.expanduser().resolve()
    steps = {
        aim.name: ["prune", model, "--out", str(place / aim.name), f"--{aim.option}", aim.text, *words]
        for aim in parse_aims(targets)
    }
    done = {} if force else _done(place, steps)
    asked = [check([*step, *(["--force"] if force else [])]) for name, step in steps.items() if name not in done]
    text = _text(steps, check, asked[0] if asked else None, eval_data)
    check_compared([model, model], how["tasks"], how["engine"], None, force=force)
    place.mkdir(parents=True, exist_ok=True)
    if done:
        terminal.note(f"{len(done)} of {len(steps)} targets were reached before: {', '.join(done)}")
    for name, step in steps.items():
        if name not in done:
            terminal.note(f"lmprune {' '.join(step)}")
            done[name] = {"name": name, "command": ["lmprune", *step], "record": _carried_out(name, step, force=force)}
            _write(place, done, steps)
    found = compare(
        terminal, models=[model, *(str(place / name) for name in steps)], out=place / PAGE, force=True, **text, **how
    )
    return {
        "model": model,
        "targets": [done[name] for name in steps],
        "comparison": found,
        "page": str(place / PAGE),
        "out": str(place),
        "seconds": time.perf_counter() - start,
    }


def _text(
    steps: Mapping[str, Sequence[str]], check: Callable[[Sequence[str]], Mapping[str, Any]],
    asked: Mapping[str, Any] | None, eval_data: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What models are compared on: another text, or the validation split of the one that they are pruned by; a mix has
    none that is everybody's."""
    if asked is None:  # all are there: only what was asked is wanted
        asked = check([*next(iter(steps.values())), "--force"])
    if eval_data is None and mix.is_mix(asked["data"]):
        eval_data = FOR_MIXES
    names = ("data", "data_dir", "dtype", "device", "trust_remote_code", "prompts", "answer_tokens")
    found = {name: asked[name] for name in names}
    return found | {"split": "validation"} | ({} if eval_data is None else {"data": eval_data, "data_dir": None})


def _done(place: Path, steps: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What was reached before, by name.

    Raises: UserError where the folder is something else, or holds the same target asked for differently.
    """
    records = place / RECORDS
    if place.exists() and not (place.is_dir() and (records.is_file() or not any(place.iterdir()))):
        raise UserError(f"{place} is there already, and no sweep's folder; choose another --out")
    found = {each["name"]: each for each in steps_of(records)}
    for name, step in steps.items():
        if name in found and found[name]["command"] != ["lmprune", *step]:
            raise UserError(
                f"{place} holds {name} from {' '.join(found[name]['command'])}; choose another --out, or begin again "
                "with --force"
            )
    return {name: found[name] for name in steps if name in found and (place / name).is_dir()}


def _write(place: Path, done: Mapping[str, Any], steps: Mapping[str, Any]) -> None:
    lines = [json.dumps(done[name], ensure_ascii=False) + "\n" for name in steps if name in done]
    with written_aside(place / RECORDS, folder=False) as aside:
        aside.write_text("".join(lines), encoding="utf-8")


def _carried_out(name: str, step: Sequence[str], *, force: bool) -> dict[str, Any]:
    code, record = record_of([*step, *(["--force"] if force else [])])
    if record is None:
        raise UserError(
            f"{name} ended with exit code {code}, and said why above; the same command goes on when it is mended"
        )
    return record
