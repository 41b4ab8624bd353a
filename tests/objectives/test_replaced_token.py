import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from seedbed.batch import IGNORE_INDEX, Targets
from seedbed.config import validate
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.models import MODELS
from seedbed.models.huggingface import write_huggingface
from seedbed.models.language_model import LanguageModel
from seedbed.models.llama import LlamaConfig
from seedbed.objectives import replaced_token
from seedbed.objectives.mixture import MixtureConfig
from seedbed.objectives.replaced_token import (
    ReplacedTokenConfig,
    copy_loss,
    generator_config,
    sample_tokens,
)
from seedbed.optim import AdamWConfig
from seedbed.training.step import Learner, MicroBatch, train_step
from toys import VOCABULARY, clone_weights, toy_model, toy_reader

SHARINGS = ["shared", "gradient_disentangled", "none"]
TASKS = ["detect", "detect_masked", "replace_mlm", "all_tokens_mlm"]


def build(row_length=17, **config):
    return ReplacedTokenConfig(**config).build(VOCABULARY, row_length=row_length, is_segmented=False)


def setup(family="bert", seed=0, **config):
    objective = build(**config)
    model = toy_model(family, seed=seed)
    return objective, model, objective.modules(model.trunk, model.head, seed=seed)


def batch_of(objective, count=12, start=0, **reader):
    return objective.make_batch(*toy_reader(objective.raw_row_length, **reader).read(start, count))


def learner_of(objective, model, modules):
    learner = Learner([objective], modules)
    return learner, AdamWConfig(weight_decay=0.0).build(learner.parts.named_parameters())


def step(objective, learner, optimizer, sizes=(12,), **changes):
    micros, start = [], 0
    for size in sizes:
        micros.append(MicroBatch(*batch_of(objective, size, start)))
        start += size
    options = {"objectives": [objective], "progress": 1.0, "learning_rate": 3e-3, "max_grad_norm": 1.0}
    return train_step(learner, optimizer, micros, **{**options, **changes})


def gradients(learner):
    return {n: None if p.grad is None else p.grad.clone() for n, p in learner.named_parameters()}


def test_15_percent_are_masked_and_85_percent_of_them_hidden():
    objective = build(row_length=129)
    batch, targets = batch_of(objective, 200, num_documents=1500)
    generator = targets["generator"]
    assert generator.at.shape[0] == 200 * round(0.15 * 128)
    seen = batch.input_ids.flatten()[generator.at]
    assert abs(float((seen == VOCABULARY.mask_id).float().mean()) - 0.85) < 0.015
    assert bool(((seen == VOCABULARY.mask_id) | (seen == generator.values)).all())


def test_originals_stand_at_every_real_token():
    objective = build()
    reader = toy_reader(16)
    rows, draws = reader.read(0, reader.num_rows)  # the short tail too
    batch, targets = objective.make_batch(rows, draws)
    own = targets["replaced_token"]
    original = own.values.view(batch.input_ids.shape)
    inside = torch.arange(16) < rows.lengths[:, None]
    assert torch.equal(original[:, 1:][inside], rows.ids[inside])
    assert (original[:, 0] == VOCABULARY.cls_id).all()
    assert objective.counts(targets)["replaced_token"] == float(rows.lengths.sum()) + len(rows.ids)


def test_the_share_replaced_is_what_the_generator_missed():
    objective, _, modules = setup(row_length=64)
    batch, targets = batch_of(objective, 60, num_documents=400)
    terms = objective.losses(modules, batch, targets, with_details=True)
    masked, own = objective.counts(targets)["generator"], objective.counts(targets)["replaced_token"]
    hits = float(terms["generator"].sums["sampled_correct"])
    sums = {key: float(value) for key, value in terms["replaced_token"].sums.items()}
    assert sums["replaced"] == masked - hits
    assert abs(hits / masked - 1 / 64) < 0.02  # an untrained generator guesses
    assert sums["found"] <= min(sums["flagged"], sums["replaced"])
    assert sums["correct"] == own - sums["flagged"] - sums["replaced"] + 2 * sums["found"]
    share = sums["replaced"] / own
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert sums["entropy"] / own == pytest.approx(entropy, rel=1e-4)
    assert objective.chance("replaced_token") == pytest.approx(entropy, rel=0.05)


