"""Damaged files for every reader: each is read, or refused in one line. Nothing else may come of it.

    python benchmarks/fuzz.py [--inputs N | --minutes M] [--only WORD …] [--record FILE]     # as `make fuzz` runs it

An input is a reader of `fuzz_readers.py` and a number, the seed of the damage (`fuzz_mutations.py`), so that `--only
READER --first NUMBER --inputs 1` does it again. A record is added to: the next run begins behind the ones before it.
Inputs are read one after the other in a process forked from one that has everything loaded; it may take 2 GB more than
it has, and 20 seconds of the processor an input, and is given up otherwise. Findings: a traceback, a message of several
lines or of 400 characters, a hang, memory, a file opened or changed outside the input's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fuzz_more import MORE
from fuzz_mutations import mutated
from fuzz_readers import READERS, ROOT, Reader

from lmprune.checkpoints.rooms import PREFIX
from lmprune.errors import UserError, one_line

READERS |= MORE
SECONDS, MEGABYTES, CHARACTERS = 20, 2048, 400
#: inputs that a process reads before another takes its place, times `often`
_BATCH = 20
_OURS = str(ROOT / "src")
#: what a library reads of its own, and of the machine
_HARMLESS = ("/proc", "/sys", "/dev", "/usr", "/lib", "/etc", sys.prefix, sys.base_prefix, str(ROOT))

_CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"})
GOOD = ("read", "refused")


@dataclass(frozen=True)
class Finding:
    """number: of the input. kind: traceback, lines, long, hang, memory, died, outside; or one of GOOD. what: of it."""

    reader: str
    number: int
    kind: str
    what: str


def damaged(reader: Reader, name: str, number: int, whole: bytes) -> bytes:
    return mutated(random.Random(f"{name}:{number}"), whole, reader.how)


# -- the child


class Watch:
    """Which files are opened by Python while an input is read."""

    def __init__(self) -> None:
        self.room: Path | None = None
        self.names = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.room is None:
            return
        if event in _CHANGES:
            names = [os.fsdecode(name) for name in arguments if isinstance(name, str | bytes)]
            self.seen += [name for name in names if Path(name).is_absolute() and not self._inside(name)]
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        name = os.fsdecode(arguments[0])
        path = str(Path.cwd() / name)
        mode = arguments[1]
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or arguments[2] & (os.O_WRONLY | os.O_RDWR)
        inside = self._inside(path) or not (
            Path(name).is_absolute() or ".." in name
        )  # in a folder that was opened before
        may = path.startswith("/dev/") if writes else self.names or path.startswith(_HARMLESS)
        if not (inside or may):
            self.seen.append(path)

    def _inside(self, path: str) -> bool:
        return path.startswith((str(self.room), f"{tempfile.gettempdir()}/{PREFIX}"))


def outcome(reader: Reader, room: Path, watch: Watch) -> tuple[str, str]:
    """Kind and what of a finding; or read, or refused."""
    watch.room, watch.names, watch.seen = room, reader.names, []
    try:
        reader.read(room)
        said = None
    except UserError as error:
        said = str(error)
    except (MemoryError, RecursionError) as error:
        return "traceback", f"{type(error).__name__} {_place(error)}"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {one_line(str(error))[:160]} {_place(error)}"
    finally:
        watch.room = None
    if watch.seen:
        return "outside", watch.seen[0]
    if said is not None and "out of memory" in said:
        return "memory", said
    if said is not None and said != one_line(said):
        return "lines", repr(said[:200])
    if said is not None and len(said) >= CHARACTERS:
        return "long", said[:200]
    return ("read", "") if said is None else ("refused", said)


def _place(error: BaseException) -> str:
    """Where in lmprune it came from."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_OURS)]
    return f"[{Path(ours[-1].filename).relative_to(_OURS)}:{ours[-1].lineno} {ours[-1].name}]" if ours else "[?]"


def work(name: str, numbers: Sequence[int], seed: Path, out: int) -> None:
    """Read these inputs; a line of JSON for each on `out`: its number when it begins, and what came of it."""
    reader, watch = READERS[name], Watch()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEGABYTES * 2**20, resource.RLIM_INFINITY))
    room = Path(tempfile.mkdtemp(prefix="input-", dir=seed.parent))
    place = room / "in"
    shutil.copytree(seed, place)
    for file in place.rglob("*"):  # seeds name their own folder
        if file.suffix in (".yaml", ".jsonl") and file.is_file():
            file.write_bytes(file.read_bytes().replace(str(seed).encode(), str(place).encode()))
    whole = (place / reader.file).read_bytes()
    os.chdir(room)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what panics of Rust say there
    for number in numbers:
        os.write(out, json.dumps({"begins": number}).encode() + b"\n")
        (place / reader.file).write_bytes(damaged(reader, name, number, whole))
        found = outcome(reader, place, watch)
        os.write(out, json.dumps({"ends": number, "found": found}).encode() + b"\n")
    shutil.rmtree(room, ignore_errors=True)


# -- the parent


def batch(name: str, numbers: Sequence[int], seed: Path) -> Iterator[Finding]:
    """What came of each input, in order, and be it nothing; after a hang or a death another process goes on."""
    rest = list(numbers)
    while rest:
        end, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                os.close(end)
                work(name, rest, seed, theirs)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(theirs)
        open_one = None
        with os.fdopen(end, "rb") as told:
            for line in _lines(told, child):
                said = json.loads(line)
                if "begins" in said:
                    open_one = said["begins"]
                    continue
                open_one = None
                rest.pop(0)
                yield Finding(name, said["ends"], *said["found"])
        _, status = os.waitpid(child, 0)
        if open_one is not None:
            signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            kind = "hang" if signalled == signal.SIGKILL else "died"
            yield Finding(name, open_one, kind, f"signal {signalled}" if signalled else "its process ended")
            rest.remove(open_one)
        elif rest and status:
            raise SystemExit(f"{name}: the process could not begin")


