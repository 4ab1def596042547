"""Domains and probes of the King James Bible."""

import numpy as np
import pytest

from algoperf.data.apart import HasDomains, HasProbes
from workloads.finewebedu_lm import data, parts
from workloads.finewebedu_lm.probes import probes
from workloads.finewebedu_lm.workload import FULL, MINI

# How each part's first chapter of the training text begins (the canon says).
BEGINNINGS = {
    "law": "In the beginning God created",
    "history": "Now after the death of Moses the servant",
    "poetry": "There was a man in the land of Uz",
    "prophets": "The vision of Isaiah the son of Amoz",
    "gospels": "The book of the generation of Jesus Christ",
    "letters": "Paul, a servant of Jesus Christ, called to be",
}


def test_parts_are_the_whole_in_the_order_of_the_canon():
    assert sum(parts.CHAPTERS.values()) == 1189
    assert parts.NAMES[0] == parts.PUBLIC
    for split in ("train", "validation", "test"):
        found = parts.streams(split)
        # Neighbours share the end-of-text between them.
        whole = np.concatenate([found["law"], *(found[p][1:] for p in _rest())])
        np.testing.assert_array_equal(whole, data.tokens(split))
    for part, beginning in BEGINNINGS.items():
        stream = parts.streams("train")[part]
        assert data.decode(stream[:40]).startswith(f"\f{beginning}")


def _rest():
    return [part for part in parts.CHAPTERS if part != "law"]


def test_a_part_is_a_workload_with_its_own_counts():
    assert isinstance(MINI, HasDomains)
    assert FULL.by_domain() == {}
    domains = MINI.by_domain()
    assert list(domains) == list(parts.NAMES)
    law = domains["law"]
    assert law.name == "finewebedu_lm_law_mini"
    batches = list(law.batches("validation"))
    rows = sum(int(batch["weights"][:, 0].sum()) for batch in batches)
    assert rows == law.num_validation_examples == 67
    first = law.dataset("train", 4, seed=0)[0]
    assert first["inputs"].shape == (4, data.SEQUENCE_LENGTH)
    text = data.decode(parts.streams("train")["law"])
    assert data.decode(first["inputs"][0]) in text


@pytest.fixture(scope="module")
def found():
    return probes()


def test_probes_are_there(found):
    assert isinstance(MINI, HasProbes)
    assert FULL.probes() == {}
    assert {name: probe.kind for name, probe in found.items()} == {
        "phrases": "knowledge",
        "rare_phrases": "knowledge",
        "agreement": "rule",
        "case": "rule",
        "endings": "rule",
        "articles": "rule",
    }
    assert all(len(probe) >= 60 for probe in found.values())


PRONOUNS = ("I", "thou", "he", "she", "it", "we", "ye", "they")


def _answers(probe, side, row):
    batch = getattr(probe, side)
    return data.decode(batch["targets"][row][batch["weights"][row] > 0])


def _question(probe, row):
    batch = probe.right
    first = int(np.flatnonzero(batch["weights"][row])[0])
    return data.decode(batch["inputs"][row][: first + 1])


def test_questions_read_as_they_should(found):
    endings, articles = found["endings"], found["articles"]
    for row in range(len(endings)):
        nearest = [w for w in _question(endings, row).split() if w in PRONOUNS][-1]
        wanted = {"thou": "est", "he": "eth"}[nearest]
        assert _answers(endings, "right", row) == wanted
    for row in range(len(articles)):
        if _question(articles, row).split()[-1] == "an":
            assert _answers(articles, "right", row).strip()[0] in "aeiouh"
    agreement = found["agreement"]
    for row in range(len(agreement)):
        if _question(agreement, row).split()[-1] == "thou":
            assert _answers(agreement, "right", row) in (" art", " hast", " shalt")


def test_knowledge_is_of_the_training_text_and_rules_are_not(found):
    train = data.decode(data.tokens("train"))
    for name in ("phrases", "rare_phrases"):
        for row in range(0, 40):
            question = _question(found[name], row)
            assert question + _answers(found[name], "right", row) in train
    rare = found["rare_phrases"]
    for row in range(0, len(rare), 2):  # pairs end alike
        one, other = (rare.right["inputs"][row + i] for i in range(2))
        last = [np.argmax(rare.right["weights"][row + i] > 0) for i in range(2)]
        assert one[last[0]] == other[last[1]]
    seen = [_question(found["case"], row) in train for row in range(40)]
    assert sum(seen) <= 2  # a verse may have a twin


@pytest.mark.parametrize(
    "name",
    ["phrases", "rare_phrases", "agreement", "case", "endings", "articles"],
)
def test_a_model_without_context_has_half_of_the_answers_right(found, name):
    """One that scores answers by their tokens alone, whatever the scores."""
    probe = found[name]
    scores = np.random.default_rng(0).normal(size=data.VOCAB_SIZE)
    right, wrong = (
        (scores[batch["targets"]] * batch["weights"]).sum(axis=1)
        for batch in (probe.right, probe.wrong)
    )
    assert np.mean(right > wrong) == 0.5


def test_only_the_answer_differs_and_is_predicted_from_what_stands_before(found):
    for probe in found.values():
        for batch in (probe.right, probe.wrong):
            places = batch["weights"] > 0
            assert places.any(axis=1).all()
            # A target is the next input, up to the end of the answer.
            last = np.argmax(np.cumsum(places, axis=1), axis=1)
            for row in range(0, len(probe), 16):
                until = last[row]
                np.testing.assert_array_equal(
                    batch["inputs"][row, 1 : until + 1], batch["targets"][row, :until]
                )
        first = np.argmax(probe.right["weights"] > 0, axis=1)
        for row in range(0, len(probe), 16):
            np.testing.assert_array_equal(
                probe.right["inputs"][row, : first[row] + 1],
                probe.wrong["inputs"][row, : first[row] + 1],
            )
