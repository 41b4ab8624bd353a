"""Score a model on texts it has not seen: a user's own files, documents as strings.

Causal models: loss, perplexity and bits per byte over whole documents. Masked models: loss at fixed targets (15 %,
80/10/10), and the pseudo-log-likelihood per byte of a sample. What each figure counts is in docs/evaluation.md.
Scores at a run's own stored targets come from `fixed_targets.py`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from seedbed.batch import Batch, Targets
from seedbed.data.memory import TextTokens
from seedbed.data.views import TokenStream, WindowView
from seedbed.errors import DataError
from seedbed.evaluation.baselines import corpus_baselines
from seedbed.evaluation.intrinsic import build_evaluation_set, score
from seedbed.evaluation.slices import TokenLosses
from seedbed.objectives.base import Objective
from seedbed.progress import Progress, silent
from seedbed.runtime import autocast
from seedbed.tokenizer.tokenizer import Tokenizer
from seedbed.tokenizer.train import sample_lines

__all__ = ["PseudoLikelihood", "choose_documents", "evaluate_texts", "pseudo_log_likelihood"]

_ROWS = 64
_CANDIDATE_BYTES_PER_TOKEN = 16  # lines looked at for the sample; no usual text has more bytes a token


@dataclass(frozen=True, slots=True)
class PseudoLikelihood:
    """Hold the pseudo-log-likelihood of a sample of lines.

    Attributes:
        bits_per_byte: -sum(log2 p) over the UTF-8 bytes of what was scored.
        nats_per_token: -sum(ln p) over its tokens.
        perplexity: exp of that.
        lines: lines scored, in whole or, where they exceed a row or the budget, in part.
        tokens: tokens scored, each hidden once.
        bytes: UTF-8 bytes these tokens stand for.
        of_lines: lines there were to choose from.
        of_bytes: their bytes.
    """

    bits_per_byte: float
    nats_per_token: float
    perplexity: float
    lines: int
    tokens: int
    bytes: int
    of_lines: int
    of_bytes: int


def evaluate_texts(
    objective: Objective,
    modules: Mapping[str, nn.Module],
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    train: TokenStream | None = None,
    max_bytes: int | None = 4 << 20,
    max_pll_tokens: int = 2000,
    rows_per_batch: int | None = None,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    by_token: TokenLosses | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Score a model on documents.

    Rows are windows of the documents strung together, as in training, without overlap: a token sees what its window
    holds before it (and, masked, behind it). So a figure depends on the row length of the objective, and is a
    little worse than one with sliding windows.

    Args:
        objective: says how rows are made and what is predicted; its `for_evaluation` variant is used.
        modules: "trunk" and "head".
        texts: documents, read once.
        tokenizer: of the model.
        train: the training split, for baselines; None leaves them out.
        max_bytes: text to score at most, in whole documents chosen by their hashes; None scores all.
        max_pll_tokens: tokens of the pseudo-log-likelihood's sample, each of which costs one row; 0 leaves it out.
        rows_per_batch: rows of one forward pass; None chooses. Changes scores by rounding only.
        device: where the modules are.
        compute_dtype: number type of the matrix products.
        by_token: given the losses of `scores`, for slices.
        progress: told the tokens of the pseudo-log-likelihood.

    Returns:
        JSON values. `text`: documents, bytes, tokens, unknown_rate of what was scored, and of_documents, of_bytes given.
        `scores`: see `intrinsic.score`, and for causal objectives `bits_per_byte`. `baselines`: uniform, unigram, bigram
        in nats a target, or None. `pseudo_log_likelihood`: see `PseudoLikelihood`, or None for causal objectives.

    Raises:
        DataError: the texts hold no tokens.
    """
    documents, of_documents, of_bytes = choose_documents(texts, max_bytes=max_bytes)
    tokens = TextTokens(documents, tokenizer)
    if tokens.num_tokens == 0:
        raise DataError("there is no text to evaluate on.", hint="give files with text in them")
    fixed = objective.for_evaluation()
    view = WindowView(tokens, length=fixed.raw_row_length)
    chosen = build_evaluation_set(fixed, view, max_rows=view.num_rows, rows_per_batch=rows_per_batch)
    scores = score(fixed, modules, chosen, device=device, compute_dtype=compute_dtype, by_token=by_token)
    is_causal = chosen.batches[0][0].attention == "causal"
    pseudo: PseudoLikelihood | None = None
    if is_causal:
        assert scores["targets"] == tokens.num_tokens, "bits per byte need every token predicted once"
        scores["bits_per_byte"] = scores["loss"] * scores["targets"] / math.log(2) / tokens.num_bytes
    elif max_pll_tokens:
        pseudo = pseudo_log_likelihood(
            fixed,
            modules,
            documents,
            tokenizer,
            max_tokens=max_pll_tokens,
            rows_per_batch=rows_per_batch or _ROWS,
            device=device,
            compute_dtype=compute_dtype,
            progress=progress,
        )
    baselines = None if train is None else corpus_baselines(chosen, train, fixed.vocabulary).losses()
    return {
        "text": {
            "documents": tokens.num_documents,
            "bytes": tokens.num_bytes,
            "tokens": tokens.num_tokens,
            "unknown_rate": tokens.num_unknown / tokens.num_tokens,
            "of_documents": of_documents,
            "of_bytes": of_bytes,
        },
        "scores": scores,
        "baselines": baselines,
        "pseudo_log_likelihood": None if pseudo is None else asdict(pseudo),
    }