def test_samples_follow_the_softmax():
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.0, -float("inf")]])
    draws = torch.randint(0, 2**32, (200_000,), generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 0.5):
        found = sample_tokens(logits.expand(len(draws), -1), draws, temperature=temperature)
        shares = torch.bincount(found, minlength=5).double() / len(draws)
        wanted = (logits[0] / temperature).softmax(0)
        assert (shares - wanted).abs().max() < 0.004
    edges = sample_tokens(logits.expand(2, -1), torch.tensor([0, 2**32 - 1]))
    assert edges.tolist() == [0, 3]  # never the token of probability zero


def test_a_gpu_draws_the_same_tokens_by_integers():
    """But where a draw falls on the very edge, to 2^-24."""
    logits = 3 * torch.randn(2000, 500, generator=torch.Generator().manual_seed(1))
    draws = torch.randint(0, 2**32, (2000,), generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(1)
    found = replaced_token._invert_exactly(probabilities, draws)
    assert (found == sample_tokens(logits, draws)).double().mean() > 0.999
    edges = torch.tensor([0, 2**32 - 1])
    assert replaced_token._invert_exactly(torch.tensor([[0.0, 0.5, 0.5, 0.0]] * 2), edges).tolist() == [1, 2]


def test_samples_are_of_the_tokenizers_vocabulary_and_repeat_exactly():
    objective, _, modules = setup()
    batch, targets = batch_of(objective)
    first = objective.losses(modules, batch, targets)
    torch.manual_seed(5)
    again = objective.losses(modules, batch, targets)
    assert all(torch.equal(first[t].loss, again[t].loss) for t in first)
    other, shifted = batch_of(objective, seed=1)
    assert not torch.equal(shifted["sampling"].values, targets["sampling"].values)
    assert other.input_ids.shape == batch.input_ids.shape


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_losses_are_those_of_a_slow_reference(task):
    """Row by row, place by place, with the samples drawn by walking along the distribution."""
    objective, _, modules = setup(task=task, temperature=0.7)
    batch, targets = batch_of(objective, 6, start=3)
    terms = objective.losses(modules, batch, targets)
    generator, draws = targets["generator"], targets["sampling"].values
    weights = torch.ones(len(draws)) if generator.weights is None else generator.weights

    def hidden_of(trunk, ids):
        return trunk(
            type(batch)(input_ids=ids, segment_ids=batch.segment_ids, has_padding=batch.has_padding)
        ).last

    hidden = hidden_of(modules["generator"], batch.input_ids).flatten(0, 1)
    original = batch.input_ids.flatten().clone()
    read = batch.input_ids.flatten().clone()
    loss = 0.0
    for index, at in enumerate(generator.at.tolist()):
        logits = modules["generator_head"](hidden[at])
        right = int(generator.values[index])
        original[at] = right
        if weights[index] > 0:
            loss -= float(logits.log_softmax(0)[right])
            walked, token = 0.0, 0
            probabilities = (logits / 0.7).softmax(0).tolist()
            while walked + probabilities[token] <= int(draws[index]) / 2**32:
                walked += probabilities[token]
                token += 1
            read[at] = token
        else:
            read[at] = right
    assert float(terms["generator"].loss) == pytest.approx(loss, rel=1e-4)

    hidden = hidden_of(modules["trunk"], read.view_as(batch.input_ids)).flatten(0, 1)
    segments = torch.ones_like(batch.input_ids) if batch.segment_ids is None else batch.segment_ids
    masked = {int(at) for at, w in zip(generator.at, weights, strict=True) if w > 0}
    loss, count = 0.0, 0
    for place in range(len(read)):
        is_masked = place in masked
        if not segments.flatten()[place] or (task in ("detect_masked", "replace_mlm") and not is_masked):
            continue
        count += 1
        if task.startswith("detect"):
            chance = torch.sigmoid(modules["replaced_token"](hidden[place : place + 1]))[0, 0]
            loss -= float(torch.log(chance if read[place] != original[place] else 1 - chance))
        else:
            probability = modules["head"](hidden[place]).softmax(0)[original[place]]
            if task == "all_tokens_mlm":
                gate = torch.sigmoid(modules["copy_gate"](hidden[place])[0])
                probability = gate * (read[place] == original[place]) + (1 - gate) * probability
            loss -= float(torch.log(probability))
    term = objective.terms[1]
    assert objective.counts(targets)[term] == count
    assert float(terms[term].loss) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_detection_reaches_the_generator_only_through_what_is_shared(sharing):
    objective, model, modules = setup(embedding_sharing=sharing, generator_weight=0.0)
    learner, optimizer = learner_of(objective, model, modules)
    step(objective, learner, optimizer, max_grad_norm=0.0, learning_rate=0.0)
    shared = {id(p) for p in modules["trunk"].embedding.parameters()}
    for name, parameter in modules["generator"].named_parameters():
        is_shared = sharing == "shared" and id(parameter) in shared
        moved = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert moved == is_shared, name
    assert modules["replaced_token"].dense.weight.grad.abs().sum() > 0
    table = modules["trunk"].embedding.token
    own = table.parametrizations.weight.original if sharing == "gradient_disentangled" else table.weight
    assert own.grad.abs().sum() > 0


def test_the_generators_loss_does_not_reach_the_difference():
    objective, model, modules = setup(embedding_sharing="gradient_disentangled", trunk_weight=0.0)
    learner, optimizer = learner_of(objective, model, modules)
    step(objective, learner, optimizer, max_grad_norm=0.0, learning_rate=0.0)
    difference = modules["trunk"].embedding.token.parametrizations.weight.original
    assert difference.grad is None or not difference.grad.any()
    assert modules["generator"].embedding.token.weight.grad.abs().sum() > 0


def test_a_disentangled_table_starts_at_the_models_and_is_written_as_the_sum():
    objective, model, _ = setup(embedding_sharing="shared")
    before = toy_model("bert").trunk.embedding.token.weight.detach()
    objective, model, modules = setup(embedding_sharing="gradient_disentangled")
    table, base = modules["trunk"].embedding.token, modules["generator"].embedding.token
    assert torch.equal(table.weight, before)
    assert torch.equal(base.weight, before)
    assert not table.parametrizations.weight.original.any()
    learner, optimizer = learner_of(objective, model, modules)
    step(objective, learner, optimizer)
    assert table.parametrizations.weight.original.any()
    exported = objective.exported(model, modules)
    batch, _ = batch_of(objective)
    assert torch.equal(exported(batch).last, modules["trunk"](batch).last)
    assert torch.equal(
        exported.trunk.embedding.token.weight,
        base.weight + table.parametrizations.weight.original,
    )
    assert not any("parametrizations" in name for name, _ in exported.named_parameters())
    assert exported.head is None
    assert any("parametrizations" in name for name, _ in modules["trunk"].named_parameters())  # as before


@pytest.mark.parametrize("sharing", SHARINGS)
def test_every_parameter_that_trains_has_a_gradient_and_one_name(sharing):
    objective, model, modules = setup(embedding_sharing=sharing)
    learner, optimizer = learner_of(objective, model, modules)
    step(objective, learner, optimizer, learning_rate=0.0)
    silent = [n for n, p in learner.parts.named_parameters() if p.grad is None]
    assert silent == []
    names = [n for g in optimizer.param_groups for n in g["names"]]
    assert len(names) == len(set(names)) == len(list(learner.parts.parameters()))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_micro_batches_give_the_same_gradients(task, sharing):
    if sharing == "gradient_disentangled" and task.endswith("mlm"):
        return
    found = []
    for sizes in ((12,), (5, 7)):
        objective, model, modules = setup(task=task, embedding_sharing=sharing)
        learner, optimizer = learner_of(objective, model, modules)
        result = step(objective, learner, optimizer, sizes, max_grad_norm=0.0)
        found.append((result.losses, gradients(learner)))
    for key, value in found[0][0].items():
        assert torch.allclose(value, found[1][0][key], rtol=1e-4), key
    for name, gradient in found[0][1].items():
        if gradient is not None:
            close = (gradient - found[1][1][name]).abs().max() <= 3e-4 * gradient.abs().max().clamp(min=1e-3)
            assert close, name


def test_a_run_of_the_same_seed_is_the_same():
    weights = []
    for _ in range(2):
        objective, model, modules = setup(embedding_sharing="shared")
        learner, optimizer = learner_of(objective, model, modules)
        for _ in range(3):
            step(objective, learner, optimizer)
        weights.append(clone_weights(learner))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_it_learns_to_tell_replaced_tokens():
    """A frozen generator keeps replacing, so detection has something to learn by heart."""
    objective, model, modules = setup(generator_weight=0.0, embedding_sharing="none")
    learner, optimizer = learner_of(objective, model, modules)
    for _ in range(120):
        step(objective, learner, optimizer, (32,), learning_rate=1e-2)
    batch, targets = batch_of(objective, 32)
    sums = objective.losses(modules, batch, targets, with_details=True)["replaced_token"].sums
    assert float(sums["replaced"]) > 50
    assert float(sums["found"] / sums["replaced"]) > 0.9
    assert float(sums["found"] / sums["flagged"]) > 0.9


def test_generators_are_smaller_and_read_tables_as_wide_as_the_trunks():
    trunk = toy_model("bert", num_heads=4, hidden_size=64, ffn_size=100, num_layers=4).config
    small = generator_config(trunk, ReplacedTokenConfig(generator_layers=0.5))
    assert (small.hidden_size, small.num_heads, small.ffn_size, small.num_layers) == (16, 1, 25, 2)
    assert small.embedding_width == 64
    same = generator_config(trunk, ReplacedTokenConfig(generator_size=1.0))
    assert (same.hidden_size, same.embedding_size, same.num_heads) == (64, 0, 4)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_shared_tables_are_the_same_parameters(family):
    _, _, modules = setup(family)
    assert modules["generator"].embedding.token.weight is modules["trunk"].embedding.token.weight
    assert modules["generator_head"].weight is modules["trunk"].embedding.token.weight
    assert modules["generator"].embedding.projection.weight.shape == (16, 32)


@torch.no_grad()
def test_the_copy_gate_keeps_a_distribution():
    torch.manual_seed(0)
    head, gate, features = nn.Linear(8, 5), nn.Linear(8, 1), torch.randn(1, 8)
    total = sum(
        math.exp(
            -float(copy_loss(head, gate, features, torch.tensor([2]), Targets(torch.tensor([0]), y)).loss)
        )
        for y in torch.arange(5)[:, None]
    )
    assert total == pytest.approx(1.0, abs=1e-5)
    certain = copy_loss(
        head,
        gate,
        features,
        torch.tensor([2]),
        Targets(torch.tensor([0]), torch.tensor([2])),
        with_details=True,
    )
    assert certain.loss < F.cross_entropy(head(features), torch.tensor([2]))


def test_dropout_differs_between_generator_and_trunk_and_repeats():
    objective = build(generator_size=1.0, embedding_sharing="shared")
    model = toy_model("bert", hidden_dropout=0.3)
    modules = objective.modules(model.trunk, model.head)
    batch, targets = batch_of(objective)
    key = torch.tensor(3, dtype=torch.int32)
    one = objective.losses(modules, batch, targets, dropout_key=key)
    two = objective.losses(modules, batch, targets, dropout_key=key)
    none = objective.losses(modules, batch, targets)
    for term in objective.terms:
        assert torch.equal(one[term].loss, two[term].loss)
        assert not torch.equal(one[term].loss, none[term].loss)


def test_wrong_combinations_are_refused():
    with pytest.raises(IncompatibleError, match="trains an encoder"):
        build().check(LlamaConfig().build(vocab_size=64))
    with pytest.raises(ConfigError, match="goes with detection"):
        validate(
            ReplacedTokenConfig,
            {"task": "replace_mlm", "embedding_sharing": "gradient_disentangled"},
            place="test",
        )


def test_tables_of_differences_are_refused_beside_other_objectives():
    def mixed(sharing):
        entries = [{"name": "replaced_token", "embedding_sharing": sharing}, {"name": "masked_lm"}]
        validate(MixtureConfig, {"entries": [{"objective": entry} for entry in entries]}, place="test")

    mixed("shared")
    with pytest.raises(ConfigError, match="must be the only objective"):
        mixed("gradient_disentangled")


def test_evaluation_has_a_constant_rate():
    fixed = build(mask_rate=0.2, initial_mask_rate=0.4, label_smoothing=0.1).for_evaluation()
    assert (fixed.config.mask_rate, fixed.config.initial_mask_rate) == (0.2, None)
    assert fixed.config.label_smoothing == 0.0
    assert fixed.terms == ("generator", "replaced_token")


def test_both_losses_are_those_of_transformers(tmp_path):
    """ElectraForMaskedLM and ElectraForPreTraining, opened from what we write, on the very ids of our batch."""
    objective, model, modules = setup(
        "electra", embedding_sharing="gradient_disentangled", generator_layers=0.5
    )
    learner, optimizer = learner_of(objective, model, modules)
    for _ in range(5):
        step(objective, learner, optimizer, learning_rate=1e-2)  # away from the small initial values
    batch, targets = batch_of(objective, 8, 8)
    with torch.no_grad():
        terms = objective.losses(modules, batch, targets)
    generator, own = targets["generator"], targets["replaced_token"]
    assert not batch.has_padding
    assert generator.weights is None

    write_huggingface(objective.exported(model, modules), tmp_path / "discriminator")
    theirs = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "discriminator").eval()
    part = LanguageModel(modules["generator"], modules["generator_head"])
    part.trunk.config = part.trunk.config.updated(family="electra")
    write_huggingface(part, tmp_path / "generator")
    masked = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "generator").eval()
    labels = torch.full(batch.input_ids.shape, IGNORE_INDEX)
    labels.view(-1)[generator.at] = generator.values
    with torch.no_grad():
        answer = masked(batch.input_ids, labels=labels)
        drawn = sample_tokens(answer.logits.flatten(0, 1)[generator.at], targets["sampling"].values)
        ids = batch.input_ids.flatten().scatter(0, generator.at, drawn).view_as(batch.input_ids)
        replaced = (ids.flatten() != own.values).long().view_as(ids)
        loss = theirs(ids, attention_mask=torch.ones_like(ids), labels=replaced).loss
    assert float(terms["generator"].loss) / len(generator.at) == pytest.approx(float(answer.loss), rel=1e-4)
    assert float(terms["replaced_token"].loss) / len(own.at) == pytest.approx(float(loss), rel=1e-4)
    assert replaced.any()


@pytest.mark.slow
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("family", [name for name, kind in MODELS.items() if kind.stack == "encoder"])
def test_every_encoder_learns_32_rows_by_heart_and_exports_what_it_learned(family, sharing):
    objective, model, modules = setup(family, embedding_sharing=sharing)
    objective.check(model.config)
    learner, optimizer = learner_of(objective, model, modules)
    for _ in range(100):
        losses = step(objective, learner, optimizer, (32,), learning_rate=1e-2).losses
    assert float(losses[0, "replaced_token"]) < 0.15
    batch, _ = batch_of(objective)
    with torch.no_grad():
        assert torch.equal(objective.exported(model, modules)(batch).last, modules["trunk"](batch).last)
