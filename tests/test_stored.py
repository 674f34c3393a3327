"""Weights are regular safetensors files of the checkpoint's own folder, and they are read, not mapped."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_checkpoints import TEXT, lmprune, tiny_checkpoint
from tiny_models import logits, tiny_model

from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.stored import INDEX, SINGLE, opened
from lmprune.errors import UserError

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "m")


@pytest.fixture
def shards(folder: Path) -> Path:
    """The same model in two files and an index."""
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(weights)
    parts = dict(zip(SHARDS, (names[::2], names[1::2]), strict=True))
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    write_index(folder, {name: file for file, part in parts.items() for name in part})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def change_index(folder: Path, file: object) -> None:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    write_index(folder, {name: file if old == SHARDS[1] else old for name, old in weight_map.items()})


def refused(source: Path | str, match: str) -> None:
    """Loading and looking say the same; nothing blocks, as opening a FIFO would."""
    for read in (models.load, models.skeleton):
        found: list[BaseException] = []

        def run(read: Callable[..., Any] = read, found: list[BaseException] = found) -> None:
            try:
                read(source)
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "it waits for a file that nobody writes"
        with pytest.raises(UserError, match=match) as caught:
            raise found[0] if found else AssertionError(f"{source} opens")
        assert "\n" not in str(caught.value)


def test_shards_are_the_same_model(shards: Path) -> None:
    assert torch.equal(logits(models.load(shards)), logits(models.load(tiny_checkpoint(shards.parent / "whole"))))


# -- which files


def test_shards_beside_a_stale_file(shards: Path) -> None:
    weights = {name: tensor * 2 for part in SHARDS for name, tensor in load_file(shards / part).items()}
    save_file(weights, shards / SINGLE, {"format": "pt"})
    refused(shards, r"m has both model\.safetensors and model\.safetensors\.index\.json, which names other files; rem")
    (shards / INDEX).unlink()
    refused(shards, r"m has model-00001-of-00002\.safetensors beside model\.safetensors, but no model\.safetensors\.in")
    (shards / SINGLE).unlink()
    refused(shards, r"m has model-00001-of-00002\.safetensors, but no model\.safetensors\.index\.json")


def test_an_index_of_the_one_file(folder: Path) -> None:
    """As mlx-lm writes it."""
    write_index(folder, dict.fromkeys(load_file(folder / SINGLE), SINGLE))
    assert models.load(folder)


class Trap:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_an_index_that_names_a_pickle(shards: Path) -> None:
    weights = load_file(shards / SHARDS[1])
    torch.save(weights, shards / "pytorch_model.bin")
    change_index(shards, "pytorch_model.bin")
    refused(shards, r"index\.json names 'pytorch_model\.bin' as a file of weights; expected \*\.safetensors files of")
    ran = shards.parent / "ran"
    (shards / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(ran)))
    refused(shards, r"index\.json names 'pytorch_model\.bin'")
    (shards / "pytorch_model.bin").rename(shards / "model-x.safetensors")
    write_index(shards, dict.fromkeys(weights, "model-x.safetensors"))
    refused(shards, "damaged or cut short")
    assert not ran.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../o/model.safetensors",
        "/o/model.safetensors",
        "a/b.safetensors",
        ".x.safetensors",
        "a\\b.safetensors",
        3,
        None,
        [],
        "",
    ],
)
def test_an_index_that_names_files_elsewhere(shards: Path, name: object) -> None:
    other = tiny_checkpoint(shards.parent / "o")
    if isinstance(name, str) and name.startswith("/"):
        name = str(other / SINGLE)
    change_index(shards, name)
    refused(shards, r"expected \*\.safetensors files of its own folder|is no index of weights")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\x00\xff"])
def test_an_index_that_is_none(shards: Path, content: str) -> None:
    (shards / INDEX).write_text(content, encoding="latin-1")
    refused(shards, "is no index of weights")


def test_a_shard_that_is_not_there(shards: Path) -> None:
    (shards / SHARDS[1]).unlink()
    refused(shards, r"index\.json names model-00002-of-00002\.safetensors, which is not there")


@pytest.mark.parametrize("which", [SINGLE, SHARDS[1], INDEX])
@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "device", "folder", "link to nothing"])
def test_weights_that_are_no_regular_file(
    which: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place = request.getfixturevalue("folder" if which == SINGLE else "shards")
    file: Path = place / which
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "link to a fifo":
        os.mkfifo(tmp_path / "fifo")
        file.symlink_to(tmp_path / "fifo")
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(tmp_path / "nothing")
    refused(place, "is no regular file; expected weights as safetensors|can't read .*: No such file")


def test_links_to_regular_files(folder: Path, tmp_path: Path) -> None:
    """A folder of the hub's cache is made of them."""
    (folder / SINGLE).rename(tmp_path / "blob")
    (folder / SINGLE).symlink_to(tmp_path / "blob")
    assert models.load(folder)


