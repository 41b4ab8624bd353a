"""One store serves every strategy: built once, each objective trains from it, resumes exactly, and exports a model."""

from __future__ import annotations

import json

import pytest

from seedbed.api import load
from seedbed.artifact import read_sealed_json, write_sealed_json
from seedbed.cli import main
from seedbed.commands import pretraining
from seedbed.commands.console import Console
from seedbed.commands.stages import prepare
from seedbed.config import validate
from seedbed.errors import DataError, IncompatibleError
from seedbed.objectives import OBJECTIVES
from seedbed.objectives.combination import COMBINATIONS
from seedbed.recipe import Recipe
from tiny_runs import STEPS, decided, strategy_section, train, values
from tiny_runs import write_sentences as write_corpus

NAMES = list({**OBJECTIVES, **COMBINATIONS})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    recipe = validate(Recipe, values(corpus, tmp_path_factory.mktemp("store") / "run"), place="test")
    return prepare(recipe, Console(as_json=True))


@pytest.mark.parametrize("name", ["classification", "supervised_generation"])
def test_a_run_does_not_go_on_with_changed_files(name, prepared, corpus, tmp_path):
    objective, model = strategy_section(name, tmp_path, prepared.tokenizer)
    data = values(corpus, tmp_path / "run", objective=objective, model=model)
    with pytest.raises(pretraining.Interrupted):
        train(prepared, data, stop_after=2)
    path = tmp_path / "task.tsv"
    before = path.read_text()
    path.write_text(before.replace("cat\n", "dog\n", 1))
    with pytest.raises(IncompatibleError, match=r"task\.tsv changed since"):
        train(prepared, data)
    path.unlink()
    with pytest.raises(DataError, match=r"task\.tsv does not exist"):
        train(prepared, data)
    path.write_text(before)
    assert train(prepared, data)["steps"] == STEPS


def test_a_run_does_not_go_on_with_other_tokens(prepared, corpus, tmp_path):
    data = values(corpus, tmp_path / "run")
    with pytest.raises(pretraining.Interrupted):
        train(prepared, data, stop_after=2)
    place = tmp_path / "run" / "pretrain" / "resolved.json"
    said = json.dumps(read_sealed_json(place))
    assert prepared.tokens.digest in said
    write_sealed_json(place, json.loads(said.replace(prepared.tokens.digest, "0" * 64)))
    with pytest.raises(IncompatibleError, match="tokens changed since"):
        train(prepared, data)


def test_a_loss_that_changes_its_meaning_has_no_best_step(prepared, corpus, tmp_path):
    """A generator that improves makes detection harder: the lowest loss is that of a bad one."""

    def data(name, folder=None, **training):
        objective, model = strategy_section(name, tmp_path, prepared.tokenizer)
        found = values(corpus, tmp_path / (folder or name), objective=objective, model=model)
        found["training"] |= {"keep_best": True, **training}
        return found

    for name, has_best in (("masked_lm", True), ("replaced_token", False)):
        train(prepared, data(name))
        assert bool(list((tmp_path / name / "pretrain" / "checkpoints").glob("best-*"))) == has_best
    with pytest.raises(IncompatibleError, match="rises while it learns"):
        train(prepared, data("replaced_token", "patient", early_stopping_patience=2))


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_from_the_one_store_resumes_exactly_and_exports(name, prepared, corpus, tmp_path, capsys):
    objective, model = strategy_section(name, tmp_path, prepared.tokenizer)
    data = values(corpus, tmp_path / "whole", objective=objective, model=model)
    summary = train(prepared, data)
    assert summary["steps"] == STEPS
    assert summary["valid_loss"] == summary["valid_loss"]  # a number
    verb = summary["next"].split()[1]
    assert verb == ("generate" if name in WRITES and name not in FILLS_ONLY else NEXT.get(name, verb))
    lines = (tmp_path / "whole" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["loss"] > 0 for line in lines)

    data["run"] = str(tmp_path / "cut")
    with pytest.raises(pretraining.Interrupted):
        train(prepared, data, stop_after=2)
    train(prepared, data)
    assert decided(tmp_path / "cut") == decided(tmp_path / "whole")

    loaded = load(tmp_path / "whole")
    assert loaded.model.config.stack in {**OBJECTIVES, **COMBINATIONS}[name].fits
    assert set(loaded.objectives) == ({name} if name in OBJECTIVES else set(PARTS[name]))
    use(loaded, name)

    if loaded.model.head is not None:
        for stage in ("corpus", "tokenizer", "tokens"):
            (tmp_path / "whole" / stage).symlink_to((prepared.run / stage).resolve())
        capsys.readouterr()
        assert (
            main(
                ["evaluate", str(tmp_path / "whole"), "--json", "--pll-tokens", "8", "--precision", "float32"]
            )
            == 0
        )
        told = json.loads(capsys.readouterr().out)
        assert told["stored_targets"]["scores"]["loss"] == pytest.approx(
            summary["valid_loss"],
            rel=3e-3,  # trained in bfloat16 where the processor has it
        )
        assert told["scores"]["loss"] > 0
        assert main(["evaluate", str(tmp_path / "whole"), "--pll-tokens", "0", "--precision", "float32"]) == 0


