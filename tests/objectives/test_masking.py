import dataclasses
import gzip
from functools import cache

import pytest
import torch

from seedbed.config import validate
from seedbed.data.memory import TextTokens
from seedbed.data.store import SPECIAL
from seedbed.data.views import RowReader, WindowView
from seedbed.errors import ConfigError, DataError, IncompatibleError, IntegrityError
from seedbed.models.huggingface import write_huggingface
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.objectives.masking import Masking
from seedbed.objectives.units import first_of_unit, word_begins
from seedbed.tokenizer.tokenizer import Tokenizer
from toys import VOCABULARY, toy_model, toy_reader

LENGTH = 64
MASK = VOCABULARY.mask_id


def make(vocabulary=VOCABULARY, **config):
    config = validate(MaskedLMConfig, {"initial_mask_rate": None, **config}, place="test")
    return Masking(config, vocabulary, row_length=LENGTH)


@cache
def reader():
    return toy_reader(LENGTH, num_documents=1000)


def rows_of(num_rows=200):
    return reader().read(0, num_rows)


def hidden(rows, masked):
    ones = torch.ones_like(masked.column, dtype=torch.bool)
    taken = torch.zeros(rows.shape, dtype=torch.bool)
    return taken.scatter(1, masked.column, ones if masked.weights is None else masked.weights > 0)


@pytest.fixture
def lexicon(tmp_path):
    """Two tokens a word: the entry 'ab' is two words of the toys' vocabulary."""
    path = tmp_path / "words.txt"
    path.write_text("a b\nz\n", encoding="utf-8")
    return str(path)


VOCABULARY_OF_LETTERS = dataclasses.replace(
    VOCABULARY, encode=lambda text: [5 + ord(c) - ord("a") for c in text if c.isalpha()]
)


@pytest.mark.parametrize(
    ("unit", "rate"),
    [("token", 0.15), ("word", 0.15), ("span", 0.15), ("ngram", 0.15), ("span", 0.4), ("ngram", 0.4)],
)
def test_the_share_of_hidden_tokens_is_the_rate(unit, rate):
    rows, draws = rows_of()
    masked = make(unit=unit, mask_rate=rate)(rows, draws)
    taken = hidden(rows, masked)
    assert not (taken & ((rows.marks & SPECIAL) != 0)).any()
    full = rows.lengths == LENGTH
    exact = round(rate * LENGTH) / LENGTH
    assert taken[full].float().mean() == pytest.approx(exact, rel=0.005)
    assert torch.equal(masked.ids[~taken], rows.ids[~taken])
    assert torch.equal(masked.ids.scatter(1, masked.column, masked.values), rows.ids)


@pytest.mark.parametrize(
    ("unit", "replace_by", "together"),
    [
        ("token", None, "token"),
        ("word", None, "token"),
        ("span", None, "run"),
        ("ngram", None, "word"),
        ("word", "unit", "word"),
        ("span", "word", "word"),
        ("span", "token", "token"),
    ],
)
def test_actions_are_80_10_10_and_drawn_for_what_the_paper_says(unit, replace_by, together):
    rows, draws = rows_of(1200)
    masked = make(unit=unit, replace_by=replace_by, mask_rate=0.3)(rows, draws)
    taken = hidden(rows, masked)
    is_mask = masked.ids == MASK
    is_same = masked.ids == rows.ids
    word = first_of_unit(word_begins(rows))
    behind_gap = torch.ones_like(taken)
    behind_gap[:, 1:] = ~taken[:, :-1]
    run = first_of_unit(taken & behind_gap)
    place = torch.arange(LENGTH).expand(rows.shape)
    group = {"token": place, "word": word, "run": run}[together]
    leader = group == place
    shares = [
        float((taken & leader & kind).sum() / (taken & leader).sum())
        for kind in (is_mask, ~is_mask & ~is_same, is_same)
    ]
    ordinary = 59  # a random token is the right one by chance in 1 of 59 cases
    for found, expected in zip(shares, (0.8, 0.1 * (1 - 1 / ordinary), 0.1 + 0.1 / ordinary), strict=True):
        assert found == pytest.approx(expected, abs=0.013)
    # All of a group are masked, or none; and the next larger group is mixed.
    follows = taken & (is_mask != is_mask.gather(1, group))
    assert not follows.any()
    larger = {"token": word, "word": run, "run": None}[together]
    if larger is not None and not (together == "token" and unit == "token"):
        assert (taken & (is_mask != is_mask.gather(1, larger))).any()


