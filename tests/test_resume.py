"""Runs that were killed, stopped or failed go on where they were, and end bit for bit as if nothing had happened."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from in_parts import some
from test_bad_input import refused
from tiny_checkpoints import TEXT, Outcome, as_many_threads, lmprune, tiny_checkpoint

from lmprune.checkpoints import rooms
from lmprune.checkpoints.begun import SETTINGS
from lmprune.errors import UserError
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.training import callbacks, prune_callback
from lmprune.training.run_folder import MARK, RunFolder

SHORT = ("--steps", 14, "--seq-len", 32, "--save-every", 4)
PRUNE = ("--keep", 0.5, "--multiple-of", 1)
#: what is run: the command, the family, its options; gpt2 drops out, so random states matter
RUNS: dict[str, tuple[str, str, tuple[object, ...]]] = {
    "gum": ("prune", "gpt2", ("--method", "gum", *PRUNE)),
    "soft": ("prune", "llama", ("--method", "soft", *PRUNE)),
    "obs": ("prune", "llama", ("--method", "obs", *PRUNE, "--eval-every", 6)),
    "oneshot": ("prune", "gpt2", ("--method", "activation", "--schedule", "oneshot", *PRUNE)),
    "finetune": ("finetune", "gpt2", ("--grad-accum", 2, "--batch-size", 2)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dense")
    return {
        "llama": tiny_checkpoint(folder / "llama"),
        "gpt2": tiny_checkpoint(folder / "gpt2", "gpt2", n_positions=256),
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 blocks, so that an epoch ends at step 8, where a state is saved as well."""
    file = tmp_path_factory.mktemp("text") / "cats.txt"
    file.write_text(TEXT[: 32 * 32 + 5])
    return file


def arguments(name: str, models: dict[str, Path], text: Path, out: Path) -> list[object]:
    verb, family, options = RUNS[name]
    scores = ("--scores-out", out.with_suffix(".safetensors")) if name == "obs" else ()
    return [verb, models[family], "--data", text, *SHORT, *options, *scores, "--out", out]


def result(out: Path) -> dict[str, Any]:
    """All that a run leaves, to the last bit; it says where it was written, which is left out."""
    files = {file.name: file.read_bytes().replace(str(out).encode(), b"OUT") for file in out.iterdir()}
    name = out.name.encode()
    files["README.md"] = files["README.md"].replace(b"# " + name, b"# OUT")
    plan, scores = out / PLAN_FILE, out.with_suffix(".safetensors")
    return {
        "weights": files.pop("model.safetensors"),
        "kept": PrunePlan.load(plan).kept if plan.exists() else None,
        "scores": scores.read_bytes() if scores.exists() else None,
        "log": files.pop("training_log.jsonl").decode(),
        **files,
    }


def at(moment: Callable[..., Any], step: int, then: Callable[[], None], *, before: bool) -> Callable[..., Any]:
    """The method `moment` of a callback or the Trainer, and `then` when so many steps are done."""

    @functools.wraps(moment)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = next((arg for arg in args if isinstance(arg, transformers.TrainerState)), getattr(self, "state", None))
        here = state is not None and state.global_step == step
        if here and before:
            then()
        found = moment(self, *args, **kwargs)
        if here and not before:
            then()
        return found

    return watched


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(args: list[object], where: str, step: int) -> None:
    """`lmprune args…`, killed after a step, or while it saves the weights, or before the saved state is whole."""
    as_many_threads()
    owner, name, before = {
        "after": (callbacks.Log, "on_log", False),
        "saving weights": (transformers.Trainer, "_save_optimizer_and_scheduler", True),
        "saving": (callbacks.SavedStates, "on_save", True),
    }[where]
    setattr(owner, name, at(getattr(owner, name), step, die, before=before))
    lmprune(*args)


def killed(forks: Any, args: list[object], where: str, step: int) -> None:
    process = forks.Process(target=run_and_die, args=(args, where, step))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, "it should not have got so far"