def test_a_tensor_in_two_files(shards: Path) -> None:
    weights = load_file(shards / SHARDS[0]) | load_file(shards / SHARDS[1])
    save_file(weights, shards / SHARDS[1], {"format": "pt"})
    refused(shards, r"is in two files, one of them model-00002-of-00002\.safetensors")


def test_weights_that_the_config_names(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())

    def name(file: str) -> None:
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": file}))

    (folder / SINGLE).rename(folder / "other.safetensors")
    name("other.safetensors")
    assert (
        "transformers_weights"
        not in (checkpoint.save(models.load(folder), folder.parent / "o") / "config.json").read_text()
    )
    name("none.safetensors")
    refused(folder, "config.json names none.safetensors as its weights, which is not there")
    for elsewhere in ("../m/other.safetensors", "adapter_model.bin", str(folder / "other.safetensors")):
        name(elsewhere)
        refused(folder, r"expected a \*\.safetensors file beside it")


# -- read, not mapped


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_file_that_changes_under_a_loaded_model(folder: Path, dtype: str) -> None:
    model = models.load(folder, dtype=dtype)
    before = logits(model)
    file = folder / SINGLE
    with file.open("r+b") as changed:
        changed.seek(file.stat().st_size // 2)
        changed.write(bytes(file.stat().st_size // 3))
    assert torch.equal(logits(model), before)
    with pytest.raises(AssertionError):  # the change is one that shows
        assert torch.equal(logits(models.load(folder, dtype=dtype)), before)


def test_a_file_that_changes_while_it_is_read(folder: Path) -> None:
    file = folder / SINGLE
    with pytest.raises(UserError, match="changed while it was read; try again"), opened([file]) as tensors:
        next(iter(tensors.values()))[...]
        with file.open("ab") as changed:
            changed.write(b"more")


# -- adapters


def adapter(folder: Path, base: Path) -> Path:
    peft = pytest.importorskip("peft", reason="needs the extra lora")
    config = peft.LoraConfig(target_modules=["up_proj"], r=2, base_model_name_or_path=str(base))
    peft.get_peft_model(models.load(base), config).save_pretrained(folder)
    return folder


def test_an_adapter_is_no_model(folder: Path, tmp_path: Path) -> None:
    place = adapter(tmp_path / "lora", folder)
    sentence = (
        f"{place} holds a PEFT adapter (adapter_config.json) for {str(folder)[:60]}, not a whole model; "
        f"merge it first, in Python with peft's AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
        ".save_pretrained('merged'), and give the merged folder"
    )
    text = tmp_path / "cats.txt"
    text.write_text(TEXT)
    train = ("--data", text, "--steps", 2, "--seq-len", 32, "--out", tmp_path / "out")
    for command in (
        ("inspect", place),
        ("eval", place, "--data", text),
        ("eval", folder, "--data", text, "--baseline", place),
        ("prune", place, "--data", text, "--out", tmp_path / "out"),
        ("finetune", place, *train),
        ("finetune", folder, "--teacher", place, *train),
        ("export", place, "--to", "hf-uniform", "--out", tmp_path / "out"),
    ):
        shown = lmprune(*command)
        assert shown.code == 2 and sentence in shown.err, shown
    for file in folder.iterdir():  # peft's own example: the adapter beside its base, which transformers would add
        (place / file.name).write_bytes(file.read_bytes())
    refused(place, "holds a PEFT adapter")


def test_a_merged_adapter_opens(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra lora")
    place = adapter(tmp_path / "lora", folder)
    merged = peft.AutoPeftModelForCausalLM.from_pretrained(str(place)).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(models.load(tmp_path / "merged")), logits(models.load(folder)))


# -- the hub's cache

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of owner/name in a hub cache: links into `blobs`, as downloads leave them; there is no hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--owner--name"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(tiny_checkpoint(tmp_path / "m").iterdir()):
        blob = repo / "blobs" / f"{number:040}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def load_cached() -> Any:
    return models.load("owner/name")


def test_a_model_that_was_downloaded_before(cached: Path) -> None:
    model = load_cached()
    assert torch.equal(logits(model), logits(models.load(cached.parents[3] / "m")))
    assert model.config._name_or_path == "owner/name" and model.generation_config.bos_token_id == 256
    assert models.load_tokenizer("owner/name")("a").input_ids


def test_a_cached_index_that_names_files_elsewhere(cached: Path) -> None:
    weights = load_file(cached / SINGLE)
    (cached / SINGLE).unlink()
    torch.save(weights, cached / "pytorch_model.bin")
    for name in ("pytorch_model.bin", "../../blobs/x.safetensors", str(cached.parents[3] / "m" / SINGLE)):
        write_index(cached, dict.fromkeys(weights, name))
        with pytest.raises(UserError, match=r"expected \*\.safetensors files of its own folder"):
            load_cached()
    write_index(cached, dict.fromkeys(weights, SHARDS[0]))
    with pytest.raises(UserError, match=r"names model-00001-of-00002\.safetensors, which is not there"):
        load_cached()
    os.mkfifo(cached / SHARDS[0])
    with pytest.raises(UserError, match="is no regular file"):
        load_cached()


def test_a_cached_adapter(cached: Path) -> None:
    (cached / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    with pytest.raises(UserError, match=r"owner/name holds a PEFT adapter \(adapter_config\.json\) for owner/base"):
        load_cached()


def test_a_model_that_was_never_downloaded(cached: Path) -> None:
    with pytest.raises(UserError, match="no such folder here, and not on"):
        models.load("owner/other")


# -- a hub that answers


@pytest.fixture
def hub(cached: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the cached snapshot what the hub has; returns the names of the files that were asked for."""
    from lmprune.checkpoints import downloads

    asked: list[str] = []

    class Api:
        def model_info(self, name: str, revision: str | None = None) -> Any:
            siblings = [type("File", (), {"rfilename": file.name}) for file in cached.iterdir()]
            return type("Info", (), {"sha": COMMIT, "siblings": siblings})

    def download(name: str, file: str, revision: str) -> str:
        assert (name, revision) == ("owner/name", COMMIT)
        asked.append(file)
        return str(cached / file)

    monkeypatch.setattr(downloads, "HfApi", Api)
    monkeypatch.setattr(downloads, "hf_hub_download", download)
    monkeypatch.setattr(downloads, "hub_is_reachable", lambda: True)
    return asked


def test_only_what_is_needed_is_downloaded(hub: list[str], cached: Path) -> None:
    (cached / "consolidated.safetensors").write_bytes(b"the same again, for another program")
    assert load_cached()
    assert hub == [SINGLE, "generation_config.json"]


def test_the_plan_of_a_model_on_the_hub(hub: list[str], cached: Path) -> None:
    from lmprune.jobs.inspection import find_plan
    from lmprune.plan import PLAN_FILE, PrunePlan

    assert find_plan("owner/name") is None and not hub
    plan = PrunePlan.of_neurons([range(4)] * 2, [4, 4])
    (cached / PLAN_FILE).write_text(plan.to_json())
    assert find_plan("owner/name") == plan and hub == [PLAN_FILE]


def test_nothing_that_is_refused_is_downloaded(hub: list[str], cached: Path) -> None:
    weights = load_file(cached / SINGLE)
    write_index(cached, dict.fromkeys(weights, SHARDS[0]))
    with pytest.raises(UserError, match=r"owner/name has both model\.safetensors and model\.safetensors\.index\.json"):
        load_cached()
    (cached / SINGLE).unlink()
    for name in ("pytorch_model.bin", "../x.safetensors"):
        write_index(cached, dict.fromkeys(weights, name))
        with pytest.raises(UserError, match=r"expected \*\.safetensors files of its own folder"):
            load_cached()
    assert set(hub) == {INDEX}


def test_the_shim_from_the_hub(hub: list[str], cached: Path, tmp_path: Path) -> None:
    from lmprune.sites.find import find_sites

    model = tiny_model("llama")
    for ffn, width in zip(find_sites(model), (16, 24, 40), strict=True):
        ffn.keep(torch.arange(width))
    for file in checkpoint.save(model, tmp_path / "cut").iterdir():
        (cached / file.name).unlink(missing_ok=True)
        (cached / file.name).write_bytes(file.read_bytes())
    assert torch.equal(logits(load_cached()), logits(model))
    assert "shim.py" not in hub