def test_a_lexicons_entries_are_hidden_whole(lexicon):
    rows, draws = rows_of(400)
    rows.ids[:, 10], rows.ids[:, 11] = 5, 6  # "a b"
    rows.marks[:, 10] = rows.marks[:, 11] = rows.marks[:, 12] = 4
    taken = hidden(rows, make(VOCABULARY_OF_LETTERS, unit="lexicon", lexicon=lexicon)(rows, draws))
    assert torch.equal(taken[:, 10], taken[:, 11])
    assert taken[:, 10].float().mean() == pytest.approx(0.15, abs=0.05)
    taken = hidden(rows, make(unit="word")(rows, draws))
    assert not torch.equal(taken[:, 10], taken[:, 11])


def test_similar_words_take_their_share_and_their_place(tmp_path):
    path = tmp_path / "similar.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    path.write_text(
        "".join(f"{c}\t{letters[(n + 1) % 26]}\n" for n, c in enumerate(letters)), encoding="utf-8"
    )
    rows, draws = rows_of(1200)
    masking = make(
        VOCABULARY_OF_LETTERS,
        unit="ngram",
        similar_words=str(path),
        mask_share=0.0,
        similar_share=0.8,
        random_share=0.1,
    )
    masked = masking(rows, draws)
    taken = hidden(rows, masked)
    assert not (masked.ids == MASK).any()
    # Words of one token that the file knows: the next letter in 80 %, besides chance.
    begins = word_begins(rows)
    single = begins.clone()
    single[:, :-1] &= begins[:, 1:]
    known = taken & single & (rows.ids >= 5) & (rows.ids < 31)
    nexts = 5 + (rows.ids - 4) % 26
    share = float((masked.ids == nexts)[known].float().mean())
    assert share == pytest.approx(0.8 + 0.1 / 59, abs=0.02)
    # Other words fall back on random ones.
    others = taken & ~single
    assert float((masked.ids == rows.ids)[others].float().mean()) == pytest.approx(0.1 + 0.9 / 59, abs=0.02)


def test_similar_tokens_come_from_a_models_table(tmp_path):
    model = toy_model("bert")
    write_huggingface(model, tmp_path / "model")
    masking = make(
        similar_words=str(tmp_path / "model"),
        similar_neighbours=1,
        mask_share=0.0,
        random_share=0.0,
        similar_share=1.0,
    )
    rows, draws = rows_of()
    masked = masking(rows, draws)
    taken = hidden(rows, masked)
    weight = torch.nn.functional.normalize(model.trunk.embedding.token.weight.detach(), dim=1)
    cosine = weight @ weight.T
    cosine[:, :5] = -2.0
    cosine.fill_diagonal_(-2.0)
    assert torch.equal(masked.ids[taken], cosine.argmax(dim=1)[rows.ids[taken]])


def test_rows_are_masked_alike_in_any_batch(lexicon):
    reader = toy_reader(LENGTH)
    for config in ({"unit": "span"}, {"unit": "ngram"}, {"unit": "lexicon", "lexicon": lexicon}):
        masking = make(VOCABULARY_OF_LETTERS, **config)
        whole = masking(*reader.read(0, reader.num_rows)).ids
        for place in range(reader.num_rows):
            assert torch.equal(masking(*reader.read(place, 1)).ids[0], whole[place])


def test_the_rate_falls_along_a_line_or_a_cosine():
    linear = make(initial_mask_rate=0.45, mask_rate=0.15)
    cosine = make(initial_mask_rate=0.45, mask_rate=0.15, rate_schedule="cosine")
    assert [round(linear.rate(p), 4) for p in (0.0, 0.25, 0.5, 1.0)] == [0.45, 0.375, 0.3, 0.15]
    assert [round(cosine.rate(p), 4) for p in (0.0, 0.25, 0.5, 1.0)] == [0.45, 0.4061, 0.3, 0.15]
    assert make(initial_mask_rate=None).rate(0.0) == 0.15


def test_what_does_not_fit_together_is_refused(tmp_path, lexicon):
    with pytest.raises(ConfigError, match="needs a file"):
        make(unit="lexicon")
    with pytest.raises(ConfigError, match="needs similar_words"):
        make(similar_share=0.5, mask_share=0.4)
    with pytest.raises(ConfigError, match=r"similar_share is 1\.2"):
        make(similar_share=0.3, similar_words="x")
    with pytest.raises(ConfigError, match="not to 1"):
        make(ngram_shares=[0.5, 0.4])
    with pytest.raises(DataError, match="does not exist"):
        make(VOCABULARY_OF_LETTERS, unit="lexicon", lexicon=str(tmp_path / "none.txt"))
    with pytest.raises(IncompatibleError, match="encodes text"):
        make(unit="lexicon", lexicon=lexicon)
    with pytest.raises(IncompatibleError, match="whole words"):
        make(VOCABULARY_OF_LETTERS, similar_words=lexicon, similar_share=0.1)