KILLS = {
    "gum": [("after", 3), ("saving", 8), ("after", 10), ("saving weights", 12)],
    "soft": [("after", 9)],
    # before the first state too: its log begins with a perplexity; and behind the last milestone
    "obs": [("after", 2), ("after", 11), ("after", 13)],
    "oneshot": [("after", 2), ("saving", 8)],
    "finetune": [("saving weights", 8), ("after", 13)],
}


@pytest.mark.parametrize("name", some(RUNS, "gum", "obs", "finetune"))
def test_a_killed_run_ends_bit_for_bit_like_the_whole_one(
    name: str, models: dict[str, Path], text: Path, forks: Any, tmp_path: Path
) -> None:
    whole, broken = (arguments(name, models, text, tmp_path / out) for out in ("whole", "broken"))
    assert lmprune(*whole).code == 0
    folder = tmp_path / "broken.training"
    seen: list[int] = []
    for number, (where, step) in enumerate(KILLS[name]):
        killed(forks, broken + ["--resume"] * (number > 0), where, step)
        assert not (tmp_path / "broken").exists()
        seen.append(sum((state / MARK).exists() for state in folder.glob("checkpoint-*")))
    assert seen[-1] >= 1, "the last run should find a state to go on from"
    assert lmprune(*broken, "--resume").code == 0
    assert result(tmp_path / "broken") == result(tmp_path / "whole")
    assert not folder.exists()
    if name == "gum":  # control: that the results are equal says something
        other = lmprune(*arguments(name, models, text, tmp_path / "other"), "--seed", 1)
        assert other.code == 0 and result(tmp_path / "other")["weights"] != result(tmp_path / "whole")["weights"]


def test_a_pruned_model_is_not_pruned_again(
    models: dict[str, Path], text: Path, forks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments("oneshot", models, text, tmp_path / "o")
    killed(forks, args, "after", 1)

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("it was pruned before")

    monkeypatch.setattr("lmprune.pruning.prune", again)
    assert lmprune(*args, "--resume").code == 0


# -- Ctrl-C


def run_slowly(args: list[object], answer: Any) -> None:
    as_many_threads()
    step = callbacks.Log.on_step_end

    def slowly(*args: Any, **kwargs: Any) -> None:
        step(*args, **kwargs)
        time.sleep(0.1)

    callbacks.Log.on_step_end = slowly  # type: ignore[method-assign]
    answer.send(lmprune(*args))


def lines_of(log: Path, number: int) -> None:
    """Wait until the log has so many lines."""
    end = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < number:
        assert time.monotonic() < end, "it does not train"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.conformance)])
def test_ctrl_c_finishes_the_step_and_says_how_to_resume(
    number: signal.Signals, models: dict[str, Path], text: Path, forks: Any, tmp_path: Path
) -> None:
    args = arguments("gum", models, text, tmp_path / "o")
    args = [arg for arg, before in zip(args, ["", *args], strict=False) if "--save-every" not in (arg, before)]
    receiver, sender = forks.Pipe(duplex=False)
    process = forks.Process(target=run_slowly, args=(args, sender))
    process.start()
    lines_of(tmp_path / "o.training" / "training_log.jsonl", 3)
    os.kill(process.pid, number)
    stopped: Outcome = receiver.recv()
    process.join(60)
    steps = len((tmp_path / "o.training" / "training_log.jsonl").read_text().splitlines())
    assert stopped.code == 130 and stopped.out == "" and 3 <= steps < 14
    assert stopped.err.splitlines()[-1] == (
        f"error: stopped after step {steps} of 14, which is saved; go on with the same command and --resume"
    )
    assert not (tmp_path / "o").exists()
    assert lmprune(*args, "--resume", "--save-every", 5).code == 0
    assert lmprune(*arguments("gum", models, text, tmp_path / "whole")).code == 0
    found, whole = result(tmp_path / "o"), result(tmp_path / "whole")
    assert all(found[part] == whole[part] for part in ("weights", "kept", "log"))  # it tells of --save-every 5


