"""The examples do what they say, on a tiny model."""

from __future__ import annotations

import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from test_plugins import _tables_as_they_were as _tables_as_they_were  # a fixture of every test here
from tiny_checkpoints import lmprune as command_line
from tiny_models import LAYERS, WIDTH

import lmprune
from lmprune.sites.find import find_sites

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize("name", ["own_loop.py", "own_trainer.py"])
def test_training_examples(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, model, tmp_path / "out", monkeypatch=monkeypatch)
    plan = lmprune.PrunePlan.load(tmp_path / "out" / "prune_plan.json")
    assert plan.settings["method"] == "gum" and sum(plan.widths) == LAYERS * WIDTH // 2
    assert [ffn.width for ffn in find_sites(lmprune.load(tmp_path / "out"))] == plan.widths
    assert str(plan.widths) in capsys.readouterr().out


def test_masks_and_statistics_by_hand(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("by_hand.py", model, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "of the louder half of the neurons" in out and "mean" in out


@pytest.mark.parametrize("installed", [True, False])
def test_a_method_of_one_s_own(
    installed: bool, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `pip install examples/own_method` would leave it, and as a file that --plugin names."""
    folder = EXAMPLES / "own_method"
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("lmprune_loudest", None)
    more: list[object] = []
    if installed:
        info = tmp_path / "lmprune_loudest-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
        ((group, entries),) = project["entry-points"].items()
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.syspath_prepend(tmp_path)
    else:
        more = ["--plugin", folder / "plugin.py"]
    options = ("--method", "loudest", "--keep", 0.5, "--multiple-of", 8, "--seq-len", 32, "--data", text, "--json")
    record = command_line("prune", model, *options, "--out", tmp_path / "out", *more).record
    assert record["method"] == "loudest" and record["widths"] == [24] * LAYERS
