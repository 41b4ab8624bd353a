from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seedbed.data.memory import TextTokens
from seedbed.data.store import TokensConfig, _SplitWriter
from seedbed.data.views import WindowView
from seedbed.document import Document
from seedbed.tokenizer.encoder import TextEncoder
from seedbed.tokenizer.learn import learn_bpe, learn_wordpiece
from seedbed.tokenizer.special import special_tokens
from seedbed.tokenizer.tokenizer import Tokenizer

TEXTS = [
    "The cat sat. It purred!\nA second line, with caf\u00e9 and a \U0001f600 face.",
    "",
    "话说天下大势，分久必合。合久必分！\n\n周末七国分争，并入于秦。",
    "One",
    " \n ",
    "  leading blanks and the rest\n",
]


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    learn = {"wordpiece": learn_wordpiece, "bpe": learn_bpe}[request.param]
    lines = [line for text in TEXTS for line in text.split("\n")] * 4
    return Tokenizer(
        learn(
            lines,
            vocab_size=420,
            special=special_tokens(2),
            lowercase=False,
            min_frequency=2,
            coverage=0.97,
        )
    )


def test_ids_and_marks_are_those_of_the_store(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with _SplitWriter(tmp_path, "test", tokenizer, TextEncoder(tokenizer), TokensConfig()) as writer:
        for text in TEXTS:
            writer.add(Document(text, "x.txt", tuple(range(1, text.count("\n") + 2))))
    ids = np.fromfile(tmp_path / "test-00000.ids.bin", "<u2")
    marks = np.fromfile(tmp_path / "test-00000.marks.bin", "u1")
    tokens = TextTokens(TEXTS, tokenizer)
    assert np.array_equal(tokens.slice(0, tokens.num_tokens)[0], ids)
    assert np.array_equal(tokens.slice(0, tokens.num_tokens)[1], marks)
    assert tokens.num_tokens == writer.counts["tokens"]
    assert tokens.num_documents == writer.counts["documents"]
    assert tokens.num_bytes == writer.counts["bytes"]
    assert tokens.num_unknown == writer.counts["unknown"]


def test_every_byte_belongs_to_one_token(tokenizer: Tokenizer) -> None:
    tokens = TextTokens(TEXTS, tokenizer)
    sizes = tokens.byte_counts()
    assert (sizes >= 0).all()
    starts = [*tokens.document_starts().tolist(), tokens.num_tokens]
    kept = [text for text in TEXTS if len(TextTokens([text], tokenizer).byte_counts())]
    assert len(kept) == tokens.num_documents
    for text, start, stop in zip(kept, starts, starts[1:], strict=False):
        assert sizes[start:stop].sum() == len(text.encode("utf-8"))
        assert sizes[stop - 1] == 0  # the separator


def test_a_token_has_the_bytes_from_its_start_to_the_next(tokenizer: Tokenizer) -> None:
    text = "caf\u00e9 \u00e9\u00e9\n七国 a"
    tokens = TextTokens([text], tokenizer)
    ids, _ = tokens.slice(0, tokens.num_tokens - 1)
    at = 0
    data = text.encode("utf-8")
    for token, size in zip(ids.tolist(), tokens.byte_counts().tolist(), strict=False):
        piece = data[at : at + size].decode("utf-8", errors="ignore").strip()
        surface = tokenizer.decode([token], skip_special=False).strip().removeprefix("##")
        if size and token != tokenizer.unk_id and "\ufffd" not in surface:
            assert piece == surface
        at += size
    assert at == len(data)


def test_long_lines_are_encoded_in_portions(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(["The cat sat on it."] * 50)
    whole = TextTokens([text], tokenizer)
    monkeypatch.setattr("seedbed.data.memory._BATCH_CHARACTERS", 40)
    parts = TextTokens([text], tokenizer)
    assert np.array_equal(whole.slice(0, 10**6)[0], parts.slice(0, 10**6)[0])
    assert np.array_equal(whole.slice(0, 10**6)[1], parts.slice(0, 10**6)[1])
    assert np.array_equal(whole.byte_counts(), parts.byte_counts())


def test_views_read_it(tokenizer: Tokenizer) -> None:
    tokens = TextTokens(TEXTS, tokenizer)
    view = WindowView(tokens, length=9)
    numbers = np.arange(view.num_rows)
    rows = view.rows(np.zeros_like(numbers), numbers)
    assert np.array_equal(rows.ids.reshape(-1)[: tokens.num_tokens].numpy(), tokens.slice(0, 10**6)[0])
    assert int(rows.lengths.sum()) == tokens.num_tokens
    assert int(rows.ids.reshape(-1)[tokens.num_tokens :].sum()) == 0


def test_texts_without_tokens_give_nothing(tokenizer: Tokenizer) -> None:
    tokens = TextTokens(["", ""], tokenizer)
    assert (tokens.num_tokens, tokens.num_documents, tokens.num_bytes) == (0, 0, 0)