def choose_documents(texts: Iterable[str], *, max_bytes: int | None) -> tuple[list[str], int, int]:
    """Keep the documents with the smallest hashes that fit a budget, in their order.

    The choice depends on the set of documents, not on their order. One document is kept whatever its size. Memory is
    bounded by the budget and the largest document.

    Returns:
        The documents kept; the number and the UTF-8 bytes of all that were given.
    """
    heap: list[tuple[int, int, str, int]] = []
    held = count = total = 0
    ceiling = 1 << 64  # hashes from here on are out, also for a document that would still fit
    for text in texts:
        data = text.encode("utf-8")
        count, total = count + 1, total + len(data)
        if (key := xxhash.xxh3_64_intdigest(data)) >= ceiling:
            continue
        heapq.heappush(heap, (-key, count, text, len(data)))
        held += len(data)
        while max_bytes is not None and held > max_bytes and len(heap) > 1:
            largest, _, _, size = heapq.heappop(heap)
            held, ceiling = held - size, -largest
    return [text for _, text in sorted((index, text) for _, index, text, _ in heap)], count, total


def pseudo_log_likelihood(
    objective: Objective,
    modules: Mapping[str, nn.Module],
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_tokens: int = 2000,
    rows_per_batch: int = _ROWS,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> PseudoLikelihood:
    """Hide each token of a sample in turn and add up its log-probability.

    Lines of text are taken in the order of their hashes until the budget is used up. A line stands alone between the
    special tokens a row has; one longer than a row is cut, and its parts are scored apart.

    Source: Salazar et al., arXiv 1910.14659, equation 1. Differs: a sample, given per byte, so that tokenizers can be compared.
    BIAS: the other pieces of a word stay visible, which flatters tokenizers with many pieces a word (Kauf and Ivanova,
    arXiv 2305.10588).

    Raises:
        DataError: the texts hold no tokens.
    """
    sample = sample_lines(texts, budget_bytes=max_tokens * _CANDIDATE_BYTES_PER_TOKEN)
    tokens = TextTokens(sample.lines, tokenizer)
    windows = _windows(tokens, length=objective.raw_row_length - 1, max_tokens=max_tokens)
    if not windows:
        raise DataError("there is no text to score.", hint="give files with text in them")
    num_tokens = sum(stop - start for start, stop, _ in windows)
    nats = 0.0
    done = 0
    for ids, at, values in _hidden_rows(windows, tokens, objective, rows_per_batch):
        targets = {objective.terms[0]: Targets(at=at, values=values).to(device)}
        with (
            torch.no_grad(),
            autocast(torch.device(device).type, compute_dtype),
        ):
            terms = objective.losses(modules, Batch(ids).to(device), targets, with_details=True)
        per_target = terms[objective.terms[0]].per_target
        assert per_target is not None
        nats += float(per_target.double().sum())
        done += len(values)
        progress("pseudo-log-likelihood", done=done, total=num_tokens, unit="tokens")
    sizes = tokens.byte_counts()
    num_bytes = int(sum(sizes[start:stop].sum() for start, stop, _ in windows))
    return PseudoLikelihood(
        bits_per_byte=nats / math.log(2) / num_bytes,
        nats_per_token=nats / num_tokens,
        perplexity=math.exp(min(nats / num_tokens, 700.0)),
        lines=len({line for _, _, line in windows}),
        tokens=num_tokens,
        bytes=num_bytes,
        of_lines=sample.total_lines,
        of_bytes=sample.total_bytes,
    )


def _windows(tokens: TextTokens, *, length: int, max_tokens: int) -> list[tuple[int, int, int]]:
    """Return (first token, stop, line) of the windows to score, in order, `max_tokens` tokens at most."""
    starts = tokens.document_starts().tolist()
    stops = [*starts[1:], tokens.num_tokens]
    windows: list[tuple[int, int, int]] = []
    left = max_tokens
    for line, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        for at in range(start, stop - 1, length):  # the last token is the separator
            end = min(at + length, stop - 1)
            if end - at > left and windows:  # cutting it would take context from its last tokens
                return windows
            windows.append((at, min(end, at + left), line))
            left -= windows[-1][1] - at
    return windows


def _hidden_rows(
    windows: Sequence[tuple[int, int, int]], tokens: TextTokens, objective: Objective, rows_per_batch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches of rows with one token hidden each: ids (B, T), flat places (B,), true tokens (B,).

    Windows of one length share batches, so that nothing is padded.
    """
    vocabulary = objective.vocabulary
    prefix = [] if vocabulary.cls_id is None else [vocabulary.cls_id]
    by_length: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for start, stop, _ in windows:
        content, _ = tokens.slice(start, stop)
        row = torch.tensor([*prefix, *content.tolist(), vocabulary.separator_id])
        place = torch.arange(len(content)) + len(prefix)
        rows = row.repeat(len(content), 1)
        rows[torch.arange(len(content)), place] = vocabulary.mask_id or 0
        by_length.setdefault(len(row), []).append((rows, place, row[place]))
    for length, group in sorted(by_length.items()):
        ids, places, values = (torch.cat(column) for column in zip(*group, strict=True))
        for begin in range(0, len(ids), rows_per_batch):
            part = slice(begin, begin + rows_per_batch)
            at = torch.arange(len(places[part])) * length + places[part]
            yield ids[part], at, values[part]
