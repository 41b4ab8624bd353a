"""Fine-tuning end to end on a toy task: what it reports, that it repeats and resumes exactly, and what it refuses."""

from __future__ import annotations

import json
import logging
import random
import statistics

import pytest
import torch
import transformers

from seedbed.artifact import open_verified
from seedbed.cli import main
from seedbed.config import commented_yaml, load_config, validate
from seedbed.errors import ConfigError, IncompatibleError
from seedbed.finetune.classify import FinetuneStopped, baselines, finetune
from seedbed.finetune.config import FinetuneConfig
from seedbed.models import MODELS
from seedbed.models.classifier import read_classifier
from seedbed.models.folder import settle_form, write_model
from seedbed.models.language_model import build_model
from seedbed.objectives.base import Vocabulary
from seedbed.tasks import read_task
from seedbed.tokenizer.load import wordpiece_backend
from seedbed.tokenizer.tokenizer import Tokenizer

logging.getLogger("transformers").setLevel(logging.ERROR)

WORDS = ["good", "fine", "great", "bad", "poor", "awful", *(f"word{i}" for i in range(30))]


def model_folder(folder, family="bert"):
    vocab = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(wordpiece_backend(vocab, lowercase=True))
    section = MODELS[family].model_validate(
        {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "ffn_size": 48, "max_length": 24}
    )
    ids = Vocabulary.of(tokenizer).role_ids()
    model = build_model(section.build(vocab_size=tokenizer.vocab_size, special_ids=ids), seed=3)
    write_model(model, folder, form=settle_form(model.config, "auto"))
    causal = model.config.is_causal
    tokenizer.save(
        folder, kind="decoder" if causal else "encoder", max_length=24, token_types=family == "bert"
    )
    return folder


