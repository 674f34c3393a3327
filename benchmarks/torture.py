"""Commands killed at any moment, and run where something is short: what comes of it in the end is the same bytes.

    python benchmarks/torture.py [--moments N] [--only WORD …] [--record FILE]     # as `make torture` runs it

A command is carried out once undisturbed, then again and again: killed (KILL, TERM, INT in turn) after a share of its
time that the number of the moment decides, and run once more, a training with --resume. Counted are results that are
others, what is left over beside them, and processes that still live. A shortage ends in one sentence, or in the same
result, and what was at --out before is still there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from made_up_records import made_up  # noqa: E402
from tiny_checkpoints import TEXT, tiny_checkpoint  # noqa: E402

from lmprune.checkpoints.rooms import PREFIX  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_MARK = "LMPRUNE_TORTURE"
_SHORT = ("--data", "cats.txt", "--seq-len", "32")
_TRAIN = (*_SHORT, "--train-tokens", "640", "--steps", "12", "--save-every", "3")
_KEEP = ("--keep", "0.5", "--multiple-of", "8", "--answer-tokens", "0")
#: a command's words; `out` is where it writes, in a folder with a model `m`, a text and results
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "prune": ("prune", "m", *_SHORT, *_KEEP, "--calibration-tokens", "640", "--out", "out"),
    "gum": ("prune", "m", "--method", "gum", *_TRAIN, *_KEEP, "--out", "out"),
    "oneshot and steps": (
        "prune",
        "m",
        "--method",
        "magnitude",
        "--schedule",
        "oneshot",
        *_TRAIN,
        *_KEEP,
        "--out",
        "out",
    ),
    "finetune": ("finetune", "m", *_TRAIN, "--out", "out"),
    "teach": ("teach", "m", *_SHORT, "--train-tokens", "640", "--out", "out.safetensors"),
    "analyze": ("analyze", "m", *_SHORT, "--max-tokens", "320", "--out", "out"),
    "export": ("export", "m", "--to", "hf-uniform", "--out", "out"),
    "report": ("report", ".", "--out", "out"),
}
#: what differs from run to run in a file: seconds and memory
_TIMED = ("analysis.json",)


def room_of(folder: Path) -> Path:
    """What all commands read."""
    tiny_checkpoint(folder / "m")
    (folder / "cats.txt").write_text(TEXT)
    rows = [made_up("dense"), made_up("gum", 0.5), made_up("random", 0.5)]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def begun(words: tuple[str, ...], folder: Path, **how: Any) -> subprocess.Popen[Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", _MARK: str(folder), **how.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "lmprune", *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, **how,
    )  # fmt: skip


def done(words: tuple[str, ...], folder: Path, **how: Any) -> tuple[int, str]:
    """(exit code, stderr)."""
    child = begun(words, folder, **how)
    _, said = child.communicate(timeout=900)
    return child.returncode, said.decode(errors="replace")


def result(folder: Path) -> dict[str, bytes]:
    """All that a command wrote, by name."""
    found: dict[str, bytes] = {}
    for place in folder.glob("out*"):
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.is_file() and file.name not in _TIMED:
                found[str(file.relative_to(folder))] = file.read_bytes()
    return found


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(PREFIX) or path.name.endswith(".training")]


def orphans(folder: Path) -> list[str]:
    """Processes that a command of this folder began and that still live."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{_MARK}={folder}".encode() in place.read_bytes() and place.parent.name != str(os.getpid()):
                found.append(place.parent.name)
        except OSError:
            continue
    return found


def again(words: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    return (*words, "--resume") if (folder / "out.training" / "settings.json").exists() else words


def killed(name: str, moment: int, folder: Path, seconds: float, whole: Mapping[str, bytes]) -> Counter[str]:
    """What came of one kill."""
    words, found = COMMANDS[name], Counter(kills=1)
    share = random.Random(f"{name}:{moment}").uniform(0.3, 1.02)
    child = begun(words, folder)
    time.sleep(share * seconds)
    number = SIGNALS[moment % len(SIGNALS)]
    if child.poll() is None:
        child.send_signal(number)
    else:
        found["too late"] += 1
    child.communicate(timeout=600)
    time.sleep(1.0)
    found["orphans"] += len(orphans(folder))
    if number != signal.SIGKILL and [path for path in left_over(folder) if path.startswith(PREFIX)]:
        found["left by a polite kill"] += 1
    if result(folder) != whole:
        code, said = done(again(words, folder), folder)
        if code:
            print(f"{name} {moment}: exit code {code}: {said[-300:]}", flush=True)
        found["lost"] += int(code != 0 or result(folder) != whole)
    found["leftovers"] += len([path for path in left_over(folder) if path.startswith(PREFIX)])
    return found


def limited(which: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (value, value))


#: a shortage -> how a command is begun in it
SHORTAGES: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "files of 20 kB": lambda _: {"preexec_fn": limited(resource.RLIMIT_FSIZE, 20_000)},
    "30 descriptors": lambda _: {"preexec_fn": limited(resource.RLIMIT_NOFILE, 30)},
    "700 MB": lambda _: {"preexec_fn": limited(resource.RLIMIT_AS, 700 * 2**20)},
    "no home": lambda _: {"env": {"HOME": "/nowhere", "XDG_CACHE_HOME": "/nowhere/cache"}},
    "umask 077": lambda _: {"preexec_fn": lambda: os.umask(0o077) and None},
}


def short(name: str, shortage: str, folder: Path, whole: Mapping[str, bytes]) -> Counter[str]:
    """One command in one shortage, where its earlier result stands."""
    before = result(folder)
    words = COMMANDS[name] if name in ("report", "teach") else (*COMMANDS[name], "--force")
    code, said = done(words, folder, **SHORTAGES[shortage](folder))
    found = Counter(shortages=1)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    same = result(folder) in (before, dict(whole))
    sentence = code == 0 or (code == 2 and len(errors) == 1 and "Traceback" not in said)
    if not (same and sentence):
        print(f"{name}, {shortage}: exit code {code}, same {same}: {said[-300:]}", flush=True)
    found["damaged by a shortage"] += not same
    found["more than a sentence"] += not sentence
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=25)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--no-shortages", action="store_true")
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    counts: Counter[str] = Counter()
    start = time.monotonic()
    names = [name for name in COMMANDS if any(word in name for word in asked.only)]
    for name in names:
        with tempfile.TemporaryDirectory(prefix="torture-") as place:
            folder, began = room_of(Path(place)), time.monotonic()
            code, said = done(COMMANDS[name], folder)
            assert code == 0, said
            seconds, whole = time.monotonic() - began, result(folder)
            for moment in range(asked.moments):
                for path in [*folder.glob("out*")]:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                counts += killed(name, moment, folder, seconds, whole)
            for shortage in () if asked.no_shortages else SHORTAGES:
                counts += short(name, shortage, folder, whole)
        print(f"{name}: {dict(counts)}", flush=True)
        if asked.record is not None:
            told = {"date": date.today().isoformat(), "seconds": round(time.monotonic() - start), "commands": names}
            asked.record.write_text(json.dumps({**told, "moments": asked.moments, **counts}, indent=1) + "\n")
    bad = ("lost", "leftovers", "orphans", "left by a polite kill", "damaged by a shortage", "more than a sentence")
    sys.exit(any(counts[name] for name in bad))


if __name__ == "__main__":
    main()
