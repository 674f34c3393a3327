"""What `lmprune sweep` does: one model pruned to several targets, each a command of its own, and all compared.

A sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..budget.target import Wish, parse_target
from ..checkpoints.writing import resolved
from ..data import as_long_as_you_like
from ..errors import Finished, UserError
from ..progress import Teller
from ..study.run import spelt
from .compare import check as check_compared
from .compare import check_text, compare
from .steps import Steps, failed, going_on, record_of

#: in the sweep's folder: a line for each target that is reached, and the page
RECORDS, PAGE = "sweep.jsonl", "sweep.html"
#: the last line, once all are compared
COMPARISON = "comparison"
#: what models are compared on that were calibrated on a mix, or on text of their own
FOR_MIXES = "python-docs"
#: what says which text is read, of options that `prune` and `compare` have
_OF_DATA = ("data", "data_dir", "holdout", "chat_template")
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

    @property
    def amount(self) -> float:
        if self.option == "keep":
            return float(self.text)
        return parse_target(cast(Wish, self.option.removeprefix("target-")), self.text).amount


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


def from_the_dense(model: str, place: Path, aims: Sequence[Aim]) -> dict[str, list[str]]:
    """name -> arguments of the `prune` that reaches a target, each from the model itself."""
    return {aim.name: _prune(model, place, aim, aim.text) for aim in aims}


def each_from_the_one_before(model: str, place: Path, aims: Sequence[Aim]) -> dict[str, list[str]]:
    """The same as a family (ZipLM): a target is reached from the model that reached the one before, so that what a
    training between them learned is kept. What is asked of a model is then said beside the one before.

    Raises: UserError where targets are of several kinds, or one asks for no less than the one before.

    >>> each_from_the_one_before("m", Path("f"), parse_aims("1.25x,1.5x"))["speedup-1.5x"]
    ['prune', 'f/speedup-1.25x', '--out', 'f/speedup-1.5x', '--target-speedup', '1.2x']
    """
    kinds = list(dict.fromkeys(aim.option for aim in aims))
    if len(kinds) > 1:
        raise UserError(
            f"a family goes from one target to the next, and --targets names --{kinds[0]} and --{kinds[1]}; name "
            "targets of one kind"
        )
    found, source = {}, model
    for before, aim in zip((None, *aims), aims, strict=False):
        found[aim.name] = _prune(source, place, aim, aim.text if before is None else _beside(before, aim))
        source = str(place / aim.name)
    return found


def _prune(source: str, place: Path, aim: Aim, text: str) -> list[str]:
    return ["prune", source, "--out", str(place / aim.name), f"--{aim.option}", text]


def _beside(before: Aim, aim: Aim) -> str:
    """What `aim` asks of the model that reached `before`. Raises: UserError."""
    first, then = before.amount, aim.amount
    if then >= first if aim.option != "target-speedup" else then <= first:
        raise UserError(f"a family goes from large to small: {aim.text} asks for no less than {before.text}")
    if aim.option == "keep":
        return f"{then / first:.6g}"
    return f"{then / first:.6g}x" if aim.option == "target-speedup" else aim.text


def sweep(
    terminal: Teller, *, model: str, out: Path, targets: str, words: Sequence[str],
    check: Callable[[Sequence[str]], Mapping[str, Any]], force: bool, eval_data: str | None,
    family: bool = False, resume: bool = False, **how: Any,
) -> dict[str, Any]:  # fmt: skip
    """words: options of `prune` for all targets. check: what `prune` would refuse, before the first; what it was given
    is returned. family: each target is reached from the model of the one before. resume: only go on with one that was
    begun. how: options of `lmprune compare`.

    Raises: UserError, before the first model is pruned for all that can be known to be wrong by then.
    """
    start, place = time.perf_counter(), resolved(out)
    chain = each_from_the_one_before if family else from_the_dense
    asked = {name: [*step, *words] for name, step in chain(model, place, parse_aims(targets)).items()}
    steps = Steps(place / RECORDS, "sweep", "choose another --out")
    steps.check_begun(resume)
    steps.check(RECORDS)
    done = {} if force else _done(steps, asked)
    todo = {name: [*step, *going_on(place / name, force=force, ours=(place / name).exists())]
            for name, step in asked.items() if name not in done}  # fmt: skip
    # a model that is yet to be made stands for the one that it is made of: they are of one kind
    checked = [found for step in todo.values() if (found := _checked(check, [step[0], model, *step[2:]]))]
    if family and todo:  # whether the first model can be cut so far: asked before any is trained
        (last,) = from_the_dense(model, place, parse_aims(targets)[-1:]).values()
        check([*last, *words, "--force"])
    text = _text(asked, check, checked[0] if checked else None, eval_data)
    check_text(text["data"], text["data_dir"])
    check(["eval", model, *spelt({name: text[name] for name in (*_OF_DATA, "split")})])
    check_compared([model, model], how["tasks"], how["tasks_dir"] or text["data_dir"], how["engine"], None, force=force)
    how |= {"models": [model, *(str(place / name) for name in asked)], "out": place / PAGE, **text}
    comparing = ["lmprune", "compare", *how["models"], *spelt({**how, "models": None})]
    if COMPARISON in done and not (done[COMPARISON]["command"] == comparing and how["out"].is_file()):
        del done[COMPARISON]  # it was another
    place.mkdir(parents=True, exist_ok=True)
    steps.write(done.values())
    steps.tell(terminal, [*done], len(asked) + 1)
    for name, step in asked.items():
        if name not in done:
            terminal.note(f"lmprune {' '.join(step)}")
            done[name] = {"name": name, "command": ["lmprune", *step], "record": _carried_out(name, todo[name])}
            steps.write(done.values())
    if COMPARISON not in done:
        done[COMPARISON] = {"name": COMPARISON, "command": comparing, "record": compare(terminal, force=True, **how)}
        steps.write(done.values())
    return {
        "model": model,
        "targets": [done[name] for name in asked],
        "comparison": done[COMPARISON]["record"],
        "page": str(place / PAGE),
        "out": str(place),
        "seconds": time.perf_counter() - start,
    }


def _text(
    steps: Mapping[str, Sequence[str]], check: Callable[[Sequence[str]], Mapping[str, Any]],
    asked: Mapping[str, Any] | None, eval_data: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What models are compared on: another text, or the validation split of the one that they are pruned by; a mix, and
    what a model writes, have none that is everybody's."""
    if asked is None:  # all are there: only what was asked is wanted
        asked = check([*next(iter(steps.values())), "--force"])
    if eval_data is None and as_long_as_you_like(asked["data"]):
        eval_data = FOR_MIXES
    names = (*_OF_DATA, "dtype", "device", "trust_remote_code", "prompts", "answer_tokens")
    found = {name: asked[name] for name in names} | {"split": "validation"}
    return found if eval_data is None else found | dict.fromkeys(_OF_DATA) | {"data": eval_data, "chat_template": False}


def _checked(check: Callable[[Sequence[str]], Mapping[str, Any]], words: Sequence[str]) -> Mapping[str, Any] | None:
    """None: it has ended, and was killed before anybody wrote that down; carried out, it says so."""
    try:
        return check(words)
    except Finished:
        return None


def _done(steps: Steps, asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What was reached before, by name.

    Raises: UserError where the folder is something else, or holds the same target asked for differently.
    """
    found = {each["name"]: each for each in steps.read()}
    for name in asked.keys() & found.keys():
        steps.check_same(found[name], ["lmprune", *asked[name]])
    kept = {name: found[name] for name in asked if name in found and (steps.folder / name).is_dir()}
    return kept | {name: found[name] for name in (COMPARISON,) if name in found and len(kept) == len(asked)}


def _carried_out(name: str, words: Sequence[str]) -> dict[str, Any]:
    code, record = record_of(words)
    if record is None:
        raise failed(code, name, "the same command goes on when it is mended")
    return record
