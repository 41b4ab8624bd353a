from __future__ import annotations

import pytest
import rjieba
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from seedbed.data.marks import SENTENCE, SPECIAL, WORD, mark_tokens
from seedbed.tokenizer.chinese import HAN_RUN
from seedbed.tokenizer.learn import ALGORITHMS
from seedbed.tokenizer.sentences import sentence_starts, sentences
from seedbed.tokenizer.special import special_tokens
from seedbed.tokenizer.tokenizer import Tokenizer

# Where a sentence begins there is a "|"; the blanks before it belong to the text. Many are from the demo corpora.
EXAMPLES = [
    "He said so. |She did not.",
    "“What is it?” |“A rabbit-hole!” |Alice thought.",
    "“What is it?” he said.",
    "“Wait!” cried Tom. |“Wait for me.”  |He ran. ",
    "Mr. and Mrs. Dursley met Dr. Watson at St. Paul's. |It rained.",
    "I met Mr. Holmes, i.e. The detective, e.g. Him. |Yes.",
    "J. R. R. Tolkien wrote it. |So did I. |He knew.",
    "It costs 3.5 dollars, or 1,000.50. |Prices rose 2.5%. |Then fell.",
    "1. Introduction",
    "It is so. |“2. Method” follows.",
    "In 1898. |A year later.",
    "No. 7 is here. |No. |He left on Jan. 5 at 5 p.m. |Nobody came.",
    "See p. 5 and fig. 3. |Next vol. 2 began.",
    "He works at Inc. |The firm grew. etc. |And so on.",
    "The U.S. Army came. |They left.",
    "Wait... what? |Yes. |“Well ...” |No… but he… came. |Then… |He left.",
    "(It was late.) |[So it was.] |“Go!” |‘Now?’ |«Oui.» |Fine.",
    "Is it?! |Really!! |Yes.",
    "visit www.example.com or a.b.c today. |Done.",
    '"Hum! |Born in New Jersey in the year 1858. |Contralto—hum! |La Scala, hum! |Retired—ha!',
    "“Confound it! sometimes she sews it with white. |I wish she'd stick to one.",
    "no end here",
    "",
    "   ",
    "  Indented. |Twice.",
    "话说天下大势，分久必合，合久必分。|周末七国分争，并入于秦。",
    "宝玉笑道：“好妹妹，你别恼！”|黛玉道：“谁恼了？”|说毕，走了。",
    "“好！”，他说。|“走？”：她问。",
    "他去了；|我没去！|你呢？！|不知道。。。|好吧",
    "“怎么……”|他说不出话来……|半晌，又道：“罢了。”",
    "他说「真的？」|我说『是。』|（完。）|《终。》|好。",
    "你好!|我是小明?|是的。",
    "GDP增长3.5%。|约翰.史密斯说：Hello world. |Yes。|好",
    "中文。 |English sentence. |中文。",
    "因使人过去请时，那家人去了回来说：和尚说，贾爷今日五鼓已进京去了。|士隐听了，也只得罢了。",
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_sentences(example: str) -> None:
    text = example.replace("|", "")
    expected = [at - count for count, at in enumerate(i for i, c in enumerate(example) if c == "|")]
    assert sentence_starts(text) == expected, [text[at:] for at in sentence_starts(text)]
    assert sentences(text) == [part.strip() for part in example.split("|")]


@given(st.text(alphabet="aA .!?…。！“”)1天\n", max_size=80))
def test_sentences_begin_after_their_end_at_something_visible(text: str) -> None:
    starts = sentence_starts(text)
    assert starts == sorted(set(starts))
    for at in starts:
        assert 0 < at < len(text)
        assert not text[at].isspace()
        assert set(text[:at].rstrip()[-4:]) & set(".!?…。！")


# ------------------------------------------------------------------------------------- from characters to tokens

FRAGMENTS = [
    *"aB .,!?'\"”)-中人天了，。！？「」𠀀🙂é٣अ가ガ\u200b\u00a0\t５％ßİﬁ",
    *(
        "the quick",
        "中国",
        "人民",
        "天气很好",
        "中国人民",
        "好。 ",
        "fox. The",
        "👩‍🚀",
        "e\u0301",
        "a\u0307\u0323",
    ),
]
TEXT = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.characters(codec="utf-8")), max_size=20).map("".join)


@pytest.fixture(scope="module", params=list(ALGORITHMS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    lines = [
        "the quick brown fox, 3.5 times!",
        "中国人民天气很好了，我们去中国。",
        "the the quick 中国人民 fox。",
    ] * 20
    backend = ALGORITHMS[request.param](
        lines, vocab_size=330, special=special_tokens(2), lowercase=False, min_frequency=1, coverage=1.0
    )
    return Tokenizer(backend)


def slow_marks(tokenizer: Tokenizer, texts: list[str], *, segment_chinese: bool) -> list[int]:
    """The definition, token by token: a mark goes to the first token that ends behind the boundary."""
    marks: list[int] = []
    for text in texts:
        spans = tokenizer.encode_spans([text])
        words: set[int] = set()
        for run in HAN_RUN.finditer(text) if segment_chinese else ():
            at = run.start()
            for word in rjieba.cut(run.group()):
                words.add(at)
                at += len(word)
            words.add(at)
        sentences = set(sentence_starts(text))
        reached, before = 0, None
        for token in range(len(spans.ids)):
            start, end = int(spans.starts[token]), int(spans.ends[token])
            assert reached <= end
            inside = range(reached, end)
            is_han = bool(HAN_RUN.match(text[start : start + 1]))
            is_new = before is None or (spans.pretokens[token] != before and not (segment_chinese and is_han))
            marks.append(
                (WORD if is_new or any(p in words or p in sentences for p in inside) else 0)
                | (SENTENCE if any(p in sentences for p in inside) else 0)
                | (SPECIAL if spans.ids[token] == 5 else 0)
            )
            reached, before = end, spans.pretokens[token]
    return marks


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT.filter(bool), min_size=1, max_size=4), st.booleans())
@example(
    ["好。 \x1b", "a"], False
)  # a sentence that begins where no token is left does not begin in the next piece
def test_marks_equal_the_definition(tokenizer: Tokenizer, texts: list[str], segment_chinese: bool) -> None:
    spans = tokenizer.encode_spans(texts)
    marks = mark_tokens(texts, spans.tokens(texts), special_ids=[5], segment_chinese=segment_chinese)
    assert marks.tolist() == slow_marks(tokenizer, texts, segment_chinese=segment_chinese)


def words_of(tokenizer: Tokenizer, text: str, *, segment_chinese: bool = True) -> list[str]:
    spans = tokenizer.encode_spans([text])
    marks = mark_tokens([text], spans.tokens([text]), special_ids=[], segment_chinese=segment_chinese)
    starts = [i for i, mark in enumerate(marks) if mark & WORD]
    ids = spans.ids.tolist()
    return [tokenizer.decode(ids[a:b]).strip() for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


def test_words_of_mixed_text(tokenizer: Tokenizer) -> None:
    words = words_of(tokenizer, "the quick fox，我们去中国人民。")
    expected = ["the", "quick", "fox", "，", "我们", "去", "中国", "人民", "。"]
    if tokenizer.algorithm == "wordpiece":
        assert words == expected
    else:  # a merge may hold two words of the segmenter, and Unigram's pre-tokens end at white space only
        assert words[:2] == expected[:2]
        assert "".join(words) == "".join(expected)
        assert len(words) >= 5
    alone = words_of(tokenizer, "中国人民", segment_chinese=False)
    assert len(alone) == (4 if tokenizer.algorithm == "wordpiece" else 1)
