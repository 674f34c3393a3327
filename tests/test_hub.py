"""Pushing to the hub, which is not there: what would be sent, and what a user hears who may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2 as http
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from test_bad_input import refused
from tiny_checkpoints import lmprune

from lmprune.checkpoints import hub

QUICK = ("--method", "magnitude", "--multiple-of", 8)


class FakeHub:
    """An HfApi that remembers what it is given."""

    def __init__(self, error: Exception | None = None):
        self.error = error
        self.uploaded: dict[str, Any] = {}

    def __call__(self) -> FakeHub:
        return self

    def whoami(self) -> dict[str, str]:
        if self.error:
            raise self.error
        return {"name": "me"}

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> str:
        assert exist_ok
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
        self.uploaded |= {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}

    def upload_file(self, *, repo_id: str, path_or_fileobj: Any, path_in_repo: str) -> None:
        data = path_or_fileobj if isinstance(path_or_fileobj, bytes) else Path(path_or_fileobj).read_bytes()
        self.uploaded[path_in_repo] = data


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", fake)
    return fake


def test_prune_pushes_the_checkpoint_with_its_card(fake: FakeHub, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    record = lmprune("prune", model, *QUICK, "--out", out, "--push-to-hub", "me/small", "--json").record
    assert record["pushed"] == "https://hub/me/small"
    assert fake.uploaded == {path.name: path.read_bytes() for path in out.iterdir()}
    assert b"lmprune" in fake.uploaded["README.md"] and "--push-to-hub" not in record["command"]


def test_export_pushes_the_file_and_the_card_of_the_checkpoint(fake: FakeHub, tmp_path: Path) -> None:
    from test_gguf import bpe, model_of

    from lmprune.checkpoints import checkpoint
    from lmprune.plan import PrunePlan

    plan = PrunePlan.of_neurons(((0,),), (4,))
    checkpoint.save(model_of("llama-tied"), tmp_path / "in", tokenizer=bpe(), plan=plan, card="# Card\n")
    shown = lmprune(
        "export", tmp_path / "in", "--to", "gguf", "--out", tmp_path / "m.gguf", "--push-to-hub", "me/small"
    )
    assert shown.code == 0 and "pushed to https://hub/me/small" in shown.out
    assert fake.uploaded["m.gguf"] == (tmp_path / "m.gguf").read_bytes()
    sent = fake.uploaded["README.md"].decode()
    assert sent.endswith("\n\n# Card\n") and "--to gguf" in sent


def test_without_a_login_nothing_is_begun(fake: FakeHub, model: Path, tmp_path: Path) -> None:
    fake.error = LocalTokenNotFoundError("no token")
    sentence = refused("prune", model, *QUICK, "--out", tmp_path / "o", "--push-to-hub", "me/small")
    assert sentence == "can't push to me/small: not logged in to the hub; run `hf auth login` first"
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_says_no(fake: FakeHub, model: Path, tmp_path: Path) -> None:
    answer = http.Response(403, request=http.Request("POST", "https://hub"))
    fake.error = HfHubHTTPError("403 Forbidden: you have no right to write", response=answer)
    sentence = refused("prune", model, *QUICK, "--out", tmp_path / "o", "--push-to-hub", "other/small")
    assert sentence.startswith("can't push to other/small: 403 Forbidden")
