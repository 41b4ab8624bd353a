"""Minimal pairs: scores against slow ones, ties, counts, what is left out, and a few real pairs."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
import torch

from seedbed.batch import Batch
from seedbed.cli import main
from seedbed.data.views import RowReader, RowSource
from seedbed.errors import DataError, IncompatibleError
from seedbed.evaluation.minimal_pairs import MinimalPair, choose_pairs, read_pairs, report, score_pairs
from seedbed.models.huggingface import write_huggingface
from seedbed.models.language_model import LanguageModel
from seedbed.models.pretraining_heads import make_extras
from seedbed.objectives import OBJECTIVES
from seedbed.optim import AdamWConfig
from seedbed.tokenizer.load import wordpiece_backend
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import RESERVED, ToySplit, toy_model

PIECES = ["the", "cat", "cats", "dog", "run", "##s", "##ning", "sleep", "##ing", "##er", "."]
STEPS = 200
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]


def tokenizer():
    vocab = {
        token: number for number, token in enumerate([*VOCAB, *(f"x{i}" for i in range(64 - len(VOCAB)))])
    }
    return Tokenizer(wordpiece_backend(vocab, lowercase=True))


def pair(good, bad, uid="a", phenomenon="p", line=1):
    return MinimalPair(good, bad, "syntax", phenomenon, uid, "f", line)


PAIRS = [
    pair("the cat sleeps .", "the cats sleeps ."),
    pair("the dogs run .", "the running sleeper cats run .", "b", line=2),
    pair("cat", "running", "b", "q", line=3),
]


def slow(model, ids, words, method):
    """One token after the other, one row at a time."""
    total = 0.0
    with torch.no_grad():
        if method == "likelihood":
            for place in range(len(ids)):
                hidden = model(Batch(torch.tensor([[3, *ids[:place]]]), attention="causal"))
                total += float(model.logits(hidden.last[0, -1]).log_softmax(0)[ids[place]])
            return total
        for place in range(len(ids)):
            row = [2, *ids, 3]
            for other in range(place, len(ids)):
                if other == place or (method == "pll_word_l2r" and words[other] == words[place]):
                    row[other + 1] = 4
            hidden = model(Batch(torch.tensor([row])))
            total += float(model.logits(hidden.last[0, place + 1]).log_softmax(0)[ids[place]])
    return total


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("gpt2", "likelihood"),
        ("llama", "likelihood"),
        ("bert", "pll"),
        ("bert", "pll_word_l2r"),
        ("modernbert", "pll"),
    ],
)
@pytest.mark.parametrize("batch_tokens", [8192, 20, 1])
def test_scores_against_slow_ones(family, method, batch_tokens):
    model, words = toy_model(family), tokenizer()
    scores = score_pairs(model, words, PAIRS, method=method, batch_tokens=batch_tokens)
    for index, one in enumerate(PAIRS):
        for text, found in ((one.good, scores.good), (one.bad, scores.bad)):
            spans = words.encode_spans([text])
            expected = slow(model, spans.ids.tolist(), spans.pretokens.tolist(), method)
            assert found[index] == pytest.approx(expected, rel=1e-4), text


def test_hiding_the_rest_of_a_word_matters_only_in_words_of_several_pieces():
    model, words = toy_model("bert"), tokenizer()
    plain, l2r = (score_pairs(model, words, PAIRS, method=m) for m in ("pll", "pll_word_l2r"))
    assert plain.good[2] == pytest.approx(l2r.good[2])  # one piece
    assert plain.bad[2] != pytest.approx(l2r.bad[2])  # two pieces


@pytest.mark.parametrize(("family", "method"), [("bert", "pll_word_l2r"), ("t5", "infill_text")])
def test_chinese_words_are_those_of_the_segmenter(family, method):
    """The vocabulary has a token for each character; 我们 / 喜欢 / 北京 are hidden as words."""
    names = [*VOCAB[:5], *"我们喜欢北京的人"]
    names += [f"x{i}" for i in range(64 - len(names))]
    chinese = Tokenizer(wordpiece_backend({name: i for i, name in enumerate(names)}, lowercase=True))
    item = pair("我们喜欢北京", "我们喜欢北京的人")
    ids = chinese.encode(item.good)
    assert len(ids) == 6
    model = toy_model(family).eval()
    scores = score_pairs(model, chinese, [item], method=method)
    by_word = slow if family == "bert" else slow_gaps
    assert scores.good[0] == pytest.approx(by_word(model, ids, [0, 0, 1, 1, 2, 2], method), abs=1e-4)
    assert abs(scores.good[0] - by_word(model, ids, [0, 1, 2, 3, 4, 5], method)) > 1e-3


def test_a_two_stream_model_predicts_each_token_from_all_others():
    model, words = toy_model("bert", query_stream=True), tokenizer()
    scores = score_pairs(model, words, PAIRS)
    ids = words.encode(PAIRS[0].good)
    expected = 0.0
    for place, value in enumerate(ids):
        # What stands at the place itself must not matter.
        row = [2, *ids, 3]
        row[place + 1] = 60
        order = torch.zeros(1, len(row), dtype=torch.int32)
        order[0, place + 1] = 1
        at = torch.tensor([[place + 1]])
        with torch.no_grad():
            hidden = model(Batch(torch.tensor([row]), attention="order", attend_order=order, query_at=at))
            expected += float(model.logits(hidden.query[0, 0]).log_softmax(0)[value])
    assert scores.good[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["pll", "pll_word_l2r"])
def test_a_hybrid_is_asked_for_hidden_tokens_at_the_place_before_them(method):
    model, words = toy_model("llama"), tokenizer()
    scores = score_pairs(model, words, PAIRS, method=method, is_shifted=True, batch_tokens=20)
    for index, one in enumerate(PAIRS):
        for text, found in ((one.good, scores.good), (one.bad, scores.bad)):
            spans = words.encode_spans([text])
            total = 0.0
            for place in range(len(spans.ids)):
                row = [3, *spans.ids.tolist()]
                for other in range(place, len(spans.ids)):
                    same = spans.pretokens[other] == spans.pretokens[place]
                    if other == place or (method == "pll_word_l2r" and same):
                        row[other + 1] = 4
                with torch.no_grad():
                    hidden = model(Batch(torch.tensor([row])))  # read from both sides
                    total += float(model.logits(hidden.last[0, place]).log_softmax(0)[spans.ids[place]])
            assert found[index] == pytest.approx(total, abs=1e-4)
    # Asked as a decoder it is one like any other.
    assert score_pairs(model, words, PAIRS, is_shifted=True).method == "likelihood"


def test_a_model_that_prefers_the_good_ones_scores_one():
    """The head's offset makes one token likely whatever is read: pairs that differ in it are told apart."""
    model = toy_model("bert")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.bias[VOCAB.index("cat")] = 5.0
    told = [pair("the cat .", "the dog ."), pair("cat run", "cats run")]
    even = pair("the dog .", "the cats .")
    scores = score_pairs(model, tokenizer(), [*told, even])
    assert scores.points().tolist() == [1.0, 1.0, 0.5]
    assert report(scores)["accuracy"] == pytest.approx(2.5 / 3)
    swapped = score_pairs(model, tokenizer(), [pair(p.bad, p.good) for p in told])
    assert swapped.points().tolist() == [0.0, 0.0]


