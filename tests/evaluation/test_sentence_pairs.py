import pytest
import torch

from seedbed.errors import IncompatibleError
from seedbed.evaluation.sentence_pairs import judge_pairs
from seedbed.models.language_model import LanguageModel
from seedbed.models.pretraining_heads import SentencePairHead
from toys import VOCABULARY, ToySplit, toy_model


def model_with_head():
    model = toy_model("bert")
    head = SentencePairHead(model.config)
    torch.nn.init.zeros_(head.classifier.weight)
    return LanguageModel(model.trunk, None, {"sentence_pair": head})


def test_a_judge_without_an_opinion_is_at_chance_on_both_tasks():
    model = model_with_head()
    torch.nn.init.zeros_(model.extras["sentence_pair"].classifier.bias)
    found = judge_pairs(model, ToySplit(60), VOCABULARY, row_length=24, max_rows=50)
    assert found.keys() == {"next_sentence", "sentence_order"}
    for scores in found.values():
        assert scores["loss"] == pytest.approx(0.6931, abs=1e-3)
        assert scores["pairs"] == 50


def test_a_judge_that_always_says_the_same_is_right_in_half_of_the_pairs():
    model = model_with_head()
    with torch.no_grad():
        model.extras["sentence_pair"].classifier.bias.copy_(torch.tensor([5.0, -5.0]))
    found = judge_pairs(model, ToySplit(400), VOCABULARY, row_length=24, max_rows=600)
    for scores in found.values():
        assert abs(scores["accuracy"] - 0.5) < 3 * scores["standard_error"]


def test_a_model_without_the_head_is_refused():
    with pytest.raises(IncompatibleError, match="no head that judges pairs"):
        judge_pairs(toy_model("bert"), ToySplit(60), VOCABULARY, row_length=24)
