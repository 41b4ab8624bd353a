"""Models that judge texts: parity with the families' classes, our own form, and what is refused."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers

from seedbed.batch import Batch
from seedbed.errors import DataError, IncompatibleError
from seedbed.models import MODELS
from seedbed.models.classifier import (
    Classifier,
    ClassifierHead,
    form_of,
    read_classifier,
    read_pretrained,
    write_classifier,
)
from seedbed.models.language_model import LanguageModel, build_model

logging.getLogger("transformers").setLevel(logging.ERROR)

LABELS = ("bad", "fair", "good")
FAMILIES = [name for name, kind in MODELS.items() if kind.classifier is not None]
VOCAB = 40
SPECIAL = {"pad": 0, "bos": 3, "eos": 3, "cls": 2, "sep": 3, "mask": 4}


def build(family, *, labels=LABELS, pooling=None, seed=0):
    section = MODELS[family].model_validate(
        {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_size": 48, "max_length": 24}
    )
    model = build_model(section.build(vocab_size=VOCAB, special_ids=SPECIAL).updated(), seed=seed)
    head = ClassifierHead(model.config, len(labels) or 1)
    head.initialise(7, model.head)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in [*model.trunk.parameters(), *head.parameters()]:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return Classifier(model, head, pooling or form_of(model.config).poolings[0], labels)


def texts():
    ids = torch.randint(5, VOCAB, (3, 12), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([12, 7, 3])
    inside = torch.arange(12)[None] < lengths[:, None]
    return torch.where(inside, ids, 0), inside.to(torch.int32), lengths


def our_logits(classifier):
    ids, inside, lengths = texts()
    causal = classifier.model.config.is_causal
    batch = Batch(ids, segment_ids=inside, has_padding=True, attention="causal" if causal else "full")
    with torch.no_grad():
        hidden = classifier.model.trunk(batch).last
        features = {
            "first": hidden[:, 0],
            "last": hidden[torch.arange(3), lengths - 1],
            "mean": (hidden * inside[:, :, None]).sum(dim=1) / lengths[:, None],
        }[classifier.pooling]
        return classifier.head(features)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", [LABELS, ()])
def test_transformers_opens_the_folder_with_equal_logits(tmp_path, family, labels):
    for pooling in form_of(build(family).model.config).poolings:
        classifier = build(family, labels=labels, pooling=pooling)
        folder = tmp_path / pooling
        assert write_classifier(classifier, folder) == ""
        theirs, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
        ids, inside, _ = texts()
        with torch.no_grad():
            logits = theirs.eval()(ids, attention_mask=inside.long()).logits
        assert torch.allclose(logits, our_logits(classifier), atol=1e-4)
        if labels:
            assert theirs.config.id2label == dict(enumerate(labels))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", [LABELS, ()])
def test_a_folder_reads_back(tmp_path, family, labels):
    for pooling in form_of(build(family).model.config).poolings:
        classifier = build(family, labels=labels, pooling=pooling)
        write_classifier(classifier, tmp_path / pooling)
        back = read_classifier(tmp_path / pooling)
        assert (back.labels, back.pooling) == (labels, pooling)
        assert torch.equal(our_logits(back), our_logits(classifier))


def test_a_folder_of_transformers_reads(tmp_path):
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_labels=4,
    )
    torch.manual_seed(0)
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ids, inside, _ = texts()
    with torch.no_grad():
        logits = theirs(ids, attention_mask=inside.long()).logits
    classifier = read_classifier(tmp_path)
    assert classifier.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    assert torch.allclose(logits, our_logits(classifier), atol=1e-4)


def test_what_a_class_cannot_hold_is_kept_in_our_own_form(tmp_path):
    classifier = build("bert", pooling="mean")
    reason = write_classifier(classifier, tmp_path)
    assert "cannot pool by 'mean'" in reason
    assert not (tmp_path / "config.json").exists()
    back = read_classifier(tmp_path)
    assert (back.labels, back.pooling) == (LABELS, "mean")
    assert torch.equal(our_logits(back), our_logits(classifier))


def test_pretrained_layers_of_the_head_are_kept(tmp_path):
    model = build("modernbert").model
    head = ClassifierHead(model.config, 2)
    head.initialise(0, model.head)
    assert torch.equal(head.dense.weight, model.head.dense.weight)
    assert torch.equal(head.norm.weight, model.head.norm.weight)
    assert head.dense.weight is not model.head.dense.weight
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    theirs = transformers.BertModel(config)
    theirs.save_pretrained(tmp_path)
    bert, hidden = read_pretrained(tmp_path)
    pooled = ClassifierHead(bert.config, 2)
    pooled.initialise(0, bert.head, hidden)
    assert torch.equal(pooled.dense.weight, theirs.pooler.dense.weight)


def test_the_same_seed_gives_the_same_head():
    def weights(seed):
        config = build("bert").model.config
        head = ClassifierHead(config, 3)
        torch.manual_seed(seed + 5)
        head.initialise(seed)
        return head.output.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_other_folders_are_refused(tmp_path):
    from seedbed.models.huggingface import write_huggingface

    model = build("bert").model
    write_huggingface(LanguageModel(model.trunk, model.head), tmp_path / "plain")
    with pytest.raises(DataError, match="BertForMaskedLM"):
        read_classifier(tmp_path / "plain")
    write_classifier(build("bert"), tmp_path / "cut")
    path = tmp_path / "cut" / "config.json"
    data = json.loads(path.read_text())
    data["id2label"] = {"0": "a", "1": "b"}
    path.write_text(json.dumps(data))
    with pytest.raises(IncompatibleError, match=r"output\.weight"):
        read_classifier(tmp_path / "cut")
