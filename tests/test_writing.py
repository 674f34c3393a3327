"""What is written is there completely or not at all; what is not ours is never taken away."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from tiny_checkpoints import TEXT, byte_tokenizer, lmprune, tiny_checkpoint
from tiny_models import tiny_model

from lmprune.checkpoints import checkpoint, models, rooms, writing
from lmprune.checkpoints.writing import Destination, check_file, check_folder, claimed, written_aside
from lmprune.errors import UserError
from lmprune.training import manifest


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def anything(_: Path) -> str | None:
    return None


# -- rooms


def test_rooms_have_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / f".o.partial-{os.getpid()}").symlink_to(tmp_path / "elsewhere")
    with written_aside(tmp_path / "o") as one, written_aside(tmp_path / "p") as other:
        assert one.parent != other.parent
        (one / "f").write_text("1")
        (other / "f").write_text("2")
    assert (tmp_path / "o" / "f").read_text() == "1" and not (tmp_path / "elsewhere").exists()
    assert entries(tmp_path) == [f".o.partial-{os.getpid()}", "o", "p"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lmprune.checkpoints.writing import written_aside
with written_aside(Path(sys.argv[1])) as aside:
    (aside / "half").write_text("of it")
    print("ready", flush=True)
    {then}
"""


def in_a_room(out: Path, then: str) -> subprocess.Popen[str]:
    script = KILLED.format(then=then)
    child = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    living = in_a_room(tmp_path / "living", "signal.pause()")
    in_a_room(tmp_path / "dead", "os.kill(os.getpid(), signal.SIGKILL)").wait()
    left = entries(tmp_path)
    assert len(left) == 2
    shown = lmprune("clean", tmp_path, "--json")
    assert len(shown.record["removed"]) == 1 and len(entries(tmp_path)) == 1
    living.kill()
    living.wait()
    with written_aside(tmp_path / "next"):
        pass
    assert entries(tmp_path) == ["next"]
    assert lmprune("clean", tmp_path / "none").code == 2


def room_of(folder: Path, number: int = 0) -> Path:
    return folder / f"{rooms.PREFIX}{number:016x}"


def test_a_folder_of_somebody_elses_is_no_room(tmp_path: Path) -> None:
    """Neither by half of its name, nor where a link of a claim's name leads there."""
    thesis, out = tmp_path / f"{rooms.PREFIX}notes" / "thesis.txt", tmp_path / "o"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    os.utime(thesis.parent, (0, 0))
    assert rooms.sweep(tmp_path) == []
    with claimed(out):
        (held,) = set(entries(tmp_path)) - {thesis.parent.name}
    (tmp_path / held).symlink_to(thesis.parent)
    with pytest.raises(UserError, match=r"can't write .*o: .* is a link; choose another --out"), claimed(out):
        pass
    assert thesis.read_text() == "mine" and len(entries(thesis.parent)) == 1


def test_a_room_that_is_being_made_is_let_be(tmp_path: Path) -> None:
    young = room_of(tmp_path)
    young.mkdir()
    assert rooms.sweep(tmp_path) == [] and young.exists()
    os.utime(young, (0, 0))
    assert rooms.sweep(tmp_path) == [young] and not young.exists()
    room_of(tmp_path, 1).symlink_to(tmp_path / "somewhere")
    (tmp_path / "somewhere").mkdir()
    assert rooms.sweep(tmp_path) == [] and (tmp_path / "somewhere").exists()


def test_what_had_to_make_way_comes_back(tmp_path: Path) -> None:
    """Where the system can't exchange two names, and the process was killed between two renames."""
    left = room_of(tmp_path)
    (left / rooms.OLD).mkdir(parents=True)
    (left / rooms.OLD / "f").write_text("old")
    (left / rooms.LOCK).write_text(str(tmp_path / "o"))
    rooms.sweep(tmp_path)
    assert entries(tmp_path) == ["o"] and (tmp_path / "o" / "f").read_text() == "old"