def _lines(told: Any, child: int) -> Iterator[bytes]:
    """Lines as they come, up to the end; the child is killed where it has computed for SECONDS without one."""
    pending, since = b"", _cpu(child)
    while True:
        if select.select([told], [], [], 0.5)[0]:
            got = os.read(told.fileno(), 65536)
            if not got:
                return
            *whole, pending = (pending + got).split(b"\n")
            yield from whole
            since = _cpu(child)
        elif _cpu(child) - since > SECONDS:
            os.kill(child, signal.SIGKILL)
            return


def _cpu(child: int) -> float:
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seeds(names: Sequence[str], folder: Path) -> dict[str, Path]:
    found = {}
    for at, name in enumerate(names):
        place = folder / str(at)
        place.mkdir()
        READERS[name].seed(place)
        found[name] = place
    return found


def rounds(names: Sequence[str], first: int) -> Iterator[tuple[str, range]]:
    """Batches for ever: each reader in turn, as often as it is worth."""
    begins = dict.fromkeys(names, first)
    while True:
        for name in names:
            size = _BATCH * READERS[name].often
            yield name, range(begins[name], begins[name] + size)
            begins[name] += size


#: called with what came of each reader's inputs, the findings, and the number after the last
Told = Callable[[Counter[tuple[str, str]], list[Finding], int], object]


def fuzz(
    names: Sequence[str], folder: Path, *, inputs: int | None = None, minutes: float | None = None, first: int = 0,
    size: int | None = None, tell: bool = False, each: Told | None = None,
) -> tuple[Counter[tuple[str, str]], list[Finding]]:  # fmt: skip
    """How many inputs each reader got and what came of them, and the findings. size: of smaller batches.

    each: told of both after every batch, with the number that the next ones may begin at.
    """
    places, start = seeds(names, folder), time.monotonic()
    counts: Counter[tuple[str, str]] = Counter()
    findings: list[Finding] = []
    following = first
    for name, numbers in rounds(names, first):
        left = None if inputs is None else inputs - counts.total()
        if left == 0 or (minutes is not None and time.monotonic() - start > 60 * minutes):
            return counts, findings
        chosen = list(islice(numbers, min(left or len(numbers), size or len(numbers))))
        for found in batch(name, chosen, places[name]):
            counts[name, found.kind] += 1
            if found.kind not in GOOD:
                findings.append(found)
                if tell:
                    print(f"{found.reader} #{found.number}: {found.kind}: {found.what}", flush=True)
        following = max(following, chosen[-1] + 1)
        if each is not None:
            each(counts, findings, following)
        if tell:
            print(f"{counts.total():,} inputs, {len(findings)} findings; {name}", file=sys.stderr, flush=True)
    raise AssertionError("rounds go on for ever")


class Record:
    """What came of all runs together, in a file: a run adds its counts to those before it, and begins behind them."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        known = json.loads(file.read_text()) if file is not None and file.exists() else {}
        self.before: dict[str, dict[str, int]] = known.get("of_each_reader", {})
        self.runs: list[dict[str, Any]] = known.get("runs", [])
        self.next = known.get("next", 0)
        self.found: list[dict[str, Any]] = known.get("found", [])

    def told(
        self, run: dict[str, Any], counts: Counter[tuple[str, str]], findings: Sequence[Finding], following: int
    ) -> dict[str, Any]:
        """The record with this run in it."""
        each = {name: Counter(kinds) for name, kinds in self.before.items()}
        for (name, kind), number in counts.items():
            each.setdefault(name, Counter())[kind] += number
        total = sum(each.values(), Counter[str]())
        return {
            "inputs": total.total(),
            **{kind: total[kind] for kind in GOOD},
            "findings": {kind: number for kind, number in total.items() if kind not in GOOD},
            "runs": [*self.runs, {**run, "inputs": counts.total(), "findings": len(findings)}],
            "next": following,
            "of_each_reader": each,
            "found": [*self.found, *map(asdict, findings)][-200:],
        }

    def write(self, record: dict[str, Any]) -> None:
        if self.file is not None:
            aside = self.file.with_suffix(".new")
            aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            aside.rename(self.file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--first", type=int)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    names = [name for name in READERS if any(word in name for word in asked.only)]
    torch.set_num_threads(1)
    start, record = time.monotonic(), Record(asked.record)
    first = record.next if asked.first is None else asked.first
    run = {"date": date.today().isoformat(), "machine": f"{platform.machine()}, {os.cpu_count()} cores", "first": first}

    def told(counts: Counter[tuple[str, str]], findings: Sequence[Finding], following: int) -> None:
        record.write(record.told({**run, "seconds": round(time.monotonic() - start)}, counts, findings, following))

    with tempfile.TemporaryDirectory(prefix="fuzz-") as room:
        counts, findings = fuzz(
            names, Path(room), inputs=asked.inputs, minutes=asked.minutes, first=first, tell=True, each=told
        )
    print(f"{counts.total():,} inputs, {len(findings)} findings, in {time.monotonic() - start:.0f} s")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
