"""Make English minimal pairs of common words: agreement, word order, negation, reference; in BLiMP's layout.

For models of little text, which know few words: every word is among the commonest few thousand, and the two sentences of a
pair have the same words, or differ in one. A pair is a function of (paradigm, number): the same on every machine, and the first
hundred of two hundred are the hundred.

Source of the idea and of most paradigms: BLiMP, Warstadt et al., arXiv 1912.00582. Sentences and lexicon are our own. Differs
from it: fewer paradigms and words; names are as common as the words; no island effects, ellipsis or quantifiers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import xxhash

from seedbed.evaluation.minimal_pairs import MinimalPair

__all__ = ["ENGLISH", "PARADIGMS", "english_pairs", "write_pairs"]

ENGLISH = Path("english")
"""What stands for these pairs where files of pairs are named."""

_PLURALS = {
    "man": "men",
    "woman": "women",
    "boy": "boys",
    "girl": "girls",
    "king": "kings",
    "doctor": "doctors",
    "teacher": "teachers",
    "soldier": "soldiers",
    "farmer": "farmers",
    "child": "children",
    "friend": "friends",
    "brother": "brothers",
    "sister": "sisters",
    "student": "students",
    "player": "players",
    "writer": "writers",
}
_THINGS = {
    "house": "houses",
    "book": "books",
    "letter": "letters",
    "door": "doors",
    "table": "tables",
    "ship": "ships",
    "picture": "pictures",
    "river": "rivers",
    "garden": "gardens",
    "horse": "horses",
    "tree": "trees",
    "song": "songs",
    "bridge": "bridges",
    "road": "roads",
    "church": "churches",
    "story": "stories",
}
_MALE = ("man", "boy", "king", "brother", "father", "uncle", "husband", "son", "prince", "gentleman")
_FEMALE = ("woman", "girl", "queen", "sister", "mother", "aunt", "wife", "daughter", "princess", "lady")
_MALE_NAMES = ("John", "William", "George", "James", "Henry", "Charles", "Robert", "David", "Peter", "Paul")
_FEMALE_NAMES = (
    "Mary",
    "Elizabeth",
    "Anne",
    "Jane",
    "Sarah",
    "Margaret",
    "Alice",
    "Helen",
    "Emma",
    "Catherine",
)
# (third person singular, plural, past, participle) of verbs without an object
_ALONE = (
    ("runs", "run", "ran", "run"),
    ("sleeps", "sleep", "slept", "slept"),
    ("works", "work", "worked", "worked"),
    ("sings", "sing", "sang", "sung"),
    ("speaks", "speak", "spoke", "spoken"),
    ("waits", "wait", "waited", "waited"),
    ("laughs", "laugh", "laughed", "laughed"),
    ("walks", "walk", "walked", "walked"),
    ("falls", "fall", "fell", "fallen"),
    ("plays", "play", "played", "played"),
)
# the same with an object
_WITH = (
    ("sees", "see", "saw", "seen"),
    ("knows", "know", "knew", "known"),
    ("likes", "like", "liked", "liked"),
    ("loves", "love", "loved", "loved"),
    ("helps", "help", "helped", "helped"),
    ("hears", "hear", "heard", "heard"),
    ("finds", "find", "found", "found"),
    ("follows", "follow", "followed", "followed"),
    ("remembers", "remember", "remembered", "remembered"),
    ("watches", "watch", "watched", "watched"),
)
_ON_THINGS = ("saw", "found", "bought", "lost", "made", "left", "took", "kept", "painted", "described")
_ON_ONESELF = ("saw", "hurt", "killed", "defended", "asked", "described", "introduced", "found")
_ADJECTIVES = ("old", "young", "little", "great", "poor", "good", "new", "small", "strong", "famous")
_STATES = ("old", "large", "beautiful", "new", "dark", "small", "white", "important", "famous", "red")
_PLACES = ("in the town", "near the river", "on the road", "in the house", "at the door", "behind the church")
_NEAR = ("near", "behind", "beside", "above")
_ADVERBS = ("often", "always", "never", "sometimes", "usually", "soon")


T = TypeVar("T")


class _Draw:
    """Choose words by a hash of (paradigm, number, which choice it is)."""

    def __init__(self, paradigm: str, number: int) -> None:
        self._place = f"{paradigm}/{number}"
        self._count = 0

    def __call__(self, words: Sequence[T]) -> T:
        self._count += 1
        return words[xxhash.xxh3_64_intdigest(f"{self._place}/{self._count}".encode()) % len(words)]

    def two(self, words: Sequence[T]) -> tuple[T, T]:
        """Choose two that differ."""
        first = self(words)
        return first, self([word for word in words if word != first])

    def flag(self) -> bool:
        """Toss a coin."""
        return self((False, True))


Maker = Callable[[_Draw], tuple[str, str]]


def _person(draw: _Draw, *, is_plural: bool) -> str:
    singular, plural = draw(list(_PLURALS.items()))
    return plural if is_plural else singular


def _thing(draw: _Draw, *, is_plural: bool) -> str:
    singular, plural = draw(list(_THINGS.items()))
    return plural if is_plural else singular


def _simple(draw: _Draw) -> tuple[str, str]:
    many = draw.flag()
    one, all_, *_ = draw(_ALONE)
    start, end = f"The {_person(draw, is_plural=many)}", draw(_PLACES)
    right, wrong = (all_, one) if many else (one, all_)
    return f"{start} {right} {end}.", f"{start} {wrong} {end}."


def _past_be(draw: _Draw) -> tuple[str, str]:
    many = draw.flag()
    start, end = f"The {_thing(draw, is_plural=many)}", f"very {draw(_STATES)}"
    right, wrong = ("were", "was") if many else ("was", "were")
    return f"{start} {right} {end}.", f"{start} {wrong} {end}."


def _across_a_phrase(draw: _Draw) -> tuple[str, str]:
    """The nearer noun has the other number."""
    many = draw.flag()
    start = f"The {_thing(draw, is_plural=many)} {draw(_NEAR)} the {_thing(draw, is_plural=not many)}"
    right, wrong = ("are", "is") if many else ("is", "are")
    end = draw(_STATES)
    return f"{start} {right} {end}.", f"{start} {wrong} {end}."


def _across_a_clause(draw: _Draw) -> tuple[str, str]:
    many = draw.flag()
    start = (
        f"The {_person(draw, is_plural=many)} who {draw(_WITH)[2]} the {_person(draw, is_plural=not many)}"
    )
    right, wrong = ("were", "was") if many else ("was", "were")
    end = draw(_ADJECTIVES)
    return f"{start} {right} {end}.", f"{start} {wrong} {end}."


def _determiner(draw: _Draw) -> tuple[str, str]:
    many = draw.flag()
    pairs = (("these", "this"), ("those", "that")) if many else (("this", "these"), ("that", "those"))
    right, wrong = draw(pairs)
    who, verb, thing = draw(_MALE_NAMES + _FEMALE_NAMES), draw(_ON_THINGS), _thing(draw, is_plural=many)
    return f"{who} {verb} {right} {thing}.", f"{who} {verb} {wrong} {thing}."


def _determiner_with_adjective(draw: _Draw) -> tuple[str, str]:
    many = draw.flag()
    right, wrong = draw(
        (("these", "this"), ("those", "that")) if many else (("this", "these"), ("that", "those"))
    )
    who, verb, thing = draw(_MALE_NAMES + _FEMALE_NAMES), draw(_ON_THINGS), _thing(draw, is_plural=many)
    state = draw(_STATES)
    return f"{who} {verb} {right} {state} {thing}.", f"{who} {verb} {wrong} {state} {thing}."


def _perfect(draw: _Draw) -> tuple[str, str]:
    many = draw.flag()
    right, wrong = ("have", "has") if many else ("has", "have")
    start, end = (
        f"The {_person(draw, is_plural=many)}",
        f"{draw(_WITH)[3]} the {_thing(draw, is_plural=draw.flag())}",
    )
    return f"{start} {right} {end}.", f"{start} {wrong} {end}."


def _adjective_order(draw: _Draw) -> tuple[str, str]:
    adjective, who, verb, place = (
        draw(_ADJECTIVES),
        _person(draw, is_plural=draw.flag()),
        draw(_ALONE)[2],
        draw(_PLACES),
    )
    return f"The {adjective} {who} {verb} {place}.", f"The {who} {adjective} {verb} {place}."


def _object_order(draw: _Draw) -> tuple[str, str]:
    who, verb, thing = (
        _person(draw, is_plural=draw.flag()),
        draw(_WITH)[2],
        _thing(draw, is_plural=draw.flag()),
    )
    return f"The {who} {verb} the {thing}.", f"The {who} the {thing} {verb}."


def _auxiliary_order(draw: _Draw) -> tuple[str, str]:
    who, done, thing = draw(_MALE_NAMES + _FEMALE_NAMES), draw(_WITH)[3], _thing(draw, is_plural=draw.flag())
    helper = draw(("has", "had"))
    return f"{who} {helper} {done} the {thing}.", f"{who} {done} {helper} the {thing}."


def _preposition_order(draw: _Draw) -> tuple[str, str]:
    who, verb = _person(draw, is_plural=draw.flag()), draw(_ALONE)[2]
    preposition, article, noun = draw(_PLACES).split(" ")
    return (
        f"The {who} {verb} {preposition} {article} {noun}.",
        f"The {who} {verb} {article} {noun} {preposition}.",
    )


def _article_order(draw: _Draw) -> tuple[str, str]:
    who, verb, state, thing = (
        draw(_MALE_NAMES + _FEMALE_NAMES),
        draw(_ON_THINGS),
        draw(_STATES),
        _thing(draw, is_plural=False),
    )
    return f"{who} {verb} the {state} {thing}.", f"{who} {verb} {state} the {thing}."


def _adverb_order(draw: _Draw) -> tuple[str, str]:
    who, adverb, verb, thing = (
        draw(_MALE_NAMES + _FEMALE_NAMES),
        draw(_ADVERBS),
        draw(_WITH)[2],
        _thing(draw, is_plural=True),
    )
    return f"{who} {adverb} {verb} the {thing}.", f"{who} {verb} {adverb} the {thing}."


def _ever(draw: _Draw) -> tuple[str, str]:
    """An `ever` needs something negative before it."""
    done, thing = draw(_WITH)[3], _thing(draw, is_plural=draw.flag())
    right, wrong = draw((("Nobody", "Everybody"), ("No one", "Every one"), ("None of them", "All of them")))
    helper = "have" if "them" in right else "has"
    return f"{right} {helper} ever {done} the {thing}.", f"{wrong} {helper} ever {done} the {thing}."


def _any(draw: _Draw) -> tuple[str, str]:
    who, things = _person(draw, is_plural=False), _thing(draw, is_plural=True)
    _, verb, _, _ = draw(_WITH)
    return f"The {who} did not {verb} any {things}.", f"The {who} did also {verb} any {things}."


def _support(draw: _Draw) -> tuple[str, str]:
    one, all_, *_ = draw(_WITH)
    who, thing = draw(_MALE_NAMES + _FEMALE_NAMES), _thing(draw, is_plural=draw.flag())
    return f"{who} does not {all_} the {thing}.", f"{who} does not {one} the {thing}."


def _not_order(draw: _Draw) -> tuple[str, str]:
    who, thing = draw(_MALE_NAMES + _FEMALE_NAMES), _thing(draw, is_plural=draw.flag())
    helper, verb = draw(("could", "would", "did", "should")), draw(_WITH)[1]
    return f"{who} {helper} not {verb} the {thing}.", f"{who} not {helper} {verb} the {thing}."


def _nor(draw: _Draw) -> tuple[str, str]:
    first, second = draw.two(_MALE_NAMES + _FEMALE_NAMES)
    verb, thing = draw(_WITH)[2], _thing(draw, is_plural=draw.flag())
    return (
        f"Neither {first} nor {second} {verb} the {thing}.",
        f"Either {first} nor {second} {verb} the {thing}.",
    )


def _reflexive_gender(draw: _Draw) -> tuple[str, str]:
    male = draw.flag()
    who, verb = draw(_MALE if male else _FEMALE), draw(_ON_ONESELF)
    right, wrong = ("himself", "herself") if male else ("herself", "himself")
    return f"The {who} {verb} {right}.", f"The {who} {verb} {wrong}."


def _reflexive_of_a_name(draw: _Draw) -> tuple[str, str]:
    male = draw.flag()
    who, verb, place = draw(_MALE_NAMES if male else _FEMALE_NAMES), draw(_ON_ONESELF), draw(_PLACES)
    right, wrong = ("himself", "herself") if male else ("herself", "himself")
    return f"{who} {verb} {right} {place}.", f"{who} {verb} {wrong} {place}."


def _reflexive_number(draw: _Draw) -> tuple[str, str]:
    many = draw.flag()
    singular = draw([word for word in _MALE if word in _PLURALS])
    who, verb = _PLURALS[singular] if many else singular, draw(_ON_ONESELF)
    right, wrong = ("themselves", "himself") if many else ("himself", "themselves")
    return f"The {who} {verb} {right}.", f"The {who} {verb} {wrong}."


def _case_of_subjects(draw: _Draw) -> tuple[str, str]:
    right, wrong = draw((("He", "Him"), ("They", "Them"), ("We", "Us"), ("I", "Me")))
    verb, thing = draw(_WITH)[2], _thing(draw, is_plural=draw.flag())
    return f"{right} {verb} the {thing}.", f"{wrong} {verb} the {thing}."


def _case_of_objects(draw: _Draw) -> tuple[str, str]:
    right, wrong = draw((("him", "he"), ("them", "they"), ("us", "we"), ("me", "I")))
    who, verb, place = _person(draw, is_plural=draw.flag()), draw(_WITH)[2], draw(_PLACES)
    return f"The {who} {verb} {right} {place}.", f"The {who} {verb} {wrong} {place}."


def _relative(draw: _Draw) -> tuple[str, str]:
    """A thing is no `who`, a person no `which`."""
    if draw.flag():
        noun, right, wrong = _person(draw, is_plural=False), "who", "which"
    else:
        noun, right, wrong = _thing(draw, is_plural=False), "which", "who"
    place, state = draw(_PLACES), draw(_STATES)
    return f"The {noun} {right} was {place} was {state}.", f"The {noun} {wrong} was {place} was {state}."


PARADIGMS: dict[str, tuple[str, Maker]] = {
    "subject_verb": ("agreement", _simple),
    "subject_verb_past": ("agreement", _past_be),
    "subject_verb_across_phrase": ("agreement", _across_a_phrase),
    "subject_verb_across_clause": ("agreement", _across_a_clause),
    "subject_verb_perfect": ("agreement", _perfect),
    "determiner_noun": ("agreement", _determiner),
    "determiner_adjective_noun": ("agreement", _determiner_with_adjective),
    "adjective_noun_order": ("word_order", _adjective_order),
    "verb_object_order": ("word_order", _object_order),
    "auxiliary_order": ("word_order", _auxiliary_order),
    "preposition_order": ("word_order", _preposition_order),
    "article_adjective_order": ("word_order", _article_order),
    "adverb_order": ("word_order", _adverb_order),
    "ever_needs_negation": ("negation", _ever),
    "any_needs_negation": ("negation", _any),
    "do_support": ("negation", _support),
    "not_order": ("negation", _not_order),
    "neither_nor": ("negation", _nor),
    "reflexive_gender": ("reference", _reflexive_gender),
    "reflexive_name": ("reference", _reflexive_of_a_name),
    "reflexive_number": ("reference", _reflexive_number),
    "subject_case": ("reference", _case_of_subjects),
    "object_case": ("reference", _case_of_objects),
    "relative_animacy": ("reference", _relative),
}
"""Paradigm: what it is about, how a pair is made."""


def english_pairs(count: int = 50) -> list[MinimalPair]:
    """Return `count` different pairs of each paradigm, fewer where its words do not yield as many."""
    return [pair for name in PARADIGMS for pair in _of(name, count)]


def _of(name: str, count: int) -> Iterator[MinimalPair]:
    phenomenon, make = PARADIGMS[name]
    seen: set[tuple[str, str]] = set()
    for number in range(20 * count):
        if len(seen) == count:
            return
        pair = make(_Draw(name, number))
        if pair not in seen:
            seen.add(pair)
            yield MinimalPair(*pair, "syntax", phenomenon, name, "english", len(seen))


def write_pairs(pairs: Sequence[MinimalPair]) -> str:
    """Return the pairs as JSON lines in BLiMP's layout."""
    lines = (
        {
            "sentence_good": p.good,
            "sentence_bad": p.bad,
            "field": p.field,
            "linguistics_term": p.phenomenon,
            "UID": p.uid,
            "pairID": str(p.line - 1),
        }
        for p in pairs
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
