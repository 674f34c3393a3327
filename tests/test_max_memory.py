"""`--max-memory`: hidden states that do not fit lie on the disk, and what is made is the same to the byte."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_bad_input import refused
from test_gguf import bpe, model_of
from test_going_on import PowerCut, cut_off
from tiny_checkpoints import TEXT, lmprune, tiny_checkpoint
from tiny_mixtures import tiny_mixture
from tiny_models import tiny_model, tokens

import lmprune as library
from lmprune.checkpoints import models, sealed, tensor_file
from lmprune.checkpoints.shelf import Shelf
from lmprune.checkpoints.states import Bound, Numbered, States, bind, listed
from lmprune.errors import UserError
from lmprune.jobs import needs
from lmprune.jobs.needs import parse_memory
from lmprune.solve.memory import Held, Memory, Shape

SHORT = ("--seq-len", 32, "--calibration-tokens", 512, "--multiple-of", 1, "--answer-tokens", 0, "--keep", 0.5)
#: bytes of the hidden states of 4 sequences of 32 tokens
BATCH = 4 * 32 * 32 * 4


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a text. The program itself takes nothing there: it would be a thousand such models."""
    tiny_checkpoint(tmp_path / "m", num_hidden_layers=4)
    (tmp_path / "cats.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(needs, "_TEXT", 0.0)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: type("Told", (), {"rss": 0})())
    return tmp_path


@pytest.fixture
def spilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of batches that were put on the disk."""
    found: list[int] = []
    put = Shelf.__setitem__

    def counted(shelf: Shelf, name: str, tensors: Any) -> None:
        if shelf.folder.name == "hidden-states":
            found.append(int(name))
        put(shelf, name, tensors)

    monkeypatch.setattr(Shelf, "__setitem__", counted)
    return found


def prune(*words: object) -> Any:
    return lmprune("prune", "m", "--data", "cats.txt", *SHORT, "--json", *words)


def weights(folder: str) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in Path(folder).glob("*.safetensors")}
    assert found
    return found


def least(*words: object) -> float:
    """Bytes, by what is refused."""
    said = refused("prune", "m", "--data", "cats.txt", *SHORT, "--out", "o", *words, "--max-memory", "1kB")
    found = re.search(r"--max-memory 1kB is too little: \w+ needs ([\d.]+) MB for one block of m at a time", said)
    assert found is not None, said
    return float(found[1]) * 1e6


def told(*words: object) -> dict[str, float]:
    return prune(*words, "--out", "o", "--dry-run").record["ways"]["streamed"]


@pytest.mark.parametrize("method", ["activation", "obs", "taylor"])
def test_the_same_bytes_with_states_on_the_disk(method: str, here: Path, spilled: list[int]) -> None:
    words = ("--method", method)
    assert prune(*words, "--stream", "--out", "all").code == 0
    most, few = told(*words)["memory_mb"], least(*words)
    assert prune(*words, "--max-memory", f"{most + 0.1}MB", "--out", "enough").code == 0
    assert not spilled
    done = prune(*words, "--max-memory", f"{few / 1e6 + 0.001}MB", "--out", "few")
    assert done.code == 0 and spilled and "of hidden states will lie on the disk" in done.err
    assert weights("all") == weights("few") == weights("enough")
    bounded = told(*words, "--max-memory", f"{few / 1e6 + 0.001}MB")
    assert bounded["memory_mb"] == pytest.approx(few / 1e6 + 0.001) and bounded["memory_mb"] < most
    assert bounded["temporary_mb"] > told(*words)["temporary_mb"]


def test_it_goes_on_with_states_on_the_disk(here: Path, monkeypatch: pytest.MonkeyPatch, spilled: list[int]) -> None:
    words = ("--max-memory", f"{least() / 1e6 + 0.001}MB", "--out", "out")
    assert prune("--stream", "--out", "whole").code == 0
    for moment in (2, 5, 7):
        with cut_off(monkeypatch, moment), pytest.raises(PowerCut):
            prune(*words)
        with cut_off(monkeypatch) as seen:
            assert prune(*words, "--resume").code == 0
        assert seen == [8 - moment] and spilled and weights("out") == weights("whole")
        prune("--out", "out", "--force", "--method", "magnitude", "--stream")
        Path("out/model.safetensors.index.json").parent.rename(f"old-{moment}")


def test_a_bound_may_change_between_a_run_and_what_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prune("--stream", "--out", "whole").code == 0
    with cut_off(monkeypatch, 6), pytest.raises(PowerCut):
        prune("--stream", "--out", "out")
    assert prune("--max-memory", f"{least() / 1e6 + 0.001}MB", "--out", "out", "--resume").code == 0
    assert weights("out") == weights("whole")


@pytest.mark.parametrize(("units", "method"), [("layers", "sleb"), ("attentions", "shortgpt"), ("layers", "obs")])
def test_states_of_layers(units: Any, method: str, tmp_path: Path, spilled: list[int]) -> None:
    tiny_model("llama", num_hidden_layers=4).save_pretrained(tmp_path / "m")
    same(tmp_path, spilled, units=(units,), method=method)


def test_states_inside_experts(tmp_path: Path, spilled: list[int]) -> None:
    tiny_mixture("qwen3_moe").save_pretrained(tmp_path / "m")
    same(tmp_path, spilled, units=("expert_neurons",), method="obs", multiple_of=8)


def same(folder: Path, spilled: list[int], **how: Any) -> None:
    for name in ("all", "few"):
        model = models.load(folder / "m", stream=True)
        if name == "few":
            assert not spilled
            bind(model, 0.0)
        plan = library.prune(model, keep=0.5, scope="local", data=tokens(6, 20, seed=2), **how)
        library.save(model, folder / name, plan=plan)
    assert spilled
    whole, few = ([load_file(f) for f in sorted((folder / n).glob("*.safetensors"))] for n in ("all", "few"))
    assert all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(whole, few, strict=True)
    )


def test_no_more_is_in_memory_than_may_be(spilled: list[int]) -> None:
    batches, bound = [torch.full((4, 8), float(n)) for n in range(5)], Bound(2.5 * 4 * 8 * 4)
    one = States(iter(batches), bound)
    assert one.bytes_here == 2 * 128 and spilled == [2, 3, 4] and bound.left == 0.5 * 128
    other = States(one, bound)
    assert other.bytes_here == 0 and [float(t[0, 0]) for t in other] == [0, 1, 2, 3, 4]
    for number, states in enumerate(one):
        one[number] = states + 1
    assert [float(t[0, 0]) for t in one] == [1, 2, 3, 4, 5] and one.bytes_here == 2 * 128
    assert [float(t[0, 0]) for t in other] == [0, 1, 2, 3, 4] and one[3:][0].equal(one[3])
    del one
    assert bound.left == bound.most
    free = States(batches)
    assert free.bytes_here == 5 * 128 and all(a is b for a, b in zip(free, batches, strict=True))


def test_what_is_kept_is_asked_for_one_at_a_time(tmp_path: Path) -> None:
    """Of states that lie on the disk, as they are kept for a run that goes on."""
    alive: list[int] = []

    class Made:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, number: int) -> torch.Tensor:
            alive.append(number)
            return torch.full((3,), float(number), dtype=torch.bfloat16)

    sealed.write(tmp_path / "a.safetensors", Numbered({"x.": Made(), "about.": [torch.tensor(7.0)]}))  # type: ignore
    assert alive == [0, 1, 2, 3] * 2, "once for the digest, once for the file"
    found = sealed.read(tmp_path / "a.safetensors", "cure")
    assert set(load_file(tmp_path / "a.safetensors")) == set(found) and found["about.0"] == 7
    assert [float(t[0]) for t in listed(found, torch.device("cpu"), "x.")] == [0, 1, 2, 3]


def test_a_file_that_is_written_a_tensor_at_a_time(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
    tensors = {str(kind): torch.arange(6).to(kind).view(2, 3).T for kind in kinds}
    tensors |= {"bool": torch.tensor([True, False]), "none": torch.empty(0, 3), "one": torch.tensor(2.5)}
    tensor_file.write_all(tmp_path / "a.safetensors", tensors)
    read, found = load_file(tmp_path / "a.safetensors"), tensor_file.InFile(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys() == set(found) and len(found) == len(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with pytest.raises(KeyError):
        found["two"]


# -- what is refused


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--max-memory", "lots"), "--max-memory 'lots' is no amount of memory; expected something like 4GB or 800MB"),
        (("--max-memory", "0GB"), "is no amount of memory"),
        (("--max-memory", "4iB"), "is no amount of memory"),
        (("--max-memory", "1GB", "--steps", 20, "--method", "gum"), "--stream prunes at once: a training needs"),
        (("--max-memory", "1GB", "--budget", "dp"), "drop --max-memory: what --budget dp holds is not known"),
        (("--max-memory", "1GB", "--units", "layers"), "drop --max-memory: what obs of layers holds is not known"),
        (("--max-memory", "1GB", "--ffn", "up=mlp.up_proj,down=mlp.down_proj"), "--ffn is proved on the whole model"),
    ],
)
def test_what_can_not_be_bounded(words: tuple[object, ...], sentence: str, here: Path) -> None:
    assert sentence in refused("prune", "m", "--data", "cats.txt", "--out", "out", *words)
    assert sorted(place.name for place in here.iterdir()) == ["cats.txt", "m"]


def test_what_one_block_needs_is_told_and_is_enough(here: Path, spilled: list[int]) -> None:
    few = least("--method", "activation")
    assert few < told("--method", "activation")["memory_mb"] * 1e6
    dry = ("--method", "activation", "--max-memory", "1kB", "--dry-run", "--out", "o")
    assert "is too little: activation needs" in refused("prune", "m", "--data", "cats.txt", *SHORT, *dry)
    assert prune("--method", "activation", "--max-memory", f"{few / 1e6 + 0.001}MB", "--out", "o").code == 0 and spilled


@pytest.mark.parametrize(("full", "what"), [("out", "the result will take"), ("tmp", "hidden states will take")])
def test_a_disk_that_will_not_hold_it_is_told_before_the_work(
    full: str, what: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--max-memory", f"{least() / 1e6 + 0.001}MB")
    (here / "tmp").mkdir()
    (here / "beside").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "tmp"))
    place, free = here / ("beside" if full == "out" else "tmp"), [10_000]
    usage = shutil.disk_usage
    monkeypatch.setattr(
        shutil, "disk_usage",
        lambda asked: SimpleNamespace(free=free[0]) if Path(asked) == place else usage(asked),
    )  # fmt: skip
    said = refused("prune", "m", "--data", "cats.txt", *SHORT, "--out", "beside/out", *words)
    assert what in said and "where 0.01 MB is free; make room or" in said and not list((here / "beside").iterdir())
    free[0] = 10_000_000
    assert prune("--out", "beside/out", *words).code == 0


def test_what_an_earlier_run_left_need_not_be_free_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = told()["disk_mb"] * 1e6
    with cut_off(monkeypatch, 7), pytest.raises(PowerCut):
        prune("--stream", "--out", "out")
    left = sum(file.stat().st_size for file in Path("out.pruning").rglob("*") if file.is_file())
    assert 1000 < left < whole
    free = whole - left + 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert prune("--stream", "--out", "out", "--resume").code == 0
    assert "make room or" in refused("prune", "m", "--data", "cats.txt", *SHORT, "--stream", "--out", "another")


def test_states_that_fit_while_embeddings_are_written_stay() -> None:
    """Writing takes most here, so that what is least is what is most, and a bound that is enough leaves no room."""
    shape = Shape((10,), outside=1000, hidden=1, vocabulary=1, width=1, number=4, streamed=True)
    asked: Any = None  # the work, which nothing here asks about
    of = needs.Needs(0.0, shape, 2, 1010, 1010, Memory.of(Held(0.0, 1500.0)), asked)
    assert of.peak == of.least == 6040 and of.room(6040) is None and of.spilled(6040) == 0
    whole = replace(of, shape=replace(shape, streamed=False), held=Memory.of(Held(0.0)))
    assert whole.peak == 1010 * (4 + 2 * 2), "the model, and a copy in each dtype"


def test_a_text_takes_memory_where_one_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ("magnitude", "activation")
    without = [told("--method", method)["memory_mb"] for method in methods]
    monkeypatch.setattr(needs, "_TEXT", 7e6)
    assert [told("--method", method)["memory_mb"] for method in methods] == [without[0], pytest.approx(without[1] + 7)]


def test_a_file_that_is_mapped_counts(here: Path) -> None:
    library.save(model_of("llama"), "words", tokenizer=bpe())
    assert lmprune("export", "words", "--to", "gguf", "--out", "m.gguf", "--no-verify").code == 0

    def streamed(model: str) -> float:
        words = ("--method", "magnitude", "--keep", 0.5, "--out", "o", "--dry-run", "--json")
        return lmprune("prune", model, *words).record["ways"]["streamed"]["memory_mb"] * 1e6

    assert streamed("m.gguf") - streamed("words") >= (here / "m.gguf").stat().st_size


def test_amounts() -> None:
    assert [needs._told(number) for number in (0, 1_000_100, 2.5e9)] == ["0 MB", "1.01 MB", "2.5 GB"], "never less"
    assert parse_memory(None) is None
    assert [parse_memory(text) for text in ("1", "2 kB", "3MiB", "0.5tb")] == [1, 2000, 3 * 2**20, 5e11]
    with pytest.raises(UserError, match="no amount of memory"):
        parse_memory("-1GB")