def test_a_room_that_was_not_quite_removed_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock goes last, and an impatient interrupt does not leave it."""
    real = rooms.shutil.rmtree

    def killed(path: Path, **how: Any) -> None:
        monkeypatch.setattr(rooms.shutil, "rmtree", real)
        raise stop

    for stop, left in ((KeyboardInterrupt(), 0), (SystemExit(), 1)):  # the second stands for a kill
        with pytest.raises(type(stop)), rooms.room(tmp_path) as mine:
            (mine / "new").mkdir()
            monkeypatch.setattr(rooms.shutil, "rmtree", killed)
        assert len(entries(tmp_path)) == left
    (found,) = tmp_path.iterdir()
    assert rooms.sweep(tmp_path) == [found] and entries(tmp_path) == []


def test_a_folder_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each small file: a training writes many."""
    looked: list[Path] = []
    monkeypatch.setattr(rooms, "sweep", lambda parent: looked.append(parent) or [])
    for number in range(5):
        with written_aside(tmp_path / f"{number}.txt", folder=False) as aside:
            aside.write_text("x")
    assert looked == [tmp_path] and len(entries(tmp_path)) == 5


def test_a_room_that_a_stranger_made_moves_nothing_elsewhere(tmp_path: Path) -> None:
    """It came with what somebody unpacked here."""
    here, victim = tmp_path / "here", tmp_path / "victim"
    for number, purpose in enumerate((str(victim), "../victim", "", "\0")):
        left = room_of(here, number)
        (left / rooms.OLD).mkdir(parents=True)
        (left / rooms.LOCK).write_text(purpose)
    (link := room_of(here, 8)).mkdir()
    (link / rooms.LOCK).symlink_to(tmp_path / "secret")
    (pipe := room_of(here, 9)).mkdir()
    os.mkfifo(pipe / rooms.LOCK)  # of which no end is ever read
    assert len(rooms.sweep(here)) == 4
    assert entries(tmp_path) == ["here"] and entries(here) == [link.name, pipe.name, "victim"]


# -- two at once


def test_a_place_is_one_commands_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "o"
    with claimed(out):
        assert not (tmp_path / "deep").exists()
        with (
            pytest.raises(UserError, match=rf"another command is at work on {out}; let it end, stop it, or"),
            claimed(out),
        ):
            pytest.fail("it is taken")
        with claimed(tmp_path / "deep" / "other"), written_aside(out):
            pass
        assert rooms.sweep(tmp_path) == []
    with claimed(out):
        pass
    assert entries(tmp_path) == ["deep"] and entries(out.parent) == ["o"]


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    out = tmp_path / "o"
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        with claimed(out):
            os.write(writes, b"x")
            signal.pause()
    os.read(reads, 1)
    with pytest.raises(UserError, match="at work"), claimed(out):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(entries(tmp_path)) == 1
    with claimed(out):
        assert len(entries(tmp_path)) == 1
    assert entries(tmp_path) == []


@pytest.mark.parametrize("verb", ["prune", "finetune", "teach", "analyze", "export", "report", "eval"])
def test_a_second_writer_is_told_before_its_work(
    verb: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("too late"))
    out = tmp_path / ("o.safetensors" if verb == "teach" else "o")
    words = {"report": [tmp_path], "export": [model, "--to", "hf-uniform"], "finetune": [model, "--steps", 2]}
    data = [] if verb in ("report", "export") else ["--data", text]
    with claimed(out):
        shown = lmprune(verb, *words.get(verb, [model]), *data, "--out", out)
    assert shown.code == 2 and f"another command is at work on {out}" in shown.err
    assert entries(tmp_path) == []


# -- replacing


