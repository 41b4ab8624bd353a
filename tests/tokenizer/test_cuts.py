from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable

import numpy as np
from tokenizers import AddedToken, pre_tokenizers
from tokenizers import Tokenizer as Backend

from seedbed.tokenizer.cuts import Cuts, find_cuts
from seedbed.tokenizer.han_pairs import byte_alphabet, han_pairs
from seedbed.tokenizer.tokenizer import Tokenizer

Learn = Callable[..., Tokenizer]


def changed(tokenizer: Tokenizer, **parts: object) -> Backend:
    """The same tokenizer with other values at `part` or `part__key` of its file."""
    made = json.loads(tokenizer.backend.to_str())
    for name, value in parts.items():
        part, _, key = name.partition("__")
        if key:
            made[part][key] = value
        else:
            made[part] = value
    return Backend.from_str(json.dumps(made))


def test_rules_are_known_for_our_own_wordpiece_and_bpe_only(learn: Learn) -> None:
    for algorithm, lowercase in itertools.product(("wordpiece", "bpe"), (True, False)):
        assert isinstance(find_cuts(learn(algorithm, lowercase=lowercase).backend), Cuts)
    found = find_cuts(learn("unigram").backend)
    assert isinstance(found, str)
    assert "Unigram" in found


def test_tokenizers_that_cut_otherwise_are_refused_with_a_reason(learn: Learn) -> None:
    wordpiece, bpe = learn("wordpiece"), learn("bpe")
    gpt2 = json.loads(changed(bpe).to_str())["pre_tokenizer"]["pretokenizers"][1]
    assert isinstance(find_cuts(changed(bpe, pre_tokenizer=gpt2)), Cuts)
    vocab = json.loads(bpe.backend.to_str())["model"]["vocab"]
    some = {token: i for i, token in enumerate(t for t in vocab if t != "Ā")}
    refused = {
        "normalises or cuts": [
            changed(wordpiece, normalizer=None),
            changed(wordpiece, pre_tokenizer={"type": "WhitespaceSplit"}),
        ],
        "Han characters apart": [changed(wordpiece, normalizer__handle_chinese_chars=False)],
        "normalises text": [changed(bpe, normalizer={"type": "NFKC"})],
        "dropout": [changed(bpe, model__dropout=0.1)],
        "unlike GPT-2": [
            changed(bpe, pre_tokenizer=gpt2 | {"add_prefix_space": True}),
            changed(bpe, pre_tokenizer=gpt2 | {"use_regex": False}),
            changed(bpe, pre_tokenizer={"type": "Sequence", "pretokenizers": [gpt2, gpt2]}),
        ],
        "lacks tokens": [changed(bpe, model__vocab=some, model__merges=[])],
    }
    for reason, backends in refused.items():
        for backend in backends:
            found = find_cuts(backend)
            assert isinstance(found, str)
            assert reason in found
    with_words = changed(wordpiece)
    with_words.add_tokens([AddedToken("river bank", normalized=False)])
    assert "added words" in str(find_cuts(with_words))


def test_a_pair_of_han_characters_is_cut_only_where_no_token_holds_both(learn: Learn) -> None:
    tokenizer = learn("bpe", vocab_size=700)
    cuts = find_cuts(tokenizer.backend)
    assert isinstance(cuts, Cuts)
    assert cuts.pairs is not None
    characters = sorted(
        {c for t in map(tokenizer.token, range(tokenizer.vocab_size)) for c in tokenizer_text(t)}
    )
    assert len(characters) > 10
    codes = np.array([ord(c) for c in characters], np.uint32)
    joined = cut = 0
    for left in codes:
        joins = cuts.pairs.may_join(np.full(len(codes), left), codes)
        for right, may_join in zip(codes.tolist(), joins.tolist(), strict=True):
            a, b = chr(left), chr(right)
            apart = tokenizer.encode(a) + tokenizer.encode(b)
            joined += tokenizer.encode(a + b) != apart
            cut += not may_join
            assert may_join or tokenizer.encode(a + b) == apart
    assert joined > 5
    assert cut > 5


def tokenizer_text(token: str) -> str:
    """The Han characters that are whole in a byte-level token."""
    alphabet = byte_alphabet()
    if not set(token) <= alphabet.keys():
        return ""
    text = bytes(alphabet[c] for c in token).decode("utf-8", "ignore")
    return "".join(c for c in text if "\u4e00" <= c <= "\u9fa5")


def test_tokens_with_parts_of_characters_join_with_all_they_could_be() -> None:
    alphabet = {byte: character for character, byte in byte_alphabet().items()}

    def token(data: bytes) -> str:
        return "".join(alphabet[byte] for byte in data)

    some, other, third = "天下中"
    vocab = {
        token(some.encode() + other.encode()[:2]): 0,  # 天 and the beginning of 下
        token(third.encode()[2:] + third.encode()): 1,  # the end of some character and 中
        token(some.encode()[1:] + "\u9f50".encode()[:1]): 2,
        token(b"abc"): 3,
    }
    pairs = han_pairs(vocab, byte_alphabet())

    def join(left: str, right: str) -> bool:
        return bool(pairs.may_join(np.array([ord(left)]), np.array([ord(right)]))[0])

    assert join(some, other)
    assert join("一", third)
    assert join("一", "\u9f99"), "begins with the byte of the third token"
    assert not join("一", "乙"), "begins with another"
    none = han_pairs({"a": 0}, byte_alphabet())
    assert not none.may_join(np.array([ord(some)]), np.array([ord(other)]))[0]


def test_every_cut_of_every_pair_of_characters_leaves_the_ids_alone(learn: Learn) -> None:
    """The rule itself, on two characters in some company, against the tokenizer."""
    draw = random.Random(3)
    known = "ab1 .,'中天下，“。—！ｘé🙂\u00a0\n"
    for tokenizer in (learn("wordpiece"), learn("wordpiece", lowercase=False), learn("bpe")):
        cuts = find_cuts(tokenizer.backend)
        assert isinstance(cuts, Cuts)
        for left, right in itertools.product(known, known):
            classes = cuts.characters[[ord(left), ord(right)]]
            if not cuts.rule[classes[0] << 4 | classes[1]]:
                continue
            for _ in range(3):
                before = "".join(draw.choices(known, k=3)) + left
                after = right + "".join(draw.choices(known, k=3))
                assert tokenizer.encode(before + after) == tokenizer.encode(before) + tokenizer.encode(after)


def test_byte_alphabet_is_that_of_the_pretokenizer() -> None:
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "\x00 ~é中🙂\n"
    shown = step.pre_tokenize_str(text)[0][0]
    assert bytes(byte_alphabet()[c] for c in shown) == text.encode()
