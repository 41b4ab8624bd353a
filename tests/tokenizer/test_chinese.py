from __future__ import annotations

import numpy as np
import rjieba
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.tokenizer.chinese import HAN_RUN, cut_words, han_boundaries

MIXED = st.text(alphabet=st.sampled_from("中国人民银行天气很好的了㐀𠀀豈ab 1，。\n々あ가🙂"), max_size=60)


def slow_boundaries(text: str) -> list[int]:
    found: set[int] = set()
    for match in HAN_RUN.finditer(text):
        at = match.start()
        for word in rjieba.cut(match.group()):
            found.add(at)
            at += len(word)
        found.add(at)
    return sorted(position for position in found if position < len(text))


@settings(max_examples=300, deadline=None)
@given(MIXED)
def test_boundaries_equal_run_by_run_cutting(text: str) -> None:
    assert np.unique(han_boundaries(text)).tolist() == slow_boundaries(text)


def test_words_of_many_runs_are_those_of_each() -> None:
    assert cut_words(["我来到北京清华大学", "好"]) == ["我", "来到", "北京", "清华大学", "好"]
    assert han_boundaries("我来到北京清华大学。GDP").tolist() == [0, 1, 3, 5, 9]
    assert han_boundaries("no Han at all").tolist() == []


def test_runs_are_the_ideographs_of_bert() -> None:
    assert HAN_RUN.findall("々汉字ひら한글𠀀〇。豈x") == ["汉字", "𠀀", "豈"]