@pytest.fixture(params=[True, False], ids=["names exchanged", "one after the other"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux replaces, and as other systems do."""
    if not request.param:
        monkeypatch.setattr(writing, "_renamed", lambda *_: False)


@pytest.mark.usefixtures("either_way")
def test_a_folder_is_replaced_only_as_it_was_seen(tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / "f").write_text("old")
    with written_aside(check_folder(out, "a thing", anything, force=True)) as aside:
        (aside / "f").write_text("new")
    assert (out / "f").read_text() == "new" and entries(tmp_path) == ["o"]
    for name, seen in (
        ("o", check_folder(out, "a thing", anything, force=True)),
        ("p", Destination(tmp_path / "p", None)),
    ):
        with (
            pytest.raises(
                UserError, match=rf"{name} is left alone: it was not there before; what was made is in .*{name}-2"
            ),
            written_aside(seen) as aside,
        ):
            (aside / "f").write_text("newer")
            place = tmp_path / name
            if place.exists():
                place.rename(tmp_path / "away")
            place.mkdir()
            (place / "thesis").write_text("ten years")
        assert (tmp_path / name / "thesis").read_text() == "ten years"
        assert (tmp_path / f"{name}-2" / "f").read_text() == "newer"


@pytest.mark.usefixtures("either_way")
def test_a_file_is_replaced_only_as_it_was_seen(tmp_path: Path) -> None:
    out = tmp_path / "o.txt"
    with (
        pytest.raises(UserError, match=r"o\.txt is left alone"),
        written_aside(check_file(out, force=False), folder=False) as aside,
    ):
        aside.write_text("new")
        out.write_text("somebody's")
    assert out.read_text() == "somebody's" and (tmp_path / "o.txt-2").read_text() == "new"
    with written_aside(check_file(out, force=True), folder=False) as aside:
        aside.write_text("newest")
    assert out.read_text() == "newest"


def test_what_was_added_meanwhile_forbids_to_replace(tmp_path: Path) -> None:
    out = tiny_checkpoint(tmp_path / "m")
    seen = checkpoint.check_out(out, force=True)
    (out / "thesis.tex").write_text("ten years")
    with pytest.raises(UserError, match=r"m is left alone: it holds thesis\.tex; what was made is in .*m-2"):
        checkpoint.save(tiny_model("llama"), seen)
    assert (out / "thesis.tex").exists() and models.load(tmp_path / "m-2")


def test_force_replaces_what_lmprune_wrote_and_nothing_else(tmp_path: Path) -> None:
    out = tiny_checkpoint(tmp_path / "m")
    tokenizer = byte_tokenizer(chat_template={"default": "{{ messages }}", "other": "{{ 1 }}"})
    checkpoint.save(tiny_model("llama"), out, tokenizer=tokenizer, force=True, files={"LICENSE": "mit"})
    assert "additional_chat_templates" in entries(out)
    checkpoint.save(tiny_model("llama"), out, tokenizer=tokenizer, force=True)
    for name in ("thesis.tex", "notes.txt", "data"):
        (out / name).write_text("mine")
        with pytest.raises(UserError, match=f"it holds {name}"):
            checkpoint.check_out(out, force=True)
        (out / name).unlink()
    (out / "additional_chat_templates" / "mine.md").write_text("x")
    with pytest.raises(UserError, match="it holds additional_chat_templates"):
        checkpoint.check_out(out, force=True)


def test_a_mount_point_is_told_before_the_work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume of a container: what is mounted there can't make way."""
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("too late"))
    volume, file = tmp_path / "volume", tmp_path / "m.gguf"
    volume.mkdir()
    file.write_text("GGUF")
    monkeypatch.setattr(os.path, "ismount", lambda place: Path(place) in (volume, file))
    expected = (
        f"error: {volume} is a mount point, which can't be replaced; choose a folder inside it: --out {volume}/NAME"
    )
    for words in (
        ["prune", model, "--method", "magnitude"],
        ["prune", model, "--dry-run"],
        ["export", model, "--to", "vllm"],
    ):
        shown = lmprune(*words, "--out", volume)
        assert shown.code == 2 and expected in shown.err
    shown = lmprune("export", model, "--to", "gguf", "--out", file, "--force")
    assert shown.code == 2 and "m.gguf is a mount point, which can't be replaced; choose another --out" in shown.err
    assert entries(volume) == [] and file.read_text() == "GGUF"
    assert checkpoint.check_out(volume / "inside")


@pytest.mark.usefixtures("either_way")
def test_what_something_was_mounted_on_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "o", Path.rename

    def busy(path: Path, other: Path) -> Path:
        if out in (path, other):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", busy)
    out.mkdir()
    with (
        pytest.raises(UserError, match=r"o is left alone: something is mounted there; what was made is in .*o-2"),
        written_aside(check_folder(out, "a thing", anything, force=False)) as aside,
    ):
        (aside / "f").write_text("new")
    assert entries(out) == [] and (tmp_path / "o-2" / "f").read_text() == "new"


# -- names, modes


@pytest.mark.parametrize("name", ["x" * 250, "\udc80" * 3 + "\ud800", "a\0b"])
def test_names_that_no_disk_takes_are_told_before_the_work(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("too late"))
    if len(name) == 250:
        assert checkpoint.check_out(tmp_path / name)  # which is a name, but its run's folder would have none
        with pytest.raises(UserError, match="can't write"):
            from lmprune.training.run_folder import RunFolder

            RunFolder(tmp_path / name, {})
        name = "x" * 256
    with pytest.raises(UserError, match="can't write"):
        checkpoint.check_out(tmp_path / name)
    with pytest.raises(UserError, match="can't write"):
        check_file(tmp_path / f"{name}.gguf", force=False)
    assert entries(tmp_path) == []


def test_a_folder_for_levels_is_proved_before_the_work(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("too late"))
    args = ["prune", model, "--data", text, "--budget", "dp", "--out", tmp_path / "o", "--levels"]
    (tmp_path / "file").write_text("x")
    too_long = "File name too long; choose another --levels"
    for levels, why in ((tmp_path / ("x" * 256), too_long), (tmp_path / "file", "is a file")):
        shown = lmprune(*args, levels)
        assert shown.code == 2 and why in shown.err and entries(tmp_path) == ["file"]


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="can't write"):
        checkpoint.check_out(tmp_path / "a")


