"""`lmprune eval --to-card`: what was measured stands in the checkpoint's card, once, and nothing else of it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_bad_input import refused
from test_zero_shot import ROWS, write
from tiny_checkpoints import lmprune, tiny_checkpoint

from lmprune.jobs.measured_card import CARD, with_section


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    dense = tiny_checkpoint(tmp_path / "dense")
    out = tmp_path / "half"
    assert lmprune("prune", dense, "--method", "magnitude", "--multiple-of", 4, "--keep", 0.5, "--out", out).code == 0
    return out


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    folder = tmp_path / "kinds"
    folder.mkdir()
    for kind in ("prose", "code|x"):
        (folder / f"{kind}.validation.txt").write_text(f"A line about {kind}, and some more.\n" * 40)
    return folder


def test_each_measurement_has_its_section_and_a_later_one_takes_its_place(
    pruned: Path, kinds: Path, tmp_path: Path
) -> None:
    before = (pruned / CARD).read_text()
    asked = (
        "eval",
        pruned,
        "--texts",
        "--data-dir",
        kinds,
        "--baseline",
        tmp_path / "dense",
        "--context",
        64,
        "--json",
    )
    record = lmprune(*asked, "--max-tokens", 512, "--to-card").record
    first = (pruned / CARD).read_text()
    assert "\n## Perplexity by kind of text\n\nAgainst `dense`.\n" in first  # without the folders of this disk
    assert f"| prose | {record['texts']['prose']['perplexity']:.2f} | " in first and "| code&#124;x | " in first
    folder = write(tmp_path, "piqa", [ROWS["piqa"](i) for i in range(3)]).parent
    tasks = lmprune("eval", pruned, "--tasks", "piqa", "--data-dir", folder, "--to-card", "--json").record
    both = (pruned / CARD).read_text()
    assert f"| piqa | {tasks['tasks']['piqa']['accuracy']:.3f}" in both
    assert both.index("## Perplexity by kind") < both.index("## Zero-shot tasks") < both.index("## Licence")
    fewer = lmprune(*asked, "--max-tokens", 256, "--to-card").record["texts"]["prose"]["tokens"]
    again = (pruned / CARD).read_text()
    assert again.count("## Perplexity by kind of text") == 1 and fewer < 257 and f"{fewer} tokens of each" in again
    start, end = again.index("## Perplexity by kind"), again.index("## Licence")
    assert again[:start] + again[end:] == before  # all else is as it was
    lmprune(*asked, "--max-tokens", 512)
    assert (pruned / CARD).read_text() == again  # nobody asked


def test_cards_of_other_people() -> None:
    assert with_section("", "A", "b") == "## A\n\nb\n"
    assert with_section("# T", "A", "b") == "# T\n\n## A\n\nb\n"
    last = with_section("# T\n\n## A\n\nold | text\n", "A", "new")
    assert last == "# T\n\n## A\n\nnew\n"
    assert with_section("## A\n\nold\n\n## B\n\nc\n", "A", "new") == "## A\n\nnew\n\n## B\n\nc\n"
    assert with_section("## About A\n\nx\n", "A", "b").startswith("## About A\n\nx\n\n## A\n")


def test_where_there_is_no_card(pruned: Path, kinds: Path, tmp_path: Path) -> None:
    told = refused("eval", tmp_path / "dense", "--texts", "--data-dir", kinds, "--to-card")
    assert told.startswith("--to-card adds to the README.md of a folder on this disk")
    assert "drop --to-card" in refused("eval", pruned, "--data", kinds / "prose.validation.txt", "--to-card")
    (pruned / CARD).write_bytes(b"\xff\xfe\x00")
    told = refused("eval", pruned, "--texts", "--data-dir", kinds, "--max-tokens", 256, "--context", 64, "--to-card")
    assert "can't be read as text" in told and (pruned / CARD).read_bytes() == b"\xff\xfe\x00"
