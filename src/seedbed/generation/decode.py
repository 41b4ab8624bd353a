"""Continue prompts, or answer them with an encoder-decoder, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from seedbed.batch import Batch
from seedbed.errors import DataError, IncompatibleError
from seedbed.generation.samplers import Sampler
from seedbed.models.cache import Cache
from seedbed.models.language_model import LanguageModel

__all__ = ["generate"]


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    stop_id: int | None = None,
    use_cache: bool = True,
    reads_both_sides: bool = False,
) -> list[list[int]]:
    """Continue prompts with a causal model, or write what an encoder-decoder makes of them.

    Prompts of different lengths are padded, outside attention and positions, so each text is what it would be alone (in
    float32 up to rounding). An encoder-decoder reads its prompts once, and begins to write with its `decoder_start` token.

    Args:
        model: a decoder or an encoder-decoder, with a head.
        prompts: ids, at least one each. Text i draws by (seed, i, step).
        max_new_tokens: new tokens per prompt; fewer when the longest text reaches the model's `max_length`.
        sampler: None is greedy.
        stop_id: ends a text; it is not part of the result.
        reads_both_sides: prompt tokens see each other in both directions (a decoder trained as a prefix language model).
        use_cache: False reads the whole text again for every token: slow, and the check on the cache.

    Returns:
        The new ids of each prompt.

    Raises:
        IncompatibleError: the model is an encoder, has no head, or does not say what its decoder begins with.
        DataError: a prompt is empty, too long, or holds an id outside the vocabulary.
    """
    config = model.config
    if config.stack == "encoder":
        raise IncompatibleError(
            f"a model of family {config.family!r} does not write from left to right.", hint="use fill_mask"
        )
    has_encoder = config.stack == "encoder_decoder"
    longest_prompt = config.max_length if has_encoder else config.max_length - 1
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {index} is empty.", hint="start with at least one token, such as bos")
        if len(prompt) > longest_prompt:
            raise DataError(
                f"prompt {index} has {len(prompt)} tokens, the model reads {config.max_length}.",
                hint="shorten it",
            )
        if not all(0 <= i < config.vocab_size for i in prompt):
            raise DataError(f"prompt {index} holds an id outside the vocabulary of {config.vocab_size}.")
    if not prompts:
        return []

    sampler = sampler or Sampler()
    device = model.trunk.embedding.token.weight.device
    source: Batch | None = None
    if has_encoder:
        source = _right_padded(prompts, device)
        ids, segments, positions = _left_padded([[_start_id(model)]] * len(prompts), device)
    else:
        ids, segments, positions = _left_padded(prompts, device)
    longest = ids.shape[1]
    room = min(max_new_tokens, config.max_length - longest)
    cache = None
    if use_cache:
        cache = Cache.allocate(
            config,
            batch_size=len(prompts),
            max_length=longest + room,
            device=device,
            dtype=_compute_dtype(model),
        )
    rows = torch.arange(len(prompts), device=device)
    is_done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    written: list[Tensor] = []
    for step in range(room):
        # With a cache only the newest column is read, after the prompt once.
        new = slice(-1, None) if cache is not None and step > 0 else slice(None)
        if source is not None:
            # Texts begin together: the decoder's tokens need neither padding nor positions.
            batch = replace(source, decoder_input_ids=ids[:, new])
        else:
            batch = Batch(
                input_ids=ids[:, new],
                segment_ids=segments[:, new],
                position_ids=positions[:, new],
                attention="order" if reads_both_sides else "causal",
                attend_order=_order_behind(ids.shape[1], longest, len(prompts), device)[:, new]
                if reads_both_sides
                else None,
                has_padding=True,
            )
        last = model.trunk(batch, cache=cache).last[:, -1]
        chosen = sampler(model.logits(last), rows=rows, step=step)
        written.append(chosen)
        if stop_id is not None:
            is_done |= chosen == stop_id
            if bool(is_done.all()):
                break
        ids = torch.cat([ids, chosen[:, None]], 1)
        segments = torch.cat([segments, torch.ones_like(segments[:, :1])], 1)
        positions = torch.cat([positions, positions[:, -1:] + 1], 1)
    columns = torch.stack(written, 1).tolist() if written else [[] for _ in prompts]
    return [line[: line.index(stop_id)] if stop_id in line else line for line in columns]


def _order_behind(length: int, prompt: int, count: int, device: torch.device) -> Tensor:
    """Return the order (B, length) int32 in which tokens see each other: the prompt's at once, then one by one."""
    order = (torch.arange(length, device=device) - (prompt - 1)).clamp_(min=0).to(torch.int32)
    return order.expand(count, -1)


def _start_id(model: LanguageModel) -> int:
    """Return the token the decoder of an encoder-decoder begins with."""
    found = model.config.special_ids.get("decoder_start")
    if found is None:
        raise IncompatibleError(
            f"this model of family {model.config.family!r} does not say which token its decoder begins with.",
            hint="put decoder_start_token_id into its config.json",
        )
    return found


def _right_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> Batch:
    """Return what an encoder reads."""
    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.int64)
    segments = torch.zeros((len(prompts), longest), dtype=torch.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        segments[row, : len(prompt)] = 1
    has_padding = bool((segments == 0).any())
    return Batch(ids.to(device), segment_ids=segments.to(device), has_padding=has_padding)


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, segments (0: padding) and positions, (B, T) each."""
    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.int64)
    segments = torch.zeros((len(prompts), longest), dtype=torch.int32)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        segments[row, longest - len(prompt) :] = 1
    positions = (segments.cumsum(1) - 1).clamp_(min=0)
    return ids.to(device), segments.to(device), positions.to(device)


def _compute_dtype(model: LanguageModel) -> torch.dtype:
    """Return the number type keys and values have here: autocast's, else the weights'."""
    weight = model.trunk.embedding.token.weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
