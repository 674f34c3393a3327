"""An error that teaches names what was wrong and what is known."""

from __future__ import annotations

from lmprune.errors import UserError, unknown


def test_the_nearest_name_is_suggested_first() -> None:
    error = unknown("method", "gumm", ["obs", "gum", "random"])
    assert isinstance(error, UserError) and isinstance(error, ValueError)
    assert str(error) == "unknown method 'gumm'; did you mean gum? known: obs, gum, random"


def test_two_near_names() -> None:
    assert "did you mean qwen3 or qwen2?" in str(unknown("family", "qwen", ["llama", "qwen2", "qwen3"]))


def test_nothing_near() -> None:
    assert str(unknown("method", "zzz", ["obs", "gum"])) == "unknown method 'zzz'; known: obs, gum"
