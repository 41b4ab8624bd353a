import pytest
import torch
import torch.nn.functional as F

from seedbed.config import validate
from seedbed.errors import ConfigError, DataError, IncompatibleError, IntegrityError
from seedbed.models import MODELS
from seedbed.models.folder import settle_form, write_model
from seedbed.objectives.base import Vocabulary
from seedbed.objectives.distillation import DistillationConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.optim import AdamWConfig
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.state import TrainingState
from seedbed.training.step import Learner, MicroBatch, train_step
from tiny_runs import write_teacher
from toys import RESERVED, VOCABULARY, clone_weights, toy_model, toy_reader

METHODS = ["distilbert", "tinybert", "minilm"]
EVERYTHING = {
    "label_weight": 1.0,
    "soft_target_weight": 1.0,
    "cosine_weight": 1.0,
    "hidden_weight": 1.0,
    "embedding_weight": 1.0,
    "attention_weight": 1.0,
    "relation_weight": 1.0,
}


def write(folder, model):
    write_model(model, folder, form="huggingface")
    return str(folder)


def toy_teacher(family="bert", **changes):
    """Four layers of well spread weights: its answers differ from place to place."""
    return toy_model(family, seed=3, initialisation_std=0.3, **{"num_layers": 4, **changes})


@pytest.fixture
def teacher(tmp_path):
    return write(tmp_path / "teacher", toy_teacher())


def build(teacher, row_length=17, *, is_segmented=False, **config):
    section = validate(DistillationConfig, {"teacher": teacher, **config}, place="test")
    return section.build(VOCABULARY, row_length=row_length, is_segmented=is_segmented)


def setup(teacher, *, family="bert", model=None, **config):
    objective = build(teacher, **config)
    student = toy_model(family, **(model or {}))
    objective.check(student.config)
    learner = Learner([objective], objective.modules(student.trunk, student.head))
    return objective, student, learner


def batch_of(objective, count=12, start=0):
    return objective.make_batch(*toy_reader(objective.raw_row_length).read(start, count))


def step(objective, learner, optimizer, sizes=(12,), **changes):
    micros, start = [], 0
    for size in sizes:
        micros.append(MicroBatch(*batch_of(objective, size, start)))
        start += size
    options = {"objectives": [objective], "progress": 1.0, "learning_rate": 5e-3, "max_grad_norm": 1.0}
    return train_step(learner, optimizer, micros, **{**options, **changes})


def optimizer_of(learner):
    return AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())


def captured(model, batch):
    count = model.config.num_layers
    names = [f"hidden.{i}" for i in range(count + 1)]
    names += [f"{kind}.{i}" for kind in ("query", "key", "value") for i in range(count)]
    return model.trunk(batch, capture=names)