def write_files(folder):
    chance = random.Random(1)
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 96), ("dev", 40), ("test", 40)):
        lines = ["text\tlabel\tscore"]
        for _ in range(count):
            label = chance.choice(["positive", "negative", "negative"])
            words = chance.choices(WORDS[6:], k=chance.randrange(2, 9))
            words.insert(
                chance.randrange(len(words)), chance.choice(WORDS[:3] if label == "positive" else WORDS[3:6])
            )
            lines.append(f"{' '.join(words)}\t{label}\t{len(words)}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("bert"))


def config(files, **changes):
    task = {"name": "mood", **{s: [str(files / f"{s}.tsv")] for s in ("train", "dev", "test")}}
    values = {
        "task": {**task, **changes.pop("task", {})},
        "epochs": 8,
        "batch_rows": 16,
        "max_length": 16,
        "learning_rate": 1e-2,
        "runtime": {"threads": 1, "precision": "float32"},
        **changes,
    }
    return validate(FinetuneConfig, values, place="test")


def digest(run, name="mood"):
    return open_verified(run / f"finetune-{name}").digest


@pytest.fixture(scope="module")
def reference(files, bert, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    return run, finetune(config(files, seeds=2), bert, run)


def test_the_result_says_all(reference, files):
    run, result = reference
    assert json.loads((run / "finetune-mood" / "metrics.json").read_text()) == result
    assert result["labels"] == ["negative", "positive"]
    assert result["examples"] == {"train": 96, "dev": 40, "test": 40}
    for split in ("dev", "test"):
        spread = result["scores"][split]["accuracy"]
        assert spread["mean"] == pytest.approx(statistics.fmean(spread["values"]))
        assert spread["sd"] == pytest.approx(statistics.stdev(spread["values"]))
        assert spread["values"] == [seed[split]["accuracy"] for seed in result["seeds"]]
        truth = [line.split("\t")[1] for line in (files / f"{split}.tsv").read_text().splitlines()[1:]]
        assert result["baselines"][split]["accuracy"] == truth.count("negative") / 40
        assert spread["mean"] > result["baselines"][split]["accuracy"] + 0.1
        lines = [
            json.loads(line)
            for line in (run / "finetune-mood" / "predictions" / f"seed-0-{split}.jsonl")
            .read_text()
            .splitlines()
        ]
        assert [line["label"] for line in lines] == truth
        assert [line["line"] for line in lines] == list(range(2, 42))
        right = sum(line["label"] == line["predicted"] for line in lines)
        assert right / 40 == result["seeds"][0][split]["accuracy"]
    assert [seed["steps"] for seed in result["seeds"]] == [48, 48]
    assert result["own_form_because"] == ""
    assert result["cut"]["train"]["examples"] == 0


def test_the_model_opens_in_transformers_and_answers_the_same(reference, files):
    run, result = reference
    folder = run / "finetune-mood" / "model"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [line.split("\t")[0] for line in (files / "test.tsv").read_text().splitlines()[1:]]
    with torch.no_grad():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    path = run / "finetune-mood" / "predictions" / f"seed-{result['exported_seed']}-test.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [model.config.id2label[i] for i in logits.argmax(dim=1).tolist()] == [
        x["predicted"] for x in lines
    ]
    best = logits.softmax(dim=1).amax(dim=1).tolist()
    assert best == pytest.approx([line["probability"] for line in lines], abs=1e-4)


def test_the_same_again_is_the_same_bit_for_bit(reference, files, bert, tmp_path):
    finetune(config(files, seeds=2), bert, tmp_path)
    assert digest(tmp_path) == digest(reference[0])
    before = (tmp_path / "finetune-mood").resolve()
    finetune(config(files, seeds=2), bert, tmp_path)
    assert (tmp_path / "finetune-mood").resolve() == before, "done is done"


def test_stopping_and_going_on_changes_nothing(reference, files, bert, tmp_path):
    asked = iter([False] * 7 + [True] + [False] * 52 + [True] + [False] * 1000)
    stops = []
    while True:
        try:
            finetune(config(files, seeds=2), bert, tmp_path, is_interrupted=lambda: next(asked))
        except FinetuneStopped as stop:
            stops.append((stop.seed, stop.window))
        else:
            break
    assert stops == [(0, 8), (1, 13)]
    assert digest(tmp_path) == digest(reference[0])


def test_more_seeds_are_added_to_those_there(reference, files, bert, tmp_path):
    first = finetune(config(files, seeds=1), bert, tmp_path)
    result = tmp_path / "finetune" / "mood" / "seed-0" / "result.json"
    written = result.stat().st_mtime_ns
    assert first["scores"]["dev"]["accuracy"]["sd"] is None
    assert finetune(config(files, seeds=2), bert, tmp_path) == reference[1]
    assert result.stat().st_mtime_ns == written
    assert digest(tmp_path) == digest(reference[0])


def test_micro_batches_change_rounding_only(files, bert, tmp_path):
    runs = [
        finetune(config(files, epochs=2, micro_batch_rows=rows), bert, tmp_path / str(rows))
        for rows in (0, 4)
    ]
    losses = [run["scores"]["test"]["loss"]["mean"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    "section",
    [
        {"regularisation": {"r_drop": 1.0}},
        {"regularisation": {"adversarial": {"name": "fgm"}}},
        {"regularisation": {"adversarial": {"name": "smart"}}},
        {"stochastic_depth": 0.5},
    ],
)
def test_regularisation_reaches_the_step_and_resumes(files, bert, tmp_path, section):
    plain = finetune(config(files, epochs=1), bert, tmp_path / "plain")
    whole = finetune(config(files, epochs=1, **section), bert, tmp_path / "whole")
    assert whole["scores"] != plain["scores"]
    asked = iter([False, False, True])
    with pytest.raises(FinetuneStopped):
        finetune(
            config(files, epochs=1, **section),
            bert,
            tmp_path / "cut",
            is_interrupted=lambda: next(asked),
        )
    assert finetune(config(files, epochs=1, **section), bert, tmp_path / "cut") == whole


def test_r_drop_without_dropout_is_refused_before_training(files, bert, tmp_path):
    off = {"dropout": 0.0, "hidden_dropout": 0.0, "regularisation": {"r_drop": 1.0}}
    with pytest.raises(ConfigError, match="dropout"):
        finetune(config(files, **off), bert, tmp_path)


@pytest.mark.parametrize("family", ["modernbert", "llama", "gpt2"])
def test_other_families(files, tmp_path, family):
    result = finetune(config(files, epochs=8), model_folder(tmp_path / "model", family), tmp_path / "run")
    assert result["own_form_because"] == ""
    assert result["scores"]["dev"]["accuracy"]["mean"] > result["baselines"]["dev"]["accuracy"]


def test_a_model_in_our_own_form(files, tmp_path):
    folder = model_folder(tmp_path / "model", "native_encoder")
    assert not (folder / "config.json").exists()
    result = finetune(config(files, epochs=1), folder, tmp_path / "run")
    assert "native_encoder" in result["own_form_because"]
    assert read_classifier(tmp_path / "run" / "finetune-mood" / "model").labels == ("negative", "positive")


def test_a_choice_the_class_cannot_hold_is_saved_in_our_own_form(files, bert, tmp_path):
    result = finetune(config(files, epochs=1, pooling="mean"), bert, tmp_path)
    assert "cannot pool" in result["own_form_because"]
    assert (tmp_path / "finetune-mood" / "model" / "classifier.json").is_file()


def test_regression(files, bert, tmp_path):
    task = {"kind": "regression", "label": "score"}
    result = finetune(config(files, task=task, epochs=10), bert, tmp_path)
    assert result["metric"] == "spearman"
    assert result["baselines"]["dev"] == {"spearman": 0.0, "pearson": 0.0}
    assert result["scores"]["dev"]["spearman"]["mean"] > 0.3


def test_patience_stops_early(files, bert, tmp_path):
    result = finetune(
        config(files, learning_rate=1e-12, patience=2, hidden_dropout=0.0, dropout=0.0), bert, tmp_path
    )
    assert result["seeds"][0]["stopped_early"]
    assert result["seeds"][0]["best_step"] == 3
    assert result["seeds"][0]["steps"] == 9


def test_cut_texts_are_reported_and_part_of_the_examples_may_be_used(files, bert, tmp_path):
    result = finetune(config(files, epochs=1, max_length=6, max_train_examples=20), bert, tmp_path)
    assert result["examples"]["train"] == 20
    cut = result["cut"]["train"]
    assert 0 < cut["examples"] <= 20
    assert 0 < cut["tokens"] < cut["of_tokens"]


def test_other_settings_in_the_same_folder_are_refused(reference, files, bert):
    run, _ = reference
    with pytest.raises(IncompatibleError, match=r"epochs 8.0 -> 1.0"):
        finetune(config(files, seeds=2, epochs=1), bert, run)


def test_an_unfinished_run_of_other_settings_is_refused(files, bert, tmp_path):
    with pytest.raises(FinetuneStopped):
        finetune(config(files), bert, tmp_path, is_interrupted=lambda: True)
    with pytest.raises(IncompatibleError) as refused:
        finetune(config(files, epochs=1), bert, tmp_path)
    assert "--replace" in (refused.value.hint or "")
    assert finetune(config(files, epochs=1), bert, tmp_path, replace=True)["seeds"][0]["steps"] == 6


def test_the_baseline_is_the_training_majority(files):
    task = read_task(config(files, task={"dev": [str(files / "train.tsv")]}).task)
    counts = task.label_counts("train")
    assert baselines(task, "dev") == {"accuracy": max(counts.values()) / sum(counts.values())}


def test_the_optimizer_has_berts_recipe_unless_told_otherwise():
    plain = FinetuneConfig()
    assert (plain.optim.weight_decay, plain.optim.beta2, plain.optim.schedule.name) == (0.01, 0.999, "linear")
    changed = validate(FinetuneConfig, {"optim": {"weight_decay": 0.0}}, place="test").optim
    assert changed == plain.optim.updated(weight_decay=0.0), (
        "one key does not bring back the others' defaults"
    )
    other = validate(FinetuneConfig, {"optim": {"schedule": {"name": "cosine"}}}, place="test")
    assert other.optim.schedule.warmup_fraction == 0.02
    assert plain.optimizer(256).learning_rate == pytest.approx(4e-4)
    assert 2e-5 < plain.optimizer(768).learning_rate < 5e-5
    with pytest.raises(ConfigError, match="set learning_rate, not optim"):
        validate(FinetuneConfig, {"optim": {"learning_rate": 1e-5}}, place="test")


def test_the_configuration_reads_back(tmp_path):
    config = validate(FinetuneConfig, {"optim": {"name": "sgd"}, "learning_rate": 0.1}, place="test")
    (tmp_path / "f.yaml").write_text(commented_yaml(config))
    assert load_config(FinetuneConfig, tmp_path / "f.yaml") == config


# --- through the command line ---------------------------------------------------------------------------------------


def words(files, bert, tmp_path):
    task = [f"task.{s}=[{files / s}.tsv]" for s in ("train", "dev")]
    rest = ["task.name=mood", "epochs=1", "batch_rows=16", "max_length=16", "runtime.threads=1"]
    return ["finetune", str(bert), *task, *rest, "--out", str(tmp_path / "run")]


def test_the_command_prints_what_it_made(files, bert, tmp_path, capsys):
    assert main([*words(files, bert, tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(tmp_path / "run" / "finetune-mood")
    assert set(result["scores"]) == {"dev"}
    assert main(words(files, bert, tmp_path)) == 0
    shown = capsys.readouterr()
    assert "opens in transformers" in shown.out
    assert "majority" in shown.err


def test_a_key_may_belong_to_the_kind_another_key_names(bert, capsys):
    keys = ["regularisation.adversarial.name=fgm", "regularisation.adversarial.epsilon=0.25"]
    assert main(["finetune", str(bert), "--task", "sst2", "--print", *keys]) == 0
    assert "epsilon: 0.25" in capsys.readouterr().out


def test_mistakes_are_told_with_hints(files, bert, tmp_path, capsys):
    assert main(["finetune", str(bert), "--task", "sst", "--out", "x"]) == 2
    assert "did you mean sst2?" in capsys.readouterr().err
    assert main(["finetune", str(bert), "--task", "sst2", "epoch=2"]) == 2
    assert "did you mean epochs?" in capsys.readouterr().err
    assert main(["finetune", str(bert), "--task", "sst2", "--data", str(tmp_path)]) == 2
    assert "belongs to no run" in capsys.readouterr().err
    assert (
        main(["finetune", str(bert), "--task", "sst2", "--data", str(tmp_path), "--out", str(tmp_path)]) == 3
    )
    assert "train.tsv.gz does not exist" in capsys.readouterr().err


def test_the_configuration_prints_with_its_keys_explained(bert, capsys):
    assert (
        main(["finetune", str(bert), "--task", "mrpc", "--data", "d", "epochs=2", "task.text=x", "--print"])
        == 0
    )
    out = capsys.readouterr().out
    assert "epochs: 2.0" in out
    assert "train: [d/mrpc/train.tsv]" in out
    assert "text: x" in out
    assert "text_pair: '#2 String'" in out


def test_the_help_lists_the_known_tasks():
    from seedbed.commands.finetune import EXAMPLES
    from seedbed.tasks import TASKS

    assert EXAMPLES.partition("known tasks: ")[2].partition(".")[0].split() == list(TASKS)
