"""Pruning of a model that is read block by block: stopped after any block it goes on, and ends in the same bytes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_bad_input import refused
from test_gguf_reading import some
from tiny_checkpoints import TEXT, byte_tokenizer, lmprune, tiny_checkpoint
from tiny_mixtures import tiny_mixture

import lmprune as library
from lmprune.budget.levels import Levels
from lmprune.checkpoints import block_files, journal, tensor_file
from lmprune.checkpoints.journal import Stage
from lmprune.checkpoints.shim import gone_in
from lmprune.errors import UserError
from lmprune.plan import PrunePlan
from lmprune.sites.address import Address
from lmprune.sites.pages import Pages

SHORT = ("--seq-len", 32, "--calibration-tokens", 256, "--multiple-of", 1, "--answer-tokens", 0, "--keep", 0.5)
#: what is run, and how many blocks its walks take, of a model of 4
RUNS: dict[str, tuple[tuple[object, ...], int]] = {
    "obs": (("--method", "obs", "--scope", "global", "--units", "neurons,heads"), 12),
    "obs, second look": (("--scope", "global", "--units", "neurons,heads", "--keep", 0.2), 17),
    "plain_obs": (("--method", "plain_obs",), 4),
    "activation": (("--method", "activation",), 4),
    "flap": (("--method", "flap",), 4),
    "llm_pruner": (("--method", "llm_pruner",), 4),
    "sensitivity": (("--method", "sensitivity",), 4),
}  # fmt: skip


#: what a search says of itself
_UNTIMED = re.compile(rb'"seconds": [0-9.e-]+')
#: of experts, and of neurons inside them
MIXED = [
    ("obs", "expert_neurons"),
    *(
        pytest.param(method, units, marks=pytest.mark.conformance)
        for method, units in (("reap", "experts"), ("activation", "expert_neurons"), ("llm_pruner", "expert_neurons"))
    ),
]


class PowerCut(BaseException):
    """Nobody answers it."""


@contextmanager
def cut_off(patch: pytest.MonkeyPatch, after: int | None = None) -> Iterator[list[int]]:
    """Count the blocks that walks leave behind; after so many the run ends where it is."""
    end, seen = Stage.end, [0]

    def counted(stage: Stage, state: Any) -> None:
        end(stage, state)
        seen[0] += 1
        if seen[0] == after:
            raise PowerCut

    with patch.context() as now:
        now.setattr(Stage, "end", counted)
        yield seen


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `out` is the same word for all, with a model and a text."""
    tiny_checkpoint(tmp_path / "m", num_hidden_layers=4)
    (tmp_path / "cats.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prune(*words: object) -> Any:
    return lmprune("prune", "m", "--stream", "--data", "cats.txt", *SHORT, "--out", "out", *words)


def stopped(patch: pytest.MonkeyPatch, after: int, *words: object) -> None:
    with cut_off(patch, after), pytest.raises(PowerCut):
        prune(*words)


def result() -> dict[str, bytes]:
    found = {file.name: _UNTIMED.sub(b"", file.read_bytes()) for file in Path("out").iterdir()}
    shutil.rmtree("out")
    assert not Path("out.pruning").exists()
    return found


@pytest.mark.parametrize("name", some(RUNS, "obs, second look", "llm_pruner"))
def test_it_goes_on_after_any_block(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, number = RUNS[name]
    with cut_off(monkeypatch) as seen:
        assert prune(*words).code == 0
    assert seen == [number]
    whole = result()
    for moment in sorted({2, number // 2, number - 1}):
        stopped(monkeypatch, moment, *words)
        assert not Path("out").exists()
        with cut_off(monkeypatch) as seen:
            assert prune(*words, "--resume").code == 0
        assert seen == [number - moment], "nothing that was done is done again"
        assert result() == whole


@pytest.mark.conformance
def test_it_may_be_stopped_again_and_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, number = RUNS["obs, second look"]
    assert prune(*words).code == 0
    whole = result()
    stopped(monkeypatch, 1, *words)
    for _ in range(number - 1):
        stopped(monkeypatch, 1, *words, "--resume")
    assert prune(*words, "--resume").code == 0 and result() == whole


def test_a_plan_that_is_carried_out_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lmprune("prune", "m", "--data", "cats.txt", *SHORT, "--out", "first")
    words = ("--plan", "first/prune_plan.json")
    keeps = SHORT[:4] + SHORT[6:8]

    def refit(*more: object) -> Any:
        return lmprune("prune", "m", "--stream", "--data", "cats.txt", *keeps, *words, "--out", "out", *more)

    assert refit().code == 0
    whole = result()
    with cut_off(monkeypatch, 2), pytest.raises(PowerCut):
        refit()
    with cut_off(monkeypatch) as seen:
        assert refit("--resume").code == 0
    assert seen == [2] and result() == whole
    with cut_off(monkeypatch, 2), pytest.raises(PowerCut):
        refit()
    lmprune("prune", "m", "--data", "cats.txt", *SHORT, "--seed", 3, "--scope", "global", "--out", "first", "--force")
    assert "began with another plan" in refused(
        "prune", "m", "--stream", "--data", "cats.txt", *keeps, *words, "--out", "out", "--resume"
    )


def goes_on(patch: pytest.MonkeyPatch, *words: object) -> int:
    """After every block. Returns the number of these."""
    with cut_off(patch) as seen:
        assert prune(*words).code == 0
    (number,), whole = seen, result()
    for moment in range(1, number + 1):
        stopped(patch, moment, *words)
        with cut_off(patch) as seen:
            assert prune(*words, "--resume").code == 0
        assert seen == [number - moment] and result() == whole
    return number


def test_layers_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert goes_on(monkeypatch, "--method", "obs", "--units", "attentions") > 2


@pytest.mark.conformance
def test_a_search_that_lets_branches_go_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks without their attention, or feed-forward layer, are taken up as they are in their files."""
    assert goes_on(monkeypatch, "--budget", "ranking", "--units", "neurons,heads", "--keep", 0.1) > 8
    assert prune("--budget", "ranking", "--units", "neurons,heads", "--keep", 0.1).code == 0
    assert {*gone_in(library.load("out")).values()} >= {"attention", "passed"}


def test_two_rankings_that_are_tried_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that make attentions cheap: they could stay, so a ranking in which they do is looked at and cut, too."""
    plain = Levels.of

    def cheap(address: Address, gone: torch.Tensor, cost: torch.Tensor, counts: tuple[int, ...]) -> Levels:
        return plain(address, gone, cost * (1e-6 if address.kind == "heads" else 1), counts)

    monkeypatch.setattr(Levels, "of", cheap)
    words = ("--budget", "ranking", "--units", "neurons,heads")
    with cut_off(monkeypatch) as seen:
        assert prune(*words).code == 0
    (number,), whole = seen, result()
    for moment in (number // 2, number - 1):
        stopped(monkeypatch, moment, *words)
        assert prune(*words, "--resume").code == 0 and result() == whole


@pytest.mark.conformance
def test_a_search_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it chose is kept: a search by the clock would choose otherwise."""
    words = ("--budget", "evolution")
    assert prune(*words).code == 0
    whole = result()
    for moment, left in ((2, 7), (7, 2)):  # in the gradients; while blocks are cut
        stopped(monkeypatch, moment, *words)
        with monkeypatch.context() as now, cut_off(monkeypatch) as seen:
            if moment == 7:
                now.setattr("lmprune.solve.budgeted.spread", None)
            assert prune(*words, "--resume").code == 0
        assert seen == [left] and result() == whole


@pytest.mark.conformance
def test_layers_go_on_from_scores(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert goes_on(monkeypatch, "--method", "sleb", "--units", "attentions,ffns") == 2


@pytest.mark.parametrize(("method", "units"), MIXED)
def test_mixtures_go_on(method: str, units: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.save(tiny_mixture("qwen3_moe", vocab_size=257), tmp_path / "m", tokenizer=byte_tokenizer())
    (tmp_path / "cats.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    words = ("--method", method, "--units", units, "--multiple-of", 8)
    assert goes_on(monkeypatch, *words) > 1
    assert prune(*words).code == 0
    written, dense = (
        {name for file in Path(folder).glob("*.safetensors") for name in load_file(file)} for folder in ("out", "m")
    )
    assert written <= dense, "whatever the model's own tensors are called"


# -- what can't be gone on with


def refused_again(*words: object) -> str:
    return refused("prune", "m", "--stream", "--data", "cats.txt", *SHORT, "--out", "out", *words)


def test_another_model_plan_text_seed_or_option_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, 5)
    assert "an unfinished run is in" in refused_again()
    assert "had other settings: seed (was 0, is now 1)" in refused_again("--seed", 1, "--resume")
    assert "had other settings: method (was obs, is now activation)" in refused_again(
        "--method", "activation", "--resume"
    )
    (here / "cats.txt").write_text(TEXT.replace("cat", "dog"))
    assert "began with another text, which has changed since" in refused_again("--resume")
    (here / "cats.txt").write_text(TEXT)
    weights = load_file("m/model.safetensors")
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        save_file({**weights, name: weights[name] + 1e-3}, "m/model.safetensors", {"format": "pt"})
        assert "began with another model, which has changed since" in refused_again("--resume")
    save_file(weights, "m/model.safetensors", {"format": "pt"})
    assert prune("--resume").code == 0


def test_force_begins_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, 5)
    with cut_off(monkeypatch) as seen:
        assert prune("--method", "activation", "--force").code == 0
    assert seen == [4] and result()
    stopped(monkeypatch, 5)
    whole = lmprune("prune", "m", "--data", "cats.txt", *SHORT, "--out", "out", "--force")
    assert whole.code == 0 and result()


def test_resume_where_nothing_is_kept_begins(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cut_off(monkeypatch) as seen:
        assert prune("--resume").code == 0
    assert seen == [8] and "there is nothing to resume" in prune("--resume").out


def test_an_error_before_anything_is_done_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "end", lambda *_: (_ for _ in ()).throw(PowerCut))
    with pytest.raises(PowerCut):
        prune("--method", "activation")
    assert not Path("out.pruning").exists()


def test_a_full_disk_is_told_and_what_was_done_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prune().code == 0
    whole, write, seen = result(), tensor_file.write, [0]

    def full(*values: Any, **how: Any) -> None:
        seen[0] += 1
        if seen[0] == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*values, **how)

    with monkeypatch.context() as now:
        now.setattr(tensor_file, "write", full)
        said = refused_again()
    assert "can't write" in said and os.strerror(errno.ENOSPC) in said
    assert prune("--resume").code == 0 and result() == whole


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_damaged_state_is_told_and_the_one_before_it_used(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prune().code == 0
    whole = result()
    stopped(monkeypatch, 7)
    states = sorted(Path("out.pruning/pruning/states").iterdir())
    assert [file.name for file in states] == ["2.safetensors", "3.safetensors"]
    damage(states[1])
    with cut_off(monkeypatch) as seen:
        done = prune("--resume")
    assert seen == [2] and "the state after block 3 is damaged" in done.err and result() == whole


def test_damage_to_what_was_found_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, 7)
    damage(Path("out.pruning/pruning/found/neurons.0.safetensors"))
    said = refused_again("--resume")
    assert "neurons.0.safetensors is damaged" in said and "--force" in said


@pytest.mark.parametrize("method", ["obs", "flap", "magnitude"])
def test_blocks_are_written_when_they_are_done_with(method: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, beside the result, which is made of them; none lies among temporary files."""
    (here / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "tmp"))
    seen: list[str] = []
    write, finish = block_files._write, Pages.finish

    def written(file: Path, state: Any) -> None:
        seen.append(file.parent.parent.name if file.parent.name.startswith(".lmprune") else file.name)
        write(file, state)

    def finished(pages: Pages, number: int) -> None:
        finish(pages, number)
        if pages.final is None:
            assert number not in pages.finished, "in the library there is no place for it yet"
            return
        assert number in pages.finished and not list((here / "tmp").rglob("*.safetensors"))
        assert pages.final.read(number).keys() >= {"mlp.up_proj.weight"}

    monkeypatch.setattr(block_files, "_write", written)
    monkeypatch.setattr(Pages, "finish", finished)
    assert prune("--method", method).code == 0
    assert seen == ["blocks"] * 4 + ["model-00001-of-00005.safetensors"]
    streamed = library.load("m", stream=True)
    seen.clear()
    library.prune(streamed, plan=PrunePlan.load(Path("out/prune_plan.json")), **text_of(streamed))
    library.save(streamed, "other")
    assert len(seen) == 5 and "blocks" not in seen
    for file in Path("other").glob("*.safetensors"):
        assert file.read_bytes() == Path("out", file.name).read_bytes()
        assert Path("out", file.name).stat().st_nlink == 1, "the run's folder is gone"


def text_of(model: Any) -> dict[str, Any]:
    """As SHORT has it."""
    tokenizer = library.load_tokenizer("m")
    return {"tokenizer": tokenizer, "data": "cats.txt", "seq_len": 32, "calibration_tokens": 256, "multiple_of": 1}


def test_what_is_written_of_a_block_is_the_result(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prune().code == 0
    whole = result()
    stopped(monkeypatch, 7)
    blocks = sorted(Path("out.pruning/blocks").iterdir())
    assert [file.name for file in blocks] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    for number, file in enumerate(blocks):
        assert file.read_bytes() == whole[f"model-{number + 2:05}-of-00005.safetensors"]
    found = Path("out.pruning/pruning/found")
    assert "reader" not in load_file(found / "neurons.0.safetensors"), "the block has it"
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    assert prune("--resume").code == 0 and result() == whole


def test_a_checkpoint_in_bfloat16_goes_on_in_float32(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed in float32, and its blocks are written in what it came in."""
    for file in Path("m").glob("*.safetensors"):
        save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert prune().code == 0
    whole = result()
    stopped(monkeypatch, 7)
    (block, *_) = [load_file(file) for file in Path("out.pruning/blocks").iterdir()]
    assert {value.dtype for value in block.values()} == {torch.bfloat16}
    assert prune("--resume").code == 0 and result() == whole


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_block_that_is_no_longer_what_was_written(how: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, 7)
    file = Path("out.pruning/blocks/1.safetensors")
    damage(file) if how == "damaged" else file.unlink()
    said = refused_again("--resume")
    assert "blocks/1.safetensors is damaged" in said and "--force" in said and not Path("out").exists()
    assert prune("--force").code == 0


@pytest.mark.parametrize(("method", "after"), [("activation", 3), ("obs", 7)])
def test_another_dtype_is_that_of_the_blocks_too(
    method: str, after: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--save-dtype", "bfloat16", "--method", method)
    assert prune(*words).code == 0
    assert {v.dtype for file in Path("out").glob("*.safetensors") for v in load_file(file).values()} == {torch.bfloat16}
    whole = result()
    stopped(monkeypatch, after, *words)
    blocks = [load_file(file) for file in Path("out.pruning").glob("blocks/*.safetensors")]
    assert bool(blocks) == (method == "obs")  # which refits a block when it is done
    assert all(value.dtype == torch.bfloat16 for block in blocks for value in block.values())
    assert prune(*words, "--resume").code == 0 and result() == whole


def test_what_it_began_with_is_not_written_anew_where_it_is_damaged(tmp_path: Path) -> None:
    """Or a text that has changed would not be seen."""
    text = {"ids": torch.arange(8)}
    journal.Journal(tmp_path).check("text", text)
    (file,) = (tmp_path / "begun").iterdir()
    journal.Journal(tmp_path).check("text", text)
    damage(file)
    with pytest.raises(UserError, match=r"text.all.safetensors is damaged: .*; throw the run away with --force"):
        journal.Journal(tmp_path).check("text", text)


def test_what_entered_a_block_is_computed_again_where_it_is_damaged(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prune().code == 0
    whole = result()
    stopped(monkeypatch, 1)  # one block back
    damage(Path("out.pruning/inputs/found/1.safetensors"))
    assert prune("--resume").code == 0 and result() == whole


@pytest.mark.parametrize("how", ["gone", "short"])
def test_a_shard_that_breaks_meanwhile_is_named_and_what_was_done_stays(
    how: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = library.load("m")
    model.save_pretrained("m", max_shard_size="30KB")
    Path("m/model.safetensors").unlink(missing_ok=True)
    shards = sorted(Path("m").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert prune().code == 0
    whole = result()
    content, end, seen = shards[1].read_bytes(), Stage.end, [0]

    def broken(stage: Stage, state: Any) -> None:
        end(stage, state)
        seen[0] += 1
        if seen[0] == 6:
            shards[1].unlink() if how == "gone" else shards[1].write_bytes(content[:1000])

    with monkeypatch.context() as now:
        now.setattr(Stage, "end", broken)
        said = refused_again()
    what = "disappeared" if how == "gone" else "was cut short"
    assert f"{shards[1].name} {what} while it was read" in said and not Path("out").exists()
    assert Path("out.pruning/pruning/states").is_dir()
    assert shards[1].name in refused_again("--resume")
    shards[1].write_bytes(content)
    with cut_off(monkeypatch) as again:
        assert prune("--resume").code == 0
    assert again == [2] and result() == whole


def test_a_run_that_streamed_by_itself_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmprune.jobs import opening

    words = ("prune", "m", "--data", "cats.txt", *SHORT, "--out", "out")
    monkeypatch.setattr(opening, "fits", lambda *_: False)
    assert lmprune(*words).code == 0
    whole = result()
    with cut_off(monkeypatch, 6), pytest.raises(PowerCut):
        lmprune(*words)
    monkeypatch.setattr(opening, "fits", lambda *_: True)  # there is room by now, and it goes on as it began
    with cut_off(monkeypatch) as seen:
        assert lmprune(*words, "--resume").code == 0
    assert seen == [2] and result() == whole


def test_in_the_library_nothing_is_kept(here: Path) -> None:
    model = library.load("m", stream=True)
    ids = torch.randint(0, 200, (4, 16))
    library.prune(model, method="obs", keep=0.5, data=ids, multiple_of=1)
    assert journal.journal_of(model) is None and not Path("out.pruning").exists()
