import pytest

from lmprune.evaluation import bleu
from lmprune.evaluation.intervals import Estimate


def test_bleu_by_hand():
    """5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; no brevity penalty."""
    found = bleu.score(["the cat sat on the mat"], [["the cat sat on a mat"]])["bleu"]
    assert found.value == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert found.low == pytest.approx(found.value) and found.high == pytest.approx(found.value)  # one item


def test_brevity_by_hand():
    """Every n-gram is right, but 4 words stand for 6."""
    found = bleu.score(["the cat sat on"], [["the cat sat on a mat"]])["bleu"]
    assert found.value == pytest.approx(100 * 2.718281828 ** (1 - 6 / 4))


def test_chrf_by_hand():
    """2 of 3 letters, 1 of 2 pairs, no triple; precision equals recall."""
    assert bleu.score(["abc"], [["abd"]])["chrf"].value == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_references_may_differ_in_number():
    outputs = ["a b c d e", "f g h i j"]
    assert bleu.score(outputs, [["x y", "a b c d e"], ["f g h i j"]])["bleu"].value == pytest.approx(100)
    assert bleu.score(outputs, [["x y", "a b c d e"], ["f g h z j"]])["bleu"].value < 80


def test_intervals_hold_the_value_and_empty_output_is_zero():
    outputs = ["a b c d e f", "a b c x e f", "y b c d e f", "a b c d x y"] * 10
    for found in bleu.score(outputs, [["a b c d e f"]] * 40).values():
        assert 0 < found.low < found.value < found.high < 100
    assert bleu.score(["", ""], [["a b"], ["c"]])["bleu"] == Estimate(0, 0, 0)


def test_the_interval_of_a_corpus_with_some_resamples_at_zero():
    """One good output among twelve: a third of the resamples miss it."""
    outputs, right = ["a b c d e", *["x y"] * 11], [["a b c d e"], *[["z"]] * 11]
    assert (found := bleu.score(outputs, right)["chrf"]).low == 0 < found.value < found.high
