import pytest

from lmprune.evaluation import rouge


def values(prediction: str, *references: str) -> dict[str, float]:
    return {name: found.value for name, found in rouge.score([prediction], [references]).items()}


def test_by_hand():
    """2 of 3 and 2 of 4 words, 1 of 2 and 1 of 3 pairs of words, a common subsequence of 2."""
    found = values("The cat sat.", "the cat ran fast")
    expected = {"rouge1": 4 / 7, "rouge2": 2 / 5, "rougeL": 4 / 7, "rougeLsum": 4 / 7}
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_words_are_stemmed():
    assert values("the cats", "the cat")["rouge1"] == 100
    assert values("the dogs", "the cat")["rouge1"] == 50


def test_lsum_takes_sentence_by_sentence():
    """Swapped sentences: each is found again whole, but no common subsequence is longer than one of them."""
    found = values("Ann left. Bob stayed here.", "Bob stayed here. Ann left.")
    assert found["rougeLsum"] == 100 and found["rougeL"] == pytest.approx(60)


def test_the_best_of_several_references_and_the_mean_over_items():
    assert values("a b", "c d", "a b")["rouge1"] == 100
    found = rouge.score(["a b", "a b"], [["a b"], ["c d"]])["rouge1"]
    assert (found.value, found.low, found.high) == (50, 0, 100)


def test_an_empty_output():
    assert set(values("", "a b").values()) == {0}
