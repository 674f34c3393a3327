"""A model's licence is found wherever its makers say it, and goes along with everything that is made of it."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from test_hub import QUICK, FakeHub
from tiny_checkpoints import lmprune

from lmprune.checkpoints import hub, licences
from lmprune.checkpoints.licences import Licence, find_licence
from lmprune.errors import UserError
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.runtimes.gguf_file import read_gguf

CARD = "---\nlicense: other\nlicense_name: tiny-1.0\nlicense_link: LICENSE\ntags:\n- x\n---\n# Tiny\n"
TOLD = {"license": "other", "license_name": "tiny-1.0", "license_link": "LICENSE"}


@pytest.fixture
def licensed(model: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model, tmp_path / "licensed"))
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_bytes("Do as you like, © me.\n".encode("latin-1"))
    (folder / "Notice.txt").write_text("By me.")
    (folder / "licensing-server.json.d").mkdir()
    return folder


def gguf_file(path: Path, **fields: str) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_array("deci.feed_forward_length", [3, 4])
    writer.add_float32("llama.rope.freq_base", 1e4)
    for key, value in fields.items():
        writer.add_string(f"general.{key.replace('_', '.')}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_of_a_folder(licensed: Path) -> None:
    found = find_licence(licensed)
    assert found.record() == TOLD | {"license_files": ["LICENSE", "Notice.txt"]}
    assert found.files["LICENSE"] == (licensed / "LICENSE").read_bytes()
    (licensed / "LICENSE").write_bytes(b"x" * (licences._LARGEST + 1))
    assert list(find_licence(licensed).files) == ["Notice.txt"]


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("---\nlicense: [mit, apache-2.0]\n---\n", {"license": "mit, apache-2.0"}),
        ("---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        ("\ufeff---\nlicense: mit\n---\n", {"license": "mit"}),
        ("# No front matter\nlicense: mit\n", {}),
        ("---\nlicense: [\n---\n", {}),
        ("---\n- mit\n---\n", {}),
        ("---\nlicense:\n---\n", {}),
    ],
)
def test_of_a_card(card: str, told: dict[str, str], model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "m"))
    (folder / "README.md").write_bytes(card.encode())
    assert find_licence(folder).record() == told


def test_of_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("of something else in this folder")
    path = gguf_file(tmp_path / "a.gguf", license="gemma", license_link="https://ai.google.dev/gemma/terms")
    assert find_licence(path) == Licence("gemma", link="https://ai.google.dev/gemma/terms")
    assert read_gguf(path).settings()["rope.freq_base"] == 1e4
    assert find_licence(gguf_file(tmp_path / "b.gguf")) == licences.UNKNOWN
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-60])
    (tmp_path / "no.gguf").write_bytes(b"hello" * 20)
    for name in ("cut", "no"):
        with pytest.raises(UserError, match=rf"{name}\.gguf is (damaged or cut short|not a GGUF file)"):
            find_licence(tmp_path / f"{name}.gguf")


def test_of_the_alias() -> None:
    assert find_licence("smollm2-135m").id == "apache-2.0"


def test_of_the_hub(licensed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(place: str, **how: Any) -> str:
        asked.update(how, place=place)
        return str(licensed)

    monkeypatch.setattr(licences, "hub_options", lambda found: {"revision": found.revision, "local_files_only": False})
    monkeypatch.setattr(licences, "snapshot_download", download)
    assert find_licence("them/tiny@v2").id == "other"
    assert asked["place"] == "them/tiny" and asked["revision"] == "v2"

    def absent(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no")

    monkeypatch.setattr(licences, "snapshot_download", absent)
    assert find_licence("them/tiny") == licences.UNKNOWN


def test_it_goes_along_with_what_is_made(licensed: Path, tmp_path: Path) -> None:
    """Down a chain of two prunings and an export, into card, folder and plan."""
    pruned, again, padded = (tmp_path / name for name in ("pruned", "again", "padded"))
    assert lmprune("prune", licensed, *QUICK, "--out", pruned).code == 0
    assert lmprune("prune", pruned, *QUICK, "--out", again).code == 0
    assert lmprune("export", again, "--to", "hf-uniform", "--out", padded).code == 0
    for folder in (pruned, again, padded):
        assert (folder / "LICENSE").read_bytes() == (licensed / "LICENSE").read_bytes()
        assert (folder / "Notice.txt").exists()
        data = ModelCard.load(folder / "README.md").data
        assert {key: data[key] for key in TOLD} == TOLD
        told = PrunePlan.load(folder / PLAN_FILE).provenance["model"]
        assert {key: told[key] for key in TOLD} == TOLD
    assert "(tiny-1.0); its text: `LICENSE`, `Notice.txt`." in (pruned / "README.md").read_text()


def test_a_model_without_one_is_said_to_have_none(model: Path, tmp_path: Path) -> None:
    assert lmprune("prune", model, *QUICK, "--out", tmp_path / "o").code == 0
    card = (tmp_path / "o" / "README.md").read_text()
    assert "names none; ask its makers" in card and ModelCard(card).data.license is None


def test_a_dense_model_that_is_exported_keeps_it(
    licensed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", fake)
    out = tmp_path / "o"
    shown = lmprune("export", licensed, "--to", "hf-uniform", "--out", out, "--push-to-hub", "me/copy")
    assert shown.code == 0 and fake.uploaded["LICENSE"] == (licensed / "LICENSE").read_bytes()
    card = (out / "README.md").read_text()
    assert ModelCard(card).data["license_name"] == "tiny-1.0" and "A copy of `licensed` that `lmprune export" in card
    assert not (out / PLAN_FILE).exists()


def test_the_package_names_its_own() -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0" and project["authors"]
    assert [(root / name).is_file() for name in project["license-files"]] == [True]