def test_long_names_are_written(tmp_path: Path) -> None:
    out = tmp_path / ("x" * 255)
    with written_aside(check_folder(out, "a thing", anything, force=False)) as aside:
        (aside / "f").write_text("1")
    assert (out / "f").exists()


def test_files_get_the_mode_that_the_user_wants(tmp_path: Path) -> None:
    from lmprune.training.teachers import write_teacher

    before = os.umask(0o027)
    try:
        write_teacher(tiny_model("llama"), [{"input_ids": list(range(8))}], tmp_path / "t.safetensors", k=2)
        with written_aside(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "t.safetensors").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


# -- saved states


def test_a_state_is_whole_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "sub" / "b").write_bytes(b"def")
    manifest.seal(tmp_path)
    assert manifest.damage(tmp_path) is None
    (tmp_path / "a").write_bytes(b"abd")
    assert manifest.damage(tmp_path) == "a has changed"
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "sub" / "b").unlink()
    assert manifest.damage(tmp_path) == "sub/b is missing"
    (tmp_path / manifest.MARK).write_text("{")
    assert manifest.damage(tmp_path) == "lmprune_complete can't be read"
    (tmp_path / manifest.MARK).write_text("")  # as earlier versions wrote it
    assert manifest.damage(tmp_path) is None


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_a_damaged_state_is_named_and_the_one_before_it_used(
    harm: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmprune.training import callbacks

    def args(out: str) -> list[Any]:
        return ["finetune", model, "--data", text, "--steps", 8, "--seq-len", 32, "--train-tokens", 640,
                "--save-every", 2, "--out", tmp_path / out]  # fmt: skip

    assert lmprune(*args("whole")).code == 0
    real = callbacks.Log.on_step_end

    def stopped(self: Any, arguments: Any, state: Any, control: Any, **rest: Any) -> None:
        real(self, arguments, state, control, **rest)
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.Log, "on_step_end", stopped)
    assert lmprune(*args("broken")).code == 130
    monkeypatch.undo()
    state = tmp_path / "broken.training" / "checkpoint-4"
    if harm == "missing":
        (state / "optimizer.pt").unlink()
    else:
        with (state / "model.safetensors").open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"\1\2\3")
    shown = lmprune(*args("broken"), "--resume")
    assert shown.code == 0
    assert (
        f"the state after step 4 is damaged ({'optimizer.pt is missing' if harm == 'missing' else 'model.saf'}"
        in shown.err
    )
    for file in (tmp_path / "whole").iterdir():
        ours, theirs = ((tmp_path / out / file.name).read_bytes() for out in ("broken", "whole"))
        assert ours.replace(b"broken", b"whole") == theirs, file.name


