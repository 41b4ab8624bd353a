"""Pairs made of common words: in BLiMP's layout, each with one change, the same everywhere, none twice."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from seedbed.evaluation.english_pairs import PARADIGMS, english_pairs, write_pairs
from seedbed.evaluation.minimal_pairs import read_pairs

PAIRS = english_pairs(40)


def test_every_paradigm_has_its_pairs_and_none_twice():
    counts = Counter(pair.uid for pair in PAIRS)
    assert set(counts) == set(PARADIGMS)
    assert min(counts.values()) >= 30
    assert len({(p.good, p.bad) for p in PAIRS}) == len(PAIRS)
    assert {p.phenomenon for p in PAIRS} == {"agreement", "word_order", "negation", "reference"}


def test_the_first_of_many_are_the_few():
    few = english_pairs(10)
    many = {(p.uid, p.good, p.bad) for p in PAIRS}
    assert {(p.uid, p.good, p.bad) for p in few} <= many


@pytest.mark.parametrize("uid", PARADIGMS)
def test_the_two_differ_in_one_word_or_in_its_place(uid):
    for pair in (p for p in PAIRS if p.uid == uid):
        good, bad = (s.rstrip(".").split() for s in (pair.good, pair.bad))
        assert pair.good != pair.bad
        assert pair.good[0].isupper()
        assert pair.good.endswith(".")
        changed = sum((Counter(good) - Counter(bad)).values())
        if PARADIGMS[uid][0] == "word_order" or uid == "not_order":
            assert changed == 0
        else:
            assert changed <= 2
            assert abs(len(good) - len(bad)) <= 1


def test_words_alone_do_not_give_the_answer():
    """Where one word decides, each of the two is right about as often as it is wrong."""
    for uid in (
        "subject_verb",
        "subject_verb_across_phrase",
        "determiner_noun",
        "reflexive_gender",
        "relative_animacy",
    ):
        right, wrong = Counter(), Counter()
        for pair in (p for p in english_pairs(200) if p.uid == uid):
            good, bad = (Counter(s.rstrip(".").split()) for s in (pair.good, pair.bad))
            right.update(good - bad)
            wrong.update(bad - good)
        total = sum(right.values())
        shared = sum(min(right[word], wrong[word]) for word in right)
        assert shared > 0.7 * total, (uid, right, wrong)


def test_they_are_read_back_from_blimps_layout(tmp_path):
    path = tmp_path / "english.jsonl"
    path.write_text(write_pairs(PAIRS), encoding="utf-8")
    read, rejected = read_pairs([path])
    assert not rejected
    assert [(p.good, p.bad, p.uid, p.phenomenon) for p in read] == [
        (p.good, p.bad, p.uid, p.phenomenon) for p in PAIRS
    ]
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert {"sentence_good", "sentence_bad", "UID", "linguistics_term", "pairID"} <= set(first)
