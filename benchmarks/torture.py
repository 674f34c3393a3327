"""Commands killed at any moment, and run where something is short: what comes of it in the end is the same bytes.

    python benchmarks/torture.py [--moments N] [--only WORD …] [--large BLOCKS] [--record FILE]    # see `make torture`

A command is carried out once undisturbed, then again and again: killed by KILL, TERM or INT in turn, at its n-th change
of the disk (so that some kills are inside saves), after a share of its time, or as a user begins it, imports and all;
and then run once more, a training with --resume. The number of the moment decides which. A fault is a result that is
another, what is left over, and a process that still lives. A shortage (`torture_shortages.py`) ends in one sentence, or
in the same result, and what was at --out before is still there.

Each trial is a line of the record, written when it ends; trials that the record has as good are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
import torch
from torture_commands import COMMANDS, a_while_later, again, clear, make_large, make_room, result, rooms_in, runs_in
from torture_forks import LOG, TOLD, How, ended, forked, fresh, import_all, outlived
from torture_shortages import SHORTAGES, Trial, fits, tried

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
#: moments at which a command is killed as a user begins it, one for each signal: imports take long
_FRESH = frozenset({4, 11, 21})


@dataclass(frozen=True)
class Subject:
    """A command in its folder, and what it does undisturbed. seconds: forked; fresh: as a user begins it."""

    name: str
    folder: Path
    whole: Mapping[str, bytes]
    changes: int
    opened: int
    seconds: float
    fresh: float


@contextmanager
def subject(name: str, large: int) -> Iterator[Subject]:
    """large: blocks of a large model, in place of the tiny one."""
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        folder = Path(place)
        _in_a_process(lambda: make_large(folder, large) if large else make_room(folder))
        told = undisturbed(name, folder)  # which imports what it needs
        import_all(told["modules"])
        clear(folder)
        start = time.monotonic()
        told = undisturbed(name, folder)
        forks, whole = time.monotonic() - start, result(folder)
        clear(folder)
        start = time.monotonic()
        assert ended(fresh(COMMANDS[name], folder)) == 0, (folder / LOG).read_text()
        assert result(folder) == whole, f"{name}: a fork and a new process make other bytes"
        yield Subject(name, folder, whole, told["changes"], told["opened"], forks, time.monotonic() - start)


def undisturbed(name: str, folder: Path) -> dict[str, Any]:
    assert ended(forked(COMMANDS[name], folder)) == 0, (folder / LOG).read_text()
    return json.loads((folder / TOLD).read_text())


def _in_a_process(work: Any) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    ended(pid)


def way_of(moment: int) -> str:
    return "fresh" if moment in _FRESH else ("disk", "clock")[moment % 2]


def killed(it: Subject, moment: int) -> dict[str, Any]:
    """What came of one kill: `faults` is empty where all is well."""
    way, number = way_of(moment), SIGNALS[moment % len(SIGNALS)]
    share = random.Random(f"{it.name}:{moment}").uniform(0, 1.02)
    clear(it.folder)
    if way == "disk":
        at = 1 + int(share * it.changes)
        pid = forked(COMMANDS[it.name], it.folder, How(dies=(at, number)))
    else:
        at = round(share * (it.fresh if way == "fresh" else it.seconds), 3)
        pid = (fresh if way == "fresh" else forked)(COMMANDS[it.name], it.folder)
        time.sleep(at)
        os.kill(pid, number)  # which is there until `ended` has heard of it
    code = ended(pid)
    faults, said = [], (it.folder / LOG).read_text(errors="replace")
    faults += [f"orphan {found}" for found in outlived(pid)]
    if number != signal.SIGKILL:
        faults += [f"left by a polite kill: {name}" for name in rooms_in(it.folder)]
        quiet = code in (0, 130, -number) and "Traceback" not in said and "Exception ignored" not in said
        faults += [] if quiet else [f"exit code {code}: {said[-300:]}"]
    a_while_later(it.folder)
    if result(it.folder) != it.whole or runs_in(it.folder):
        words = again(it.name, it.folder)
        second = ended(forked(words, it.folder))
        if second:
            faults.append(f"lost: exit code {second} of {words[-1]}: {(it.folder / LOG).read_text()[-300:]}")
        elif differing := _differing(result(it.folder), it.whole):
            faults.append(f"lost: other bytes in {differing}")
    elif rooms_in(it.folder):  # there is nothing left to do, and the next command that writes here does this
        ended(forked(("clean", "."), it.folder))
    faults += [f"left over: {name}" for name in (*rooms_in(it.folder), *runs_in(it.folder))]
    return {"way": way, "signal": number.name, "at": at, "ended": code, "faults": faults}


def _differing(found: Mapping[str, bytes], whole: Mapping[str, bytes]) -> list[str]:
    return sorted(name for name in {**found, **whole} if found.get(name) != whole.get(name))


class Record:
    """Lines of trials, the latest of each counting; a trial that was good is not done again."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        self.trials = {self._key(line): line for line in map(json.loads, lines)}

    @staticmethod
    def _key(line: Mapping[str, Any]) -> tuple[str, str]:
        return line["command"], str(line["trial"])

    def has(self, command: str, trial: object) -> bool:
        found = self.trials.get((command, str(trial)))
        return found is not None and not found["faults"]

    def add(self, command: str, trial: object, told: Mapping[str, Any]) -> None:
        line = {"command": command, "trial": str(trial), "date": date.today().isoformat(), **told}
        self.trials[self._key(line)] = line
        if line["faults"]:
            print(f"{command}, {trial}: {line}", flush=True)
        if self.file is not None:
            self.file.write_text("".join(json.dumps(each) + "\n" for each in self.trials.values()))

    def summary(self) -> dict[str, Any]:
        kills = [line for line in self.trials.values() if "signal" in line]
        short = [line for line in self.trials.values() if "signal" not in line]
        kinds = Counter(fault.split(":")[0].split(" ")[0] for line in kills for fault in line["faults"])
        return {
            "kills": len(kills),
            **{way: sum(line["way"] == way for line in kills) for way in ("disk", "clock", "fresh")},
            "stopped": sum(line["ended"] != 0 for line in kills),
            "faults": dict(kinds),
            "shortages": len(short),
            "refused": sum(line["ended"] != 0 for line in short),
            "faults of shortages": sum(bool(line["faults"]) for line in short),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=25)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--no-shortages", action="store_true")
    parser.add_argument("--large", type=int, default=0, metavar="BLOCKS", help="a model of Llama-3.2-1B's shapes")
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    import_all()
    record, start = Record(asked.record), time.monotonic()
    for name in (name for name in COMMANDS if any(word in name for word in asked.only)):
        moments = [moment for moment in range(asked.moments) if not record.has(name, moment)]
        shortages = [s for s in SHORTAGES if fits(name, s) and not record.has(name, s) and not asked.no_shortages]
        if not moments and not shortages:
            continue
        with subject(name, asked.large) as it:
            print(
                f"{name}: {it.seconds:.1f} s, {it.fresh:.1f} s fresh, {it.changes} changes", file=sys.stderr, flush=True
            )
            for moment in moments:
                record.add(name, moment, killed(it, moment))
            for shortage in shortages:
                record.add(name, shortage, tried(shortage, Trial(name, (), it.folder, it.whole, it.seconds, it.opened)))
    told = record.summary()
    print(json.dumps({**told, "seconds": round(time.monotonic() - start)}))
    sys.exit(bool(told["faults"] or told["faults of shortages"]))


if __name__ == "__main__":
    main()