def test_ctrl_c_before_the_first_step_leaves_nothing(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lmprune.jobs.train.train", interrupted)
    ended = lmprune(*arguments("gum", models, text, tmp_path / "o"))
    assert ended.code == 130 and list(tmp_path.iterdir()) == []


@pytest.mark.conformance
def test_the_real_command_is_stopped_and_goes_on(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    args = [str(arg) for arg in arguments("finetune", models, text, tmp_path / "o")]
    args[args.index("--steps") + 1] = "2000"
    process = subprocess.Popen(
        [sys.executable, "-m", "lmprune", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # what a shell starts in the background, these tests for example, inherits an ignored Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    lines_of(tmp_path / "o.training" / "training_log.jsonl", 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].endswith("of 2000, which is saved; go on with the same command and --resume")


# -- what may be resumed


@pytest.fixture
def stopped(models: dict[str, Path], text: Path, forks: Any, tmp_path: Path) -> list[object]:
    """The command of a run that was killed after it had saved a state."""
    args = arguments("gum", models, text, tmp_path / "o")
    killed(forks, args, "after", 6)
    return args


def test_other_settings_are_named(stopped: list[object], tmp_path: Path) -> None:
    sentence = refused(*stopped, "--resume", "--batch-size", 2, "--keep", 0.25)
    assert sentence == (
        f"the run in {tmp_path / 'o.training'} had other settings: batch-size (was None, is now 2), "
        "keep (was 0.5, is now 0.25); resume it with its own"
    )
    assert (tmp_path / "o.training" / "checkpoint-4" / MARK).exists()


@pytest.mark.parametrize("changed", ["model", "text"])
def test_inputs_that_changed_under_their_names_are_named(
    changed: str, models: dict[str, Path], text: Path, forks: Any, tmp_path: Path
) -> None:
    """Before the first step of the resumed run; as they were, it goes on."""
    mine = {"llama": Path(shutil.copytree(models["llama"], tmp_path / "m"))}
    words = tmp_path / "cats.txt"
    words.write_text(text.read_text())
    args = arguments("soft", mine, words, tmp_path / "o")
    killed(forks, args, "after", 6)
    file = words if changed == "text" else mine["llama"] / "model.safetensors"
    before = file.read_bytes()
    file.write_bytes(b"bats" + before[4:] if changed == "text" else before[:-4] + b"bats")
    assert refused(*args, "--resume") == (
        f"the run in {tmp_path / 'o.training'} began with another {changed}, which has changed since under the same "
        "name; put it back, or begin again with --force"
    )
    assert (tmp_path / "o.training" / "checkpoint-4" / MARK).exists()
    file.write_bytes(before)
    assert lmprune(*args, "--resume").code == 0


def test_a_run_folder_that_is_removed_meanwhile_is_told_at_the_next_step(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    real = callbacks.Log.on_step_end

    def removing(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        real(self, args, state, control, **rest)
        steps.append(state.global_step)
        if state.global_step == 6:
            shutil.rmtree(tmp_path / "o.training")

    monkeypatch.setattr(callbacks.Log, "on_step_end", removing)
    sentence = refused(*arguments("gum", models, text, tmp_path / "o"))
    assert sentence == f"{tmp_path / 'o.training'} was removed while the run was at work in it; begin it again"
    assert steps[-1] == 6 and list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_not_thrown_away_unasked(stopped: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "o.training"
    assert refused(*stopped) == (
        f"an unfinished run is in {folder}; go on with --resume, or throw it away with --force"
    )
    assert (folder / "checkpoint-4" / MARK).exists()
    assert lmprune(*stopped, "--force").code == 0
    assert not folder.exists()


def test_what_is_none_of_a_runs_stays_where_it_is(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """Before the work, with --force, and where somebody puts it into a run's folder meanwhile."""
    streamed = ("prune", models["llama"], "--data", text, "--stream", *PRUNE, "--out", tmp_path / "o")
    for kind, words in (("training", arguments("gum", models, text, tmp_path / "o")), ("pruning", streamed)):
        thesis = tmp_path / f"o.{kind}" / "thesis.txt"
        thesis.parent.mkdir()
        for name in (thesis.name, SETTINGS):
            (thesis.parent / name).write_text("{}")
        for option in ((), ("--force",), ("--resume",)):
            assert refused(*words, *option) == (
                f"{thesis.parent}, where the run would keep its state, holds thesis.txt, which is none of a run's; "
                "move it, or choose another --out"
            )
        assert thesis.read_text() == "{}" and not (tmp_path / "o").exists()
        shutil.rmtree(thesis.parent)
    run = RunFolder(tmp_path / "o", {})
    with run.begun():
        for its_own in ("checkpoint-4", "cut", "levels/dense", "obs/found", "obs/states", "begun"):
            (run.path / its_own).mkdir(parents=True)
        with pytest.raises(UserError, match="an unfinished run"):  # and not: holds something else
            RunFolder(tmp_path / "o", {})
        (run.path / thesis.name).write_text("mine")
    run.finish()
    assert [file.name for file in run.path.iterdir()] == [thesis.name]
    (tmp_path / "o.training" / thesis.name).unlink()
    run.path.rmdir()
    run.path.write_text("a file")
    assert "can't write" in refused(*arguments("gum", models, text, tmp_path / "o"))


def test_two_runs_do_not_share_a_folder(models: dict[str, Path], text: Path, forks: Any, tmp_path: Path) -> None:
    args = arguments("gum", models, text, tmp_path / "o")
    receiver, sender = forks.Pipe(duplex=False)
    process = forks.Process(target=run_slowly, args=(args, sender))
    process.start()
    lines_of(tmp_path / "o.training" / "training_log.jsonl", 5)
    for option in ("--resume", "--force"):
        assert refused(*args, option) == (
            f"another command is at work on {tmp_path / 'o'}; let it end, stop it, or choose another --out"
        )
    with pytest.raises(UserError, match="a run is at work in"), RunFolder(tmp_path / "o", {}, force=True).begun():
        pass
    assert receiver.recv().code == 0
    process.join(60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o"]


def test_nothing_to_resume(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    sentence = refused(*arguments("gum", models, text, tmp_path / "o"), "--resume")
    assert sentence == f"there is no run to resume in {tmp_path / 'o.training'}; leave out --resume"
    assert list(tmp_path.iterdir()) == []


def test_half_a_line_of_log_is_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "o", {})
    with run.begun():
        run.log.write_text('{"step": 1, "loss": 2.0}\n{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
        (run.path / "checkpoint-4").mkdir()
        assert run.rewind() is None and run.read_log() == []
        run.log.write_text('{"step": 1, "loss": 2.0}\n{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
        (run.path / "checkpoint-4").mkdir()
        (run.path / "checkpoint-4" / MARK).touch()
        assert run.rewind() == run.path / "checkpoint-4" and [line["step"] for line in run.read_log()] == [1]


def test_a_run_that_is_killed_while_its_folder_goes_has_ended(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody finds half of that folder: it is there whole, and --resume says so and removes it, or it is gone."""
    args = arguments("finetune", models, text, tmp_path / "o")
    real = rooms.shutil.rmtree

    def killed_there(path: Path, **how: Any) -> None:
        if (found := next(Path(path).rglob(SETTINGS), None)) is None:
            real(path, **how)
            return
        found.unlink()  # as far as it came
        raise SystemExit(9)

    with monkeypatch.context() as dying:
        dying.setattr(rooms.shutil, "rmtree", killed_there)
        assert lmprune(*args).code == 9
    assert (tmp_path / "o").is_dir() and not (tmp_path / "o.training").exists()
    assert lmprune(*args, "--resume").code == 0
    lmprune("clean", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


# -- what goes wrong on the way


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["transformers.Trainer._save_rng_state", "lmprune.training.prune_callback.save_file"])
def test_a_full_disk_while_saving_keeps_the_state_before(
    where: str, models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments("gum", models, text, tmp_path / "o")
    saves = iter(range(10))
    module, _, name = where.rpartition(".")
    target = transformers.Trainer if module == "transformers.Trainer" else prune_callback
    real = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *a, **k: real(*a, **k) if next(saves) < 1 else full())
    state = tmp_path / "o.training" / "checkpoint-4"
    assert refused(*args) == (
        f"can't save the run in {tmp_path / 'o.training'} after step 8: No space left on device; "
        f"the state after step 4 is kept in {state}; make room and go on with --resume"
    )
    assert [path.name for path in (tmp_path / "o.training").glob("checkpoint-*")] == ["checkpoint-4"]
    monkeypatch.undo()
    assert lmprune(*args, "--resume").code == 0
    assert lmprune(*arguments("gum", models, text, tmp_path / "whole")).code == 0
    assert result(tmp_path / "o") == result(tmp_path / "whole")


def test_a_full_disk_at_the_first_state_leaves_nothing(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.Trainer, "_save_rng_state", full)
    sentence = refused(*arguments("finetune", models, text, tmp_path / "o"))
    assert sentence.endswith("after step 4: No space left on device; make room and run it again")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_end_keeps_the_run(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments("finetune", models, text, tmp_path / "o")
    real = transformers.PreTrainedModel.save_pretrained
    monkeypatch.setattr(
        transformers.PreTrainedModel, "save_pretrained",
        lambda self, folder, *a, **k: real(self, folder, *a, **k) if "checkpoint-" in str(folder) else full(),
    )  # fmt: skip
    assert refused(*args).endswith("No space left on device; nothing was left there")
    assert (tmp_path / "o.training" / "checkpoint-12" / MARK).exists() and not (tmp_path / "o").exists()
    monkeypatch.undo()
    assert lmprune(*args, "--resume").code == 0


@pytest.mark.slow
def test_a_disk_that_is_really_full(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be made here: {mounted.stderr.decode().strip()}")
    try:
        args = arguments("finetune", models, text, disk / "o")
        sentence = refused(*args)
        assert "can't save the run in" in sentence and "the state after step" in sentence, sentence
        assert sentence.endswith("make room and go on with --resume")
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert lmprune(*args, "--resume").code == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_state_before(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_loss = transformers.Trainer.compute_loss

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss, outputs = compute_loss(self, *args, **kwargs)
        return (loss * float("nan"), outputs) if self.state.global_step == 6 else (loss, outputs)

    monkeypatch.setattr(transformers.Trainer, "compute_loss", broken)
    state = tmp_path / "o.training" / "checkpoint-4"
    assert refused(*arguments("gum", models, text, tmp_path / "o")) == (
        f"the loss of step 7 is nan; try a smaller --lr, or look at the data; the state after step 4 is kept in {state}"
    )
    assert (state / MARK).exists() and not (tmp_path / "o").exists()


def test_spoilt_weights_are_not_saved(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    args = arguments("finetune", models, text, tmp_path / "o")
    sentence = refused(*args, "--lr", 1e30, "--warmup", 0, "--save-every", 1)
    assert "step" in sentence and "try a smaller --lr" in sentence
    saved = [json.loads((s / "trainer_state.json").read_text()) for s in tmp_path.glob("o.training/checkpoint-*")]
    assert all(state["global_step"] <= 2 for state in saved)
    assert "Infinity" not in json.dumps(saved) and "NaN" not in json.dumps(saved)