def test_sums_favour_the_shorter_sentence_and_means_do_not():
    """A model that knows nothing: every token is as likely as any other."""
    model = toy_model("bert")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    told = [
        pair("the cat .", "the cat run ."),
        pair("the cat run .", "the dog ."),
        pair("cat run", "cats run"),
    ]
    scores = score_pairs(model, tokenizer(), told)
    assert scores.lengths.tolist() == [[3, 4], [4, 3], [2, 2]]
    assert scores.longer().tolist() == [-1, 1, 0]
    assert scores.points().tolist() == [1.0, 0.0, 0.5]
    assert np.abs(scores.good / scores.lengths[:, 0] - scores.bad / scores.lengths[:, 1]).max() < 1e-6
    summary = report(scores)
    assert {name: (own["accuracy"], own["pairs"]) for name, own in summary["by"]["length"].items()} == {
        "one length": (0.5, 1),
        "acceptable longer": (0.0, 1),
        "acceptable shorter": (1.0, 1),
    }
    with torch.no_grad():
        model.head.bias[VOCAB.index("run")] = (
            5.0  # one likely token more makes a sum smaller still, and a mean larger
        )
    scores = score_pairs(model, tokenizer(), told)
    assert scores.points().tolist() == [1.0, 0.0, 0.5]
    assert scores.points(per_token=True).tolist() == [0.0, 1.0, 0.5]
    assert report(scores)["per_token"] == pytest.approx(0.5)


