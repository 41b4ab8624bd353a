import pytest
import torch

from seedbed.batch import Batch
from seedbed.errors import IncompatibleError
from seedbed.models.shrink import spread_layers, take_layers
from small_models import random_ids, small_model


def test_layers_are_spread_evenly():
    assert spread_layers(12, 6) == [0, 2, 4, 6, 8, 10]
    assert spread_layers(12, 4) == [0, 3, 6, 9]
    assert spread_layers(5, 2) == [0, 2]
    assert spread_layers(3, 3) == [0, 1, 2]


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama", "deberta_v2", "xlnet"])
def test_all_layers_give_the_same_model(family):
    teacher = small_model(family)
    student = small_model(family)
    with torch.no_grad():
        for parameter in student.trunk.parameters():
            parameter.zero_()
    take_layers(student.trunk, teacher.trunk, [0, 1, 2])
    batch = Batch(random_ids(2, 9), attention="causal" if teacher.config.is_causal else "full")
    with torch.no_grad():
        assert torch.equal(student(batch).last, teacher(batch).last)


def test_the_layers_named_are_the_ones_taken():
    teacher = small_model("bert")
    student = small_model("bert", num_layers=2)
    take_layers(student.trunk, teacher.trunk, [2, 0])
    for own, other in ((0, 2), (1, 0)):
        for mine, theirs in zip(
            student.trunk.layers[own].parameters(), teacher.trunk.layers[other].parameters(), strict=True
        ):
            assert torch.equal(mine, theirs)
    assert torch.equal(student.trunk.embedding.token.weight, teacher.trunk.embedding.token.weight)
    assert student.trunk.embedding.token.weight is not teacher.trunk.embedding.token.weight


def test_a_student_without_token_types_answers_as_the_teacher():
    teacher, student = small_model("bert"), small_model("distilbert")
    take_layers(student.trunk, teacher.trunk, [0, 1, 2])
    batch = Batch(random_ids(2, 9))
    with torch.no_grad():
        assert (student(batch).last - teacher(batch).last).abs().max() < 1e-5


def test_other_shapes_are_refused_and_nothing_is_copied():
    teacher, student = small_model("bert"), small_model("bert", ffn_size=50)
    before = student.trunk.embedding.token.weight.clone()
    with pytest.raises(IncompatibleError, match=r"feed_forward.*\(50, 32\)"):
        take_layers(student.trunk, teacher.trunk, [0, 1, 2])
    assert torch.equal(student.trunk.embedding.token.weight, before)
    with pytest.raises(IncompatibleError, match="2 layers were named"):
        take_layers(student.trunk, teacher.trunk, [0, 1])