def test_a_run_that_has_ended_is_not_resumed_and_says_so(model: Path, text: Path, tmp_path: Path) -> None:
    args = [
        "finetune",
        model,
        "--data",
        text,
        "--steps",
        2,
        "--seq-len",
        32,
        "--train-tokens",
        320,
        "--out",
        tmp_path / "o",
    ]
    assert lmprune(*args).code == 0
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "o").iterdir()}
    shown = lmprune(*args, "--resume")
    assert shown.code == 0 and "is there, whole: that run has ended" in shown.out
    assert lmprune(*args, "--resume", "--json").record == {"out": str(tmp_path / "o"), "finished": True}
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "o").iterdir()} == before
    assert lmprune(*args, "--resume", "--lr", 0.1).code == 2  # another run
    once = ["prune", model, "--data", text, "--method", "magnitude", "--multiple-of", 8, "--out", tmp_path / "q"]
    assert lmprune(*once, "--resume").code == 0  # which has nothing to go on with, and begins
    assert "that run has ended" in lmprune(*once, "--resume").out
    gum = ["prune", model, "--data", text, "--method", "gum", "--multiple-of", 8, "--steps", 12, "--seq-len", 32]
    gum += ["--train-tokens", 320, "--out", tmp_path / "p"]
    assert lmprune(*gum).code == 0 and lmprune(*gum, "--resume").code == 0


@pytest.mark.parametrize("limit", [errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENOSPC])
def test_what_a_disk_refuses_is_a_sentence_wherever(
    limit: int, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks beside the result; temporary files, too: of ours, and those that safetensors writes, with an exception
    of its own."""
    from lmprune.checkpoints import tensor_file
    from lmprune.sites import pages

    args = ["prune", model, "--data", text, "--stream", "--multiple-of", 8, "--answer-tokens", 0, "--seq-len", 32]
    with monkeypatch.context() as now:
        now.setattr(tensor_file, "write", lambda *_: (_ for _ in ()).throw(OSError(limit, os.strerror(limit))))
        shown = lmprune(*args, "--method", "magnitude", "--out", tmp_path / "o")
    assert shown.code == 2 and f"blocks/0.safetensors: {os.strerror(limit)}; nothing was left there" in shown.err
    args += ["--units", "attentions", "--keep", 0.333, "--calibration-tokens", 64]
    for error in (OSError(limit, "x"), SafetensorError(f"Error while serializing: I/O error: x (os error {limit})")):

        def refuse(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(pages, "save_file", refuse)
        shown = lmprune(*args, "--out", tmp_path / "o", "--force")
        assert shown.code == 2 and f"error: {os.strerror(limit)}: what it writes, or keeps in" in shown.err
    assert entries(tmp_path) == ["o.pruning"], "scores, to go on from"


# -- streams


@pytest.mark.conformance
@pytest.mark.slow
def test_notes_do_not_end_the_work_and_letters_are_found(model: Path, text: Path, tmp_path: Path) -> None:
    base = [sys.executable, "-m", "lmprune", "prune", str(model), "--data", str(text), "--method", "magnitude"]
    base += ["--multiple-of", "8", "--answer-tokens", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    full = Path("/dev/full").open("w")  # noqa: SIM115 - it ends with the test
    done = subprocess.run(
        [*base, "--out", str(tmp_path / "full")], stdout=subprocess.PIPE, stderr=full, env=environment
    )
    assert done.returncode == 0 and done.stdout.decode("ascii") and (tmp_path / "full" / "config.json").exists()
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [*base, "--out", str(tmp_path / "closed")], stdout=writes, stderr=subprocess.PIPE, env=environment
    )
    assert done.returncode == 2 and b"stdout was closed" in done.stderr and b"Traceback" not in done.stderr
    assert (tmp_path / "closed" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_report_that_is_stopped_leaves_nothing_and_nobody(number: int, quick_python: Path, tmp_path: Path) -> None:
    from made_up_records import made_up

    from lmprune.study.records import RESULTS_FILE

    rows = [made_up(m, k) for m in ("gum", "top_v", "random") for k in (0.75, 0.5)] * 100  # which take some seconds
    (tmp_path / RESULTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in [made_up("dense"), *rows]))
    child = subprocess.Popen(
        [quick_python, "-m", "lmprune", "report", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    end = time.monotonic() + 60
    while not list(tmp_path.glob(f"{rooms.PREFIX}*")) and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)  # until its workers draw
    child.send_signal(number)
    said = child.communicate(timeout=60)
    assert child.returncode == 130 and entries(tmp_path) == [RESULTS_FILE], said


def test_text_is_there(text: Path) -> None:
    assert text.read_text() == TEXT
