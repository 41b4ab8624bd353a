import dataclasses
import itertools
import logging

import pytest
import torch

from seedbed.errors import DataError, IncompatibleError
from seedbed.models.huggingface import write_huggingface
from seedbed.objectives.lexicon import Lexicon, SimilarTokens, SimilarWords, path_digest
from toys import VOCABULARY, toy_model

HAN = "中华人民共和国北京大学生物"


def encode(text):
    """A letter is a token, as a Han character is; blanks vanish; anything else is unknown."""
    letters = {c: 5 + n for n, c in enumerate("abcdefghijklmnopqrstuvwxyz" + HAN)}
    return [letters.get(c, 1) for c in text if c != " "]


WORDS = dataclasses.replace(VOCABULARY, encode=encode)


def line(*words):
    """Ids (1, L) and word begins (1, L) of a text cut into words."""
    ids = [i for word in words for i in encode(word)]
    begins = [n == 0 for word in words for n in range(len(word))]
    return torch.tensor([ids]), torch.tensor([begins])


def units(lexicon, *words):
    ids, begins = line(*words)
    merged, found = lexicon.units(ids, begins)
    text = "".join(words)
    starts = [*merged[0].nonzero()[:, 0].tolist(), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(starts)], found


def test_the_longest_entry_is_one_unit():
    lexicon = Lexicon(["new york", "new york city", "york"], WORDS, max_tokens=20)
    assert units(lexicon, "in", "new", "york", "city", "hall") == (["in", "newyorkcity", "hall"], 1)
    assert units(lexicon, "new", "york", "new") == (["newyork", "new"], 1)
    assert units(lexicon, "york", "new", "york") == (["york", "newyork"], 2)


def test_a_western_entry_never_begins_or_ends_inside_a_word():
    lexicon = Lexicon(["art", "york"], WORDS, max_tokens=20)
    assert units(lexicon, "artist", "smart", "art") == (["artist", "smart", "art"], 1)


def test_a_chinese_entry_may_cut_the_segmenters_words():
    lexicon = Lexicon(["北京大学"], WORDS, max_tokens=20)
    assert units(lexicon, "北京", "大学", "生物") == (["北京大学", "生物"], 1)
    assert units(lexicon, "北京", "大学生", "物") == (["北京大学", "生", "物"], 1)
    assert units(lexicon, "华北", "京", "大学") == (["华", "北京大学"], 1)


def test_rows_without_an_entry_stay_as_they_are():
    lexicon = Lexicon(["new york"], WORDS, max_tokens=20)
    assert units(lexicon, "new", "jersey") == (["new", "jersey"], 0)
    ids, begins = line("new")  # the row ends inside what could become an entry
    assert lexicon.units(ids, begins)[1] == 0


def test_what_cannot_be_used_is_named(tmp_path, caplog):
    path = tmp_path / "words.txt"
    path.write_text("# cities\nnew york\n\nzürich\nabcdefghijk\n北京\t城市\n北京\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        report = Lexicon.read(str(path), WORDS, max_tokens=10).report
    assert report.usable == 2
    assert report.unknown == ("zürich",)
    assert report.too_long == ("abcdefghijk",)
    assert "zürich" in caplog.text
    assert "1 entries have more tokens" in caplog.text


@pytest.mark.parametrize("content", ["", "# only a comment\n", "ÄÖÜ\n"])
def test_a_lexicon_without_a_usable_entry_is_refused(tmp_path, content):
    path = tmp_path / "words.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="no entry"):
        Lexicon.read(str(path), WORDS, max_tokens=10)


def test_a_file_that_is_missing_or_not_utf8_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        Lexicon.read(str(tmp_path / "none.txt"), WORDS, max_tokens=10)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8"):
        Lexicon.read(str(tmp_path / "latin.txt"), WORDS, max_tokens=10)


def replaced(similar, words, chosen, draw=0):
    ids, begins = line(*words)
    position = torch.arange(ids.shape[1])
    first = torch.where(begins, position, 0).cummax(dim=1).values
    number = begins.long().cumsum(dim=1) - 1
    mask = torch.tensor([[n in chosen for n in number[0].tolist()]])
    fallback = torch.full_like(ids, 63)
    return similar.replace(ids, first, mask, torch.full_like(ids, draw), fallback)[0].tolist()


def test_a_word_gives_way_to_a_similar_one_of_as_many_tokens():
    similar = SimilarWords([("cat", ["dog", "lion", "cow"]), ("big", ["large"])], WORDS)
    assert (similar.num_words, similar.num_unequal) == (1, 2)
    assert replaced(similar, ["the", "cat"], {1}) == encode("the dog")
    assert replaced(similar, ["the", "cat"], {1}, draw=2**32 - 1) == encode("the cow")
    assert replaced(similar, ["cat", "cat"], {1}) == encode("cat dog")


def test_words_without_a_similar_one_fall_back():
    similar = SimilarWords([("cat", ["dog"])], WORDS)
    assert replaced(similar, ["big", "cat"], {0, 1}) == [63, 63, 63, *encode("dog")]


def test_similar_words_are_read_from_a_file(tmp_path):
    path = tmp_path / "similar.txt"
    path.write_text("cat\tdog cow\n北京\t中华 大学\n", encoding="utf-8")
    assert SimilarWords.read(str(path), WORDS).num_words == 2
    path.write_text("cat dog\n", encoding="utf-8")
    with pytest.raises(DataError, match="no tab"):
        SimilarWords.read(str(path), WORDS)
    path.write_text("cat\tlion\n", encoding="utf-8")
    with pytest.raises(DataError, match="equally many tokens"):
        SimilarWords.read(str(path), WORDS)


def test_neighbours_are_the_nearest_by_cosine():
    table = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    table[20] = 3.0 * table[10]  # the same direction
    table[2] = table[10]  # special: never a neighbour
    similar = SimilarTokens(table, VOCABULARY, num_neighbours=3)
    assert similar.neighbours.shape == (64, 3)
    assert similar.neighbours[10, 0] == 20
    assert similar.neighbours[5:].min() >= 5
    unit = table / table.norm(dim=1, keepdim=True)
    for token in (5, 33, 63):
        cosine = unit @ unit[token]
        cosine[:5], cosine[token] = -2.0, -2.0
        assert torch.equal(cosine[similar.neighbours[token]], cosine.topk(3).values)


def test_neighbours_of_a_models_own_table(tmp_path):
    model = toy_model("bert")
    write_huggingface(model, tmp_path / "model")
    similar = SimilarTokens.read(str(tmp_path / "model"), VOCABULARY, num_neighbours=4)
    direct = SimilarTokens(model.trunk.embedding.token.weight.detach(), VOCABULARY, num_neighbours=4)
    assert torch.equal(similar.neighbours, direct.neighbours)
    with pytest.raises(IncompatibleError, match="embedding table has 64"):
        SimilarTokens.read(
            str(tmp_path / "model"), dataclasses.replace(VOCABULARY, vocab_size=80), num_neighbours=4
        )


def test_digests_follow_the_content(tmp_path):
    path = tmp_path / "words.txt"
    assert path_digest(str(path)) is None
    path.write_text("cat\n")
    before = path_digest(str(path))
    path.write_text("dog\n")
    assert before is not None
    assert path_digest(str(path)) != before