@torch.no_grad()
@pytest.mark.parametrize(
    ("base", "family", "is_segmented"),
    [
        ("masked_lm", "bert", False),
        ("masked_lm", "modernbert", True),
        ("causal_lm", "llama", False),
        ("causal_lm", "gpt2", True),
    ],
)
def test_every_term_is_that_of_a_slow_reference(base, family, is_segmented, tmp_path):
    """Token by token over the rows, padded and packed ones included."""
    path = write(tmp_path / "teacher", toy_teacher(family))
    objective, student, learner = setup(
        path, family=family, of={"name": base}, is_segmented=is_segmented, temperature=3.0, **EVERYTHING
    )
    reader = toy_reader(objective.raw_row_length)
    batch, targets = objective.make_batch(*reader.read(0, reader.num_rows))
    assert batch.has_padding
    terms = objective.losses(learner.modules_by_name(), batch, targets)
    assert list(terms) == list(objective.terms)
    own, other = captured(student, batch), captured(objective.teacher, batch)
    target = targets[base]
    weights = torch.ones(target.at.shape) if target.weights is None else target.weights
    rows, length = batch.input_ids.shape
    segments = batch.segment_ids

    soft = 0.0
    for at, weight in zip(target.at.tolist(), weights.tolist(), strict=True):
        p = (objective.teacher.logits(other.last.flatten(0, 1)[at])[:64] / 3).softmax(0)
        q = (student.logits(own.last.flatten(0, 1)[at])[:64] / 3).log_softmax(0)
        soft += weight * 9 * float((p * (p.log() - q)).sum())
    expected = dict.fromkeys(("cosine", "hidden", "embedding", "attention", "relations"), 0.0)
    num_tokens = 0
    for row in range(rows):
        for i in range(length):
            if segments[row, i] == 0:
                continue
            num_tokens += 1
            keys = [
                j
                for j in range(length)
                if segments[row, j] > 0
                and (not is_segmented or segments[row, j] == segments[row, i])
                and (base == "masked_lm" or j <= i)
            ]
            expected["cosine"] += 1 - float(F.cosine_similarity(own.last[row, i], other.last[row, i], dim=0))

            def error(mine, theirs, row=row, i=i):
                return float(
                    (own.captured[f"hidden.{mine}"][row, i] - other.captured[f"hidden.{theirs}"][row, i])
                    .square()
                    .mean()
                )

            def scores(hidden, left, right, layer, head, row=row, i=i, keys=keys):
                a, b = hidden.captured[f"{left}.{layer}"][row], hidden.captured[f"{right}.{layer}"][row]
                a, b = a[head * len(a) // 2], b[head * len(b) // 2]
                return torch.stack([a[i] @ b[j] for j in keys]) / a.shape[-1] ** 0.5

            expected["embedding"] += error(0, 0)
            expected["hidden"] += error(1, 2) + error(2, 4)
            for head in range(2):
                for mine, theirs in ((0, 1), (1, 3)):
                    difference = scores(own, "query", "key", mine, head) - scores(
                        other, "query", "key", theirs, head
                    )
                    expected["attention"] += float(difference.square().mean()) / 2
                for left, right in (("query", "key"), ("value", "value")):
                    p = scores(other, left, right, 3, head).log_softmax(0)
                    q = scores(own, left, right, 1, head).log_softmax(0)
                    expected["relations"] += float((p.exp() * (p - q)).sum()) / 2
    assert float(terms["soft_targets"].loss) == pytest.approx(soft, rel=1e-3)
    for term, value in expected.items():
        assert float(terms[term].loss) == pytest.approx(value, rel=1e-3), term
    counts = objective.counts(targets)
    assert counts["soft_targets"] == counts[base] == float(weights.sum())
    assert counts["cosine"] == counts["hidden"] == counts["relations"] == num_tokens
    plain = objective.base.losses({"trunk": student.trunk, "head": student.head}, batch, targets)
    assert torch.allclose(plain[base].loss, terms[base].loss, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_have_their_papers_terms(teacher, method):
    objective, _, learner = setup(teacher, method=method)
    assert (
        objective.weights(1.0)
        == {
            "distilbert": {"masked_lm": 2.0, "soft_targets": 5.0, "cosine": 1.0},
            "tinybert": {"hidden": 1.0, "embedding": 1.0, "attention": 1.0},
            "minilm": {"relations": 1.0},
        }[method]
    )
    assert ("head" in learner.parts) == (method == "distilbert")
    batch, targets = batch_of(objective)
    assert set(objective.losses(learner.modules_by_name(), batch, targets)) == set(objective.terms)


@pytest.mark.parametrize("weights", [{}, {"method": "minilm"}, EVERYTHING])
def test_micro_batches_give_the_same_gradients(teacher, weights):
    found = []
    for sizes in ((12,), (5, 7)):
        objective, _, learner = setup(teacher, **weights)
        result = step(objective, learner, optimizer_of(learner), sizes, max_grad_norm=0.0)
        found.append(
            (result.losses, {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None})
        )
    for key, value in found[0][0].items():
        assert torch.allclose(value, found[1][0][key], rtol=1e-4), key
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        close = (gradient - found[1][1][name]).abs().max() <= 5e-4 * gradient.abs().max().clamp(min=1e-3)
        assert close, name


def test_the_teacher_never_trains_moves_or_is_saved(teacher, tmp_path):
    objective, _, learner = setup(teacher, **EVERYTHING)
    optimizer = optimizer_of(learner)
    before = clone_weights(objective.teacher)
    for _ in range(3):
        step(objective, learner, optimizer)
    assert all(torch.equal(before[name], p) for name, p in objective.teacher.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    assert not any("teacher" in name for name, _ in learner.named_parameters())
    state = TrainingState(learner, optimizer)
    path = Checkpoints(tmp_path / "checkpoints", inputs={}).save(state)
    saved = (path / "model.safetensors").stat().st_size
    assert saved < 4.2 * sum(p.numel() for p in learner.parameters()) + 20_000


def test_dropout_is_the_students_alone(tmp_path):
    path = write(tmp_path / "teacher", toy_teacher(hidden_dropout=0.5))
    objective, _, learner = setup(path, model={"hidden_dropout": 0.0}, **EVERYTHING)
    batch, targets = batch_of(objective)
    key = torch.tensor(5, dtype=torch.int32)
    plain, keyed = (
        objective.losses(learner.modules_by_name(), batch, targets, dropout_key=k) for k in (None, key)
    )
    assert all(torch.equal(plain[term].loss, keyed[term].loss) for term in plain)


def agreement(student, objective):
    """Divergence from the teacher at masked places, nats, on rows nobody trained on."""
    base = MaskedLMConfig(initial_mask_rate=None).build(VOCABULARY, row_length=17, is_segmented=False)
    batch, targets = base.make_batch(*toy_reader(16, seed=4, num_documents=40).read(0, 32))
    at = targets["masked_lm"].at
    with torch.no_grad():
        own, other = (m.logits_at(m(batch), at).log_softmax(1) for m in (student, objective.teacher))
    return float((other.exp() * (other - own)).sum(1).mean())


def test_a_distilled_student_is_closer_to_its_teacher_than_one_that_reads_labels(teacher):
    found = {}
    for name, weights in {
        "labels": {"label_weight": 1.0, "soft_target_weight": 0.0, "cosine_weight": 1e-9},
        "distilled": {"label_weight": 0.0, "soft_target_weight": 1.0, "cosine_weight": 0.0},
    }.items():
        objective, student, learner = setup(teacher, temperature=1.0, **weights)
        optimizer = optimizer_of(learner)
        for _ in range(50):
            step(objective, learner, optimizer, (24,))
        found[name] = agreement(student, objective)
    assert found["distilled"] < 0.7 * found["labels"]


def test_inner_terms_bring_the_insides_closer(teacher):
    objective, _, learner = setup(teacher, method="tinybert", relation_weight=1.0)
    optimizer = optimizer_of(learner)
    first = step(objective, learner, optimizer).losses
    for _ in range(30):
        last = step(objective, learner, optimizer).losses
    assert all(float(last[key]) < 0.8 * float(first[key]) for key in first)


def test_a_wider_teacher_is_met_through_projections(tmp_path):
    path = write(tmp_path / "teacher", toy_teacher(hidden_size=64, num_heads=4))
    objective, student, learner = setup(
        path,
        cosine_weight=0.0,
        hidden_weight=1.0,
        embedding_weight=1.0,
        relation_weight=1.0,
        relation_heads=8,
    )
    assert learner.parts["hidden_projection"].weight.shape == (64, 32)
    optimizer = optimizer_of(learner)
    step(objective, learner, optimizer)
    for term in ("hidden", "embedding"):
        assert learner.parts[f"{term}_projection"].weight.grad.abs().sum() > 0
    exported = objective.exported(student, learner.modules_by_name())
    assert not any("projection" in name for name, _ in exported.named_parameters())


def test_a_student_that_starts_as_the_teacher_agrees_with_it(tmp_path):
    model = toy_teacher()
    path = write(tmp_path / "teacher", model)
    objective, student, learner = setup(path, initialise="teacher", model={"num_layers": 4})
    batch, targets = batch_of(objective)
    terms = objective.losses(learner.modules_by_name(), batch, targets, with_details=True)
    assert float(terms["soft_targets"].loss.detach()) == pytest.approx(0.0, abs=1e-3)
    assert terms["soft_targets"].sums["agreed"] == objective.counts(targets)["soft_targets"]
    _, student, _ = setup(path, initialise="teacher", model={"num_layers": 2})
    assert torch.equal(
        student.trunk.layers[1].attention.qkv.weight, objective.teacher.trunk.layers[2].attention.qkv.weight
    )
    with pytest.raises(IncompatibleError, match="teacher of other shapes"):
        setup(path, initialise="teacher", model={"ffn_size": 48})


def test_layer_maps(teacher):
    objective = build(teacher, method="tinybert")
    assert objective.matched_layers(2) == [2, 4]
    assert build(teacher, method="tinybert", layer_map="last").matched_layers(2) == [3, 4]
    assert build(teacher, method="tinybert", layer_map=[1, 1]).matched_layers(2) == [1, 1]
    with pytest.raises(IncompatibleError, match="layer_map"):
        build(teacher, method="tinybert", layer_map=[1, 5]).check(toy_model("bert").config)


def test_wrong_pairs_are_refused_with_what_to_change(teacher, tmp_path):
    for config, student, message in [
        ({}, {"hidden_size": 64}, "states of one width"),
        ({"method": "tinybert"}, {"num_heads": 4}, "head with head"),
        ({"method": "minilm"}, {"num_heads": 4}, "head with head"),
        ({"method": "minilm", "relation_heads": 5}, {}, "cannot be cut into 5"),
        ({"method": "tinybert"}, {"num_layers": 5}, "the student has 5 layers"),
    ]:
        with pytest.raises(IncompatibleError, match=message) as error:
            build(teacher, **config).check(toy_model("bert", **student).config)
        assert error.value.hint
    build(teacher, method="minilm", relation_heads=4).check(toy_model("bert", num_heads=4).config)
    with pytest.raises(IncompatibleError, match="trains an encoder"):
        build(teacher).check(toy_model("llama").config)
    with pytest.raises(IncompatibleError, match="the teacher is of kind encoder"):
        build(teacher, of={"name": "causal_lm"}, row_length=16).check(toy_model("llama").config)
    model = toy_model("t5", vocabulary=RESERVED)
    path = write(tmp_path / "t5", model)
    section = validate(
        DistillationConfig,
        {"teacher": path, "of": {"name": "span_corruption"}, "method": "tinybert"},
        place="test",
    )
    objective = section.build(RESERVED, row_length=32, is_segmented=False)
    with pytest.raises(IncompatibleError, match="an encoder-decoder has two"):
        objective.check(model.config)


def test_teachers_that_are_not_there_or_changed_are_refused(teacher, tmp_path):
    with pytest.raises(ConfigError, match="no teacher"):
        DistillationConfig().build(VOCABULARY, row_length=16, is_segmented=False)
    with pytest.raises(DataError, match="does not exist"):
        build(str(tmp_path / "nowhere"))
    section = validate(DistillationConfig, {"teacher": teacher}, place="test")
    assert section.teacher_digest
    write(tmp_path / "teacher", toy_teacher(num_layers=3))
    with pytest.raises(IntegrityError, match="is not the file"):
        section.build(VOCABULARY, row_length=16, is_segmented=False)
    with pytest.raises(ConfigError, match="asks the teacher is 0"):
        validate(DistillationConfig, {"soft_target_weight": 0, "cosine_weight": 0}, place="test")


def test_encoder_decoders_are_distilled_by_their_outputs(tmp_path):
    path = write(tmp_path / "t5", toy_model("t5", vocabulary=RESERVED, num_layers=3, initialisation_std=0.1))
    section = validate(DistillationConfig, {"teacher": path, "of": {"name": "span_corruption"}}, place="test")
    objective = section.build(RESERVED, row_length=32, is_segmented=False)
    student = toy_model("t5", vocabulary=RESERVED)
    objective.check(student.config)
    learner = Learner([objective], objective.modules(student.trunk, student.head))
    optimizer = optimizer_of(learner)
    losses = [step(objective, learner, optimizer, (8,)).losses for _ in range(15)]
    assert all(float(losses[-1][key]) < float(losses[0][key]) for key in losses[0])


def test_another_tokenizer_is_refused_by_its_digest(tmp_path):
    """Both tokenizers have as many tokens; one spells two of them the other way round."""
    folder = tmp_path / "words"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = Tokenizer.load(folder)
    path = str(write_teacher(tmp_path / "teacher", tokenizer))
    section = validate(DistillationConfig, {"teacher": path}, place="test")
    section.build(Vocabulary.of(tokenizer), row_length=16, is_segmented=False)
    words[5:7] = ["cat", "the"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(IncompatibleError, match="another tokenizer"):
        section.build(Vocabulary.of(Tokenizer.load(folder)), row_length=16, is_segmented=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", list(MODELS))
def test_every_family_comes_closer_to_a_teacher_of_its_kind(family, method, tmp_path):
    stack = MODELS[family].stack
    if stack == "encoder_decoder" and method != "distilbert":
        return
    base = {"encoder": "masked_lm", "decoder": "causal_lm", "encoder_decoder": "span_corruption"}[stack]
    model = toy_model(family, vocabulary=RESERVED, num_layers=4, seed=3, initialisation_std=0.1)
    write_model(model, tmp_path / "teacher", form=settle_form(model.config, "auto"))
    section = validate(
        DistillationConfig,
        {"teacher": str(tmp_path / "teacher"), "of": {"name": base}, "method": method, "label_weight": 0.0},
        place="test",
    )
    objective = section.build(RESERVED, row_length=32, is_segmented=False)
    student = toy_model(family, vocabulary=RESERVED)
    objective.check(student.config)
    learner = Learner([objective], objective.modules(student.trunk, student.head))
    optimizer = optimizer_of(learner)
    losses = [step(objective, learner, optimizer, (32,)).losses for _ in range(60)]
    for term in objective.terms:
        if objective.weights(1.0)[term]:
            assert float(losses[-1][0, term]) < 0.7 * float(losses[0][0, term]), term