def test_what_the_vocabulary_cannot_tell_apart_counts_half():
    scores = score_pairs(toy_model("bert"), tokenizer(), [pair("the zebra", "the yak"), *PAIRS])
    assert scores.is_same.tolist() == [True, False, False, False]
    assert scores.points()[0] == 0.5
    summary = report(scores)
    assert (summary["same"], summary["ties"]) == (1, 1)


def test_the_report_adds_up():
    scores = score_pairs(toy_model("bert"), tokenizer(), PAIRS)
    summary = report(scores)
    points = scores.points()
    assert summary["pairs"] == 3
    assert summary["by"]["UID"]["b"]["pairs"] == 2
    assert summary["by"]["phenomenon"]["q"]["accuracy"] == points[2]
    assert summary["by"]["field"]["syntax"]["accuracy"] == pytest.approx(points.mean())
    over = np.mean([points[0], points[1:].mean()])
    assert summary["accuracy_over_paradigms"] == pytest.approx(over)
    share = points.mean()
    assert summary["standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 3))
    json.dumps(summary, allow_nan=False)


def test_sentences_too_long_are_left_out_and_listed():
    long = pair("cat " * 63, "dog", line=9)
    scores = score_pairs(toy_model("bert"), tokenizer(), [*PAIRS, long])
    assert len(scores.pairs) == 3
    assert scores.left_out == [("f", 9, "63 tokens, the model reads 62")]


def test_wrong_combinations_are_refused_with_a_hint():
    for model, method in (
        (toy_model("gpt2"), "pll"),
        (toy_model("bert"), "likelihood"),
        (LanguageModel(toy_model("bert").trunk, None), None),
    ):
        with pytest.raises(IncompatibleError) as refused:
            score_pairs(model, tokenizer(), PAIRS, method=method)
        assert refused.value.hint


def gap_tokenizer(reserved=16):
    """The toy vocabulary, with tokens in reserve as learned ones have them."""
    names = [*VOCAB, *(f"x{i}" for i in range(64 - len(VOCAB))), *(f"[unused{i}]" for i in range(reserved))]
    return Tokenizer(wordpiece_backend({name: i for i, name in enumerate(names)}, lowercase=True))


def slow_gaps(model, ids, words, method):
    """One word after the other, one row at a time; written out."""
    total, start = 0.0, model.config.special_ids["decoder_start"]
    for word in sorted(set(words)):
        places = [p for p, w in enumerate(words) if w == word]
        before, own, after = ids[: places[0]], [ids[p] for p in places], ids[places[-1] + 1 :]
        if method == "infill_span":
            read, decoder, first = [*before, 64, *after, 3], [start, 64, *own[:-1]], 1
        else:
            read, decoder, first = [2, *before, 4, *after, 3], [start, *before, *own[:-1]], len(before)
        with torch.no_grad():
            hidden = model.trunk(Batch(torch.tensor([read]), decoder_input_ids=torch.tensor([decoder])))
            logs = model.logits(hidden.last[0]).log_softmax(1)
        total += sum(float(logs[first + n, token]) for n, token in enumerate(own))
    return total


@pytest.mark.parametrize("batch_tokens", [24, 4096])
@pytest.mark.parametrize("method", ["infill_span", "infill_text"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_is_asked_for_each_word_left_out(family, method, batch_tokens):
    model = toy_model(family, vocabulary=RESERVED).eval()
    scores = score_pairs(model, gap_tokenizer(), PAIRS, method=method, batch_tokens=batch_tokens)
    assert scores.method == method
    for number, item in enumerate(PAIRS):
        for text, got in ((item.good, scores.good[number]), (item.bad, scores.bad[number])):
            spans = gap_tokenizer().encode_spans([text])
            expected = slow_gaps(model, spans.ids.tolist(), spans.pretokens.tolist(), method)
            assert got == pytest.approx(expected, abs=1e-4)


def test_gaps_are_sentinels_where_the_vocabulary_has_some_and_masks_where_it_has_none():
    t5 = toy_model("t5", vocabulary=RESERVED)
    assert score_pairs(t5, gap_tokenizer(), PAIRS).method == "infill_span"
    plain = toy_model("t5")
    assert score_pairs(plain, tokenizer(), PAIRS).method == "infill_text"
    for model, method in ((plain, "pll"), (plain, "infill_span"), (toy_model("bert"), "infill_text")):
        with pytest.raises(IncompatibleError) as refused:
            score_pairs(model, tokenizer(), PAIRS, method=method)
        assert refused.value.hint


@pytest.mark.parametrize(
    ("name", "family", "method", "options"),
    [
        ("span_corruption", "t5", "infill_span", {"noise_density": 0.3, "mean_span_length": 1.0}),
        ("denoising", "bart", "infill_text", {}),
    ],
)
def test_what_it_learned_of_tokens_left_out_shows_in_pairs(name, family, method, options):
    """In the toy text, seven is added from token to token of a word: a few hundred steps, and pairs are told apart by it."""
    objective = OBJECTIVES[name].model_validate(options).build(RESERVED, row_length=32, is_segmented=False)
    model = toy_model(family, vocabulary=RESERVED, hidden_size=64, ffn_size=128)
    learner = Learner([objective], objective.modules(model.trunk, model.head, seed=0))
    reader = RowReader(objective.make_view(RowSource(ToySplit(400))), name=objective.view, seed=0)
    optimizer = AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())
    pairs = [
        pair(f"x{a} x{a + 7} x{a + 14} x{a + 21}", f"x{a} x{a + 7} x{a + 14 + off} x{a + 21}")
        for a in range(26)
        for off in (-9, -4, 3, 5)
    ]

    def accuracy():
        found = score_pairs(model.eval(), gap_tokenizer(), pairs, method=method)
        return found.points().mean()

    before = accuracy()
    for step in range(STEPS):
        train_step(
            learner,
            optimizer,
            [MicroBatch(*objective.make_batch(*reader.read(16 * step % (reader.num_rows - 16), 16)))],
            objectives=[objective],
            progress=1.0,
            learning_rate=3e-3 * min(1.0, (step + 1) / 20) * (1 - step / STEPS),
            max_grad_norm=1.0,
        )
    after = accuracy()
    assert before < 0.7
    assert after > 0.85


def test_files_of_blimp_and_what_does_not_fit(tmp_path):
    lines = [
        {
            "sentence_good": "a",
            "sentence_bad": "b",
            "UID": "u",
            "linguistics_term": "t",
            "field": "morphology",
        },
        {"sentence_good": "same", "sentence_bad": "same"},
        {"sentence_good": "a"},
        {"sentence_good": "c", "sentence_bad": "d"},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\nno json\n"
    (tmp_path / "para.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    pairs, left_out = read_pairs([tmp_path / "para.jsonl.gz"])
    assert [(p.good, p.field, p.phenomenon, p.uid, p.line) for p in pairs] == [
        ("a", "morphology", "t", "u", 1),
        ("c", "-", "para", "para", 4),
    ]
    assert [line for _, line, _ in left_out] == [2, 3, 5]
    (tmp_path / "none.jsonl").write_text('{"text": "x"}\n')
    for path, message in (
        (tmp_path / "none.jsonl", "hold no pair"),
        (tmp_path / "missing.jsonl", "cannot be read"),
    ):
        with pytest.raises(DataError, match=message) as refused:
            read_pairs([path])
        assert refused.value.hint


def test_choosing_takes_as_many_of_each_paradigm():
    pairs = [pair(f"good {i}", f"bad {i}", uid="abc"[i % 3], line=i) for i in range(60)]
    chosen = choose_pairs(pairs, 5)
    assert len(chosen) == 15
    assert [p.line for p in chosen] == sorted(p.line for p in chosen)
    assert set(choose_pairs(pairs, 3)) < set(chosen)
    assert choose_pairs(pairs, 0) == pairs


def test_the_command(tmp_path, capsys):
    write_huggingface(toy_model("bert"), tmp_path / "model")
    tokenizer().save(tmp_path / "model")
    lines = [{"sentence_good": p.good, "sentence_bad": p.bad, "UID": p.uid} for p in PAIRS]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["minimal-pairs", str(tmp_path / "model"), str(tmp_path / "x.jsonl")]
    assert main([*words, "--json", "--save", str(tmp_path / "scores.jsonl")]) == 0
    result = json.loads(capsys.readouterr().out)
    saved = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert result["accuracy"] == sum(s["good"] > s["bad"] for s in saved) / 3
    assert main([*words, "--by", "UID"]) == 0
    assert "of 3 pairs (pll, chance 50 %)" in capsys.readouterr().out


@pytest.mark.data
def test_real_pairs(data_dir):
    pairs, left_out = read_pairs([data_dir / "sling-zh" / "sling_250_per_paradigm.jsonl.gz"])
    assert len(pairs) + len(left_out) == 10_560
    chosen = choose_pairs(pairs, 2)
    assert len({p.uid for p in chosen}) == len({p.uid for p in pairs})
    characters = sorted({c for p in chosen for c in p.good + p.bad})
    vocab = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters])}
    words = Tokenizer(wordpiece_backend(vocab, lowercase=False))
    from seedbed.models.bert import BertConfig
    from seedbed.models.language_model import build_model

    section = BertConfig(num_layers=1, hidden_size=16, num_heads=1, ffn_size=16, max_length=64)
    model = build_model(section.build(vocab_size=words.vocab_size), seed=0)
    scores = score_pairs(model, words, chosen)
    summary = report(scores)
    assert summary["pairs"] + summary["left_out"] == len(chosen)
    assert summary["same"] == 0
    assert 0.2 < summary["accuracy"] < 0.8


def test_a_model_of_replaced_tokens_is_asked_how_sure_it_is():
    """Against one sentence at a time, through its head; it is the default where there is no language-model head."""
    toy = toy_model("electra")
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    model = LanguageModel(toy.trunk, None, make_extras(toy.config, ["replaced_token"]))
    with torch.no_grad():
        for parameter in model.extras.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    own = tokenizer()
    found = score_pairs(model, own, PAIRS)
    assert found.method == "detection"
    for number, text in enumerate(p.good for p in PAIRS):
        ids = [own.cls_id, *own.encode(text), own.sep_id]
        hidden = model.trunk(Batch(torch.tensor([ids]))).last[0, 1:-1]
        p = 1 - torch.sigmoid(model.extras["replaced_token"](hidden)[:, 0].double())
        assert found.good[number] == pytest.approx(float(p.log().sum().detach()), rel=1e-4)
    with pytest.raises(IncompatibleError, match="replaced"):
        score_pairs(toy_model("bert"), own, PAIRS, method="detection")
