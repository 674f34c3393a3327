import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from lmprune.checkpoints.fingerprint import weights_fingerprint
from lmprune.data.pairs import Item
from lmprune.errors import UserError
from lmprune.evaluation.decoding import Output
from lmprune.evaluation.predictions import PREDICTIONS, SETTINGS, Predictions

ITEMS = [Item(f"context {i}", (f" right {i}", f" also right {i}")) for i in range(4)]
SETTINGS_OF_ALL = {"weights": "abc", "max_new_tokens": 8}


def opened(folder: Path, **changes: Any) -> Predictions:
    return Predictions(folder, {**SETTINGS_OF_ALL, **changes})


def test_what_was_written_is_found_again(tmp_path):
    folder = tmp_path / "new" / "folder"
    first = opened(folder)
    first.add({3: Output("text\n\u2028é", True), 1: Output("", False)}, ITEMS)
    again = opened(folder)
    assert again.outputs == first.outputs == {3: Output("text\n\u2028é", True), 1: Output("", False)}
    again.add({0: Output("x", True)}, ITEMS)
    assert sorted(opened(folder).outputs) == [0, 1, 3]
    line = json.loads((folder / PREDICTIONS).read_text("utf-8").split("\n")[0])
    assert line == {
        "index": 3, "prediction": "text\n\u2028é", "references": ["right 3", "also right 3"], "context": "context 3",
        "finished": True,
    }  # fmt: skip


def test_a_line_cut_short_is_dropped_from_the_file_too(tmp_path):
    opened(tmp_path).add({0: Output("a", True), 1: Output("é", True)}, ITEMS)
    file = tmp_path / PREDICTIONS
    whole = file.read_bytes()
    for end in (len(whole) - 5, whole.index("é".encode()) + 1):  # within a character too
        file.write_bytes(whole[:end])
        assert list(opened(tmp_path).outputs) == [0]
    opened(tmp_path).add({1: Output("b", True)}, ITEMS)
    assert opened(tmp_path).outputs == {0: Output("a", True), 1: Output("b", True)}


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Predictions(None, {}).add({0: Output("a", True)}, ITEMS)
    assert not [*tmp_path.iterdir()]


def test_other_settings_are_refused(tmp_path):
    opened(tmp_path).add({0: Output("a", True)}, ITEMS)
    with pytest.raises(UserError, match=r"predictions of another evaluation \(max_new_tokens was 8, is 9\); choose"):
        opened(tmp_path, max_new_tokens=9)
    assert len(opened(tmp_path).outputs) == 1


def test_folders_that_are_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds something other than predictions"):
        opened(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="can't write"):
        opened(Path("/proc/nothing/here"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / SETTINGS).write_text("{")
    with pytest.raises(UserError, match=r"settings\.json is damaged: .*; choose another --out"):
        opened(tmp_path / "broken")


def test_the_fingerprint_is_that_of_the_weights():
    model = tiny_model("gpt2")
    assert (
        weights_fingerprint(model)
        == weights_fingerprint(tiny_model("gpt2"))
        != weights_fingerprint(tiny_model("gpt2", seed=1))
    )
    assert weights_fingerprint(model.to(torch.bfloat16)) != weights_fingerprint(tiny_model("gpt2"))