def test_a_file_that_changed_since_the_recipe_was_resolved_is_refused(lexicon):
    config = validate(MaskedLMConfig, {"unit": "lexicon", "lexicon": lexicon}, place="test")
    assert config.lexicon_digest is not None
    again = validate(MaskedLMConfig, config.model_dump(mode="json"), place="test")
    assert again == config
    Masking(again, VOCABULARY_OF_LETTERS, row_length=LENGTH)
    with open(lexicon, "a", encoding="utf-8") as file:
        file.write("q\n")
    with pytest.raises(IntegrityError, match="is not the file"):
        Masking(again, VOCABULARY_OF_LETTERS, row_length=LENGTH)


def real_rows(data_dir, name, vocab, *, num_documents=60, count=300):
    tokenizer = Tokenizer.load(data_dir / "vocabs" / vocab)
    with gzip.open(data_dir / name / f"{name}.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read(2_000_000).split("\n\n")[:num_documents]
    tokens = TextTokens(text, tokenizer)
    reader = RowReader(WindowView(tokens, length=127), name="windows", seed=0)
    return tokenizer, Vocabulary.of(tokenizer), reader.read(0, min(count, reader.num_rows))


@pytest.mark.data
def test_chinese_words_are_hidden_whole(data_dir):
    """Every word of the segmenter that is touched is hidden whole; among single tokens most are torn."""
    tokenizer, vocabulary, (rows, draws) = real_rows(data_dir, "wiki-zh", "google_zh_vocab.txt")
    word = word_begins(rows).long().cumsum(dim=1)
    number = word + 200 * torch.arange(len(word))[:, None]

    def whole_share(**config):
        config = MaskedLMConfig(initial_mask_rate=None, **config)
        masking = Masking(config, vocabulary, row_length=127)
        taken = hidden(rows, masking(rows, draws))
        size = number.flatten().bincount()
        found = number[taken].bincount(minlength=len(size))
        several = (size > 1) & (found > 0)
        return float((found == size)[several].float().mean()), taken

    share, taken = whole_share(unit="word")
    assert share == 1.0
    assert taken.float().mean() == pytest.approx(0.15, abs=0.002)
    assert whole_share(unit="ngram")[0] == 1.0
    assert whole_share(unit="span")[0] == 1.0
    assert whole_share(unit="token")[0] < 0.2
    # The words are those of the segmenter, of more than one character: characters are tokens here.
    ids = rows.ids[taken][:400]
    assert sum(len(tokenizer.token(i)) == 1 for i in ids.tolist()) > 200


@pytest.mark.data
def test_a_lexicon_of_chinese_names_joins_what_the_segmenter_cuts(data_dir, tmp_path):
    tokenizer, vocabulary, (rows, draws) = real_rows(data_dir, "wiki-zh", "google_zh_vocab.txt")
    path = tmp_path / "names.txt"
    path.write_text(
        "\n".join(["中华人民共和国", "計算機科學", "第二次世界大战", "美国", "Q\U0002a6d6"]), encoding="utf-8"
    )
    config = MaskedLMConfig(unit="lexicon", lexicon=str(path), initial_mask_rate=None)
    masking = Masking(config, vocabulary, row_length=127)
    found = masking.lexicon.units(rows.ids, word_begins(rows))[1]
    text = "".join(tokenizer.token(i).removeprefix("##") for i in rows.ids.flatten().tolist())
    assert (
        0
        < found
        <= sum(text.count(name) for name in ("中华人民共和国", "計算機科學", "第二次世界大战", "美国"))
    )
    assert masking.lexicon.report.unknown == ("Q\U0002a6d6",)
    assert hidden(rows, masking(rows, draws)).float().mean() == pytest.approx(0.15, abs=0.002)


@pytest.mark.data
def test_spans_of_english_text_are_as_long_as_the_paper_says(data_dir):
    """Drawn at 3.8 words; what is seen is shorter by the cuts at documents, rows and the last span of each row."""
    _, vocabulary, (rows, draws) = real_rows(data_dir, "wiki-en", "google_uncased_en_vocab.txt")
    masking = Masking(MaskedLMConfig(unit="span", initial_mask_rate=None), vocabulary, row_length=127)
    taken = hidden(rows, masking(rows, draws))
    assert taken.float().mean() == pytest.approx(0.15, abs=0.002)
    begins = taken.clone()
    begins[:, 1:] &= ~taken[:, :-1]
    words = float((taken & word_begins(rows)).sum() / begins.sum())
    assert 3.0 < words < 3.9