PARTS = {
    "hybrid": ["causal_lm", "masked_next_token"],
    "mixture": ["masked_lm", "masked_diffusion"],
    "ul2": ["span_corruption"],
}
WRITES = (
    "causal_lm",
    "prefix_lm",
    "hybrid",
    "fill_in_middle",
    "masked_diffusion",
    "mixture",
    "ul2",
    "denoising",
)
FILLS_ONLY = ("masked_diffusion", "mixture")
"""What can write as well, but is shown by filling masks."""
NEXT = {
    "masked_lm": "fill-mask",
    "masked_diffusion": "fill-mask",
    "mixture": "fill-mask",
    "replaced_token": "finetune",
    "classification": "finetune",
    "contrastive": "similarity",
}
FILLS = ("masked_lm", "masked_diffusion", "masked_next_token", "hybrid", "mixture")


def use(model, name):
    """A trained model answers in the ways its objective promises, and refuses the others with a hint."""
    if name in WRITES:
        first, again = (model.generate("The cat", max_new_tokens=5, seed=3) for _ in range(2))
        assert first == again
    if name in FILLS:
        ((best, *_),) = model.fill_mask("The [MASK] sings.")
        assert 0 < best.probability <= 1
    if name == "fill_in_middle":
        assert isinstance(model.fill_in("The cat", "the river.", max_new_tokens=5), str)
    else:
        with pytest.raises(IncompatibleError, match="fill in the middle"):
            model.fill_in("The cat", "the river.")


WRONG = {
    "replaced tokens on a decoder": ("replaced_token", "llama", "trains an encoder"),
    "span corruption on an encoder": ("span_corruption", "modernbert", "trains an encoder-decoder"),
    "prefixes on an encoder": ("prefix_lm", "bert", "trains a decoder"),
    "permutations without a query stream": ("permutation_lm", "bert", "query stream"),
    "sentence order on a decoder": ("sentence_order", "gpt2", "trains an encoder"),
    "the hybrid on an encoder": ("hybrid", "modernbert", "trains a decoder"),
    "masks on an encoder-decoder": ("masked_lm", "t5", "trains an encoder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_combination_is_refused_before_the_first_step(case, prepared, corpus, tmp_path):
    name, family, message = WRONG[case]
    data = values(corpus, tmp_path / "run", objective={"name": name}, model={"name": family})
    with pytest.raises(IncompatibleError, match=message) as refused:
        train(prepared, data)
    assert refused.value.hint
    assert not (tmp_path / "run" / "pretrain").exists()


def test_pairs_of_a_text_without_sentences_are_refused(tmp_path):
    """A text where every document is one sentence has nothing to put in order."""
    path = tmp_path / "words.txt"
    path.write_text("\n\n".join(f"the cat number {i} sings" for i in range(200)) + "\n", encoding="utf-8")
    data = values(path, tmp_path / "run", objective={"name": "sentence_order"})
    recipe = validate(Recipe, data, place="test")
    with pytest.raises((IncompatibleError, DataError)) as refused:
        pretraining.pretrain(recipe, prepare(recipe, Console(as_json=True)), Console(as_json=True))
    assert refused.value.hint
