from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seedbed.batch import Batch
from seedbed.errors import DataError, IncompatibleError
from seedbed.generation import Sampler, generate
from seedbed.models.huggingface import write_huggingface
from seedbed.models.language_model import LanguageModel, build_model
from small_models import TWO_STACKS, VOCAB, logits_of, small_model
from toys import toy_model

PROMPTS = [[3], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [5, 5, 5, 5]]
DECODERS = ["gpt2", "llama", "relative_decoder"]
WRITERS = [*DECODERS, *TWO_STACKS]


def writer(name: str) -> LanguageModel:
    """A small model that writes; a decoder beside an encoder begins with token 1."""
    return small_model(name, special_ids={"decoder_start": 1, "eos": 2})


@pytest.mark.parametrize("name", TWO_STACKS)
def test_an_encoder_decoder_follows_its_own_logits_step_by_step(name: str) -> None:
    model = writer(name)
    for prompt in PROMPTS:
        text = [1]
        for _ in range(12):
            batch = Batch(torch.tensor([prompt]), decoder_input_ids=torch.tensor([text]))
            text.append(int(logits_of(model, batch)[0, -1].argmax()))
        assert generate(model, [prompt], max_new_tokens=12) == [text[1:]]
    bounded = writer(name).config.updated(max_length=10)
    assert len(generate(build_model(bounded, seed=0), [[1] * 10], max_new_tokens=50)[0]) == 9
    with pytest.raises(DataError, match="11 tokens"):
        generate(build_model(bounded, seed=0), [[1] * 11], max_new_tokens=5)
    with pytest.raises(IncompatibleError, match="which token its decoder begins with"):
        generate(small_model(name), [[1]], max_new_tokens=5)


@pytest.mark.parametrize("name", TWO_STACKS)
def test_greedy_writes_what_transformers_writes(name: str, tmp_path: Path) -> None:
    """Prompts of different lengths in one batch; both stop at the end token and at the number of tokens."""
    import transformers

    model = writer(name)
    write_huggingface(model, tmp_path)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in PROMPTS])
    real = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in PROMPTS])
    free = generate(model, PROMPTS, max_new_tokens=20)
    # A token that some text reaches on its way is the end, so that texts end apart.
    stop = free[1][7]
    for end in (2, stop):
        expected = theirs.generate(
            input_ids=ids,
            attention_mask=real,
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=0,
        )
        ours = generate(model, PROMPTS, max_new_tokens=20, stop_id=end)
        for mine, row in zip(ours, expected.tolist(), strict=True):
            assert row[0] == 1
            cut = row.index(end, 1) if end in row[1:] else len(row)
            assert mine == row[1:cut]
    assert {len(line) for line in generate(model, PROMPTS, max_new_tokens=20, stop_id=stop)} != {20}


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_follows_the_model_step_by_step(name: str) -> None:
    model = writer(name)
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(12):
            logits = logits_of(model, Batch(torch.tensor([text]), attention="causal"))
            text.append(int(logits[0, -1].argmax()))
        assert generate(model, [prompt], max_new_tokens=12) == [text[len(prompt) :]]


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=1.0, top_k=20, top_p=0.9, seed=3)])
@pytest.mark.parametrize("name", WRITERS)
def test_cache_changes_nothing(name: str, sampler: Sampler) -> None:
    model = writer(name)
    cached = generate(model, PROMPTS, max_new_tokens=25, sampler=sampler)
    assert cached == generate(model, PROMPTS, max_new_tokens=25, sampler=sampler, use_cache=False)
    assert all(len(line) == 25 for line in cached)


@pytest.mark.parametrize("name", WRITERS)
def test_a_batch_writes_what_each_prompt_writes_alone(name: str) -> None:
    model = writer(name)
    together = generate(model, PROMPTS, max_new_tokens=15)
    assert together == [generate(model, [prompt], max_new_tokens=15)[0] for prompt in PROMPTS]


def test_seeds_decide_the_text() -> None:
    model = small_model("llama")
    texts = [
        generate(model, PROMPTS, max_new_tokens=10, sampler=Sampler(temperature=1.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_token_ends_a_text_and_is_left_out() -> None:
    model = small_model("gpt2")
    free = generate(model, PROMPTS, max_new_tokens=20)
    stop = free[1][4]
    stopped = generate(model, PROMPTS, max_new_tokens=20, stop_id=stop)
    for line, whole in zip(stopped, free, strict=True):
        end = whole.index(stop) if stop in whole else len(whole)
        assert line == whole[:end]


def test_length_is_bounded_by_the_model() -> None:
    model = small_model("gpt2", max_length=10)
    assert [len(line) for line in generate(model, [[1, 2, 3]], max_new_tokens=50)] == [7]
    assert generate(model, [[1, 2]], max_new_tokens=0) == [[]]
    assert generate(model, [], max_new_tokens=5) == []


def test_bfloat16_generation_runs_with_a_cache() -> None:
    model = small_model("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert [len(line) for line in generate(model, PROMPTS, max_new_tokens=5)] == [5] * 4


def test_wrong_requests_are_refused() -> None:
    model = small_model("gpt2", max_length=10)
    for prompts, words in (([[]], "empty"), ([[1] * 10], "10 tokens"), ([[VOCAB]], "vocabulary")):
        with pytest.raises(DataError, match=words):
            generate(model, prompts, max_new_tokens=3)
    with pytest.raises(IncompatibleError, match="left to right"):
        generate(small_model("bert"), [[1]], max_new_tokens=3)
    with pytest.raises(IncompatibleError, match="no language-model head"):
        generate(LanguageModel(model.trunk, None), [[1]], max_new_tokens=3)


def test_a_prompt_read_from_both_sides_is_the_same_with_and_without_a_cache():
    model = toy_model("llama")
    prompts = [[3, 9, 17, 30], [3, 12]]
    cached = generate(model, prompts, max_new_tokens=6, reads_both_sides=True)
    assert cached == generate(model, prompts, max_new_tokens=6, reads_both_sides=True, use_cache=False)
    ids = torch.tensor([[3, 9, 17, 30]])
    order = torch.zeros(1, 4, dtype=torch.int32)
    logits = model.logits(model.trunk(Batch(ids, attention="order", attend_order=order)).last)[0, -1]
    assert cached[0][0] == int(logits.argmax())
    assert cached[0] == generate(model, prompts[:1], max_new_tokens=6, reads_both_sides=True)[0]
