"""Judge a model by pairs of sentences that differ in one thing, one acceptable and one not.

It gets a point where it finds the acceptable one likelier.

Source: BLiMP, Warstadt et al., arXiv 1912.00582 (layout and score; SLING, arXiv 2210.11689, is its like for Chinese).
Likelihood of masked models: Salazar et al., arXiv 1910.14659, equation 1; with whole words hidden to the right: Kauf and
Ivanova, arXiv 2305.10588 ("PLL-word-l2r"). A model of replaced tokens (ELECTRA) has no likelihood; it is asked how sure it is
that each token of a sentence is the original one. An encoder-decoder is asked for words left out (`infilling.py`).
Differs from BLiMP: a tie counts half, so that a model that tells nothing apart scores 50 %. A sum over tokens favours the
shorter sentence; where lengths differ, the mean over tokens (the perplexity, by which SLING goes) and the pairs of one length
alone are told beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import xxhash
from torch import Tensor

from seedbed.batch import Batch
from seedbed.corpus.lines import read_lines
from seedbed.corpus.rejects import Reject
from seedbed.corpus.sources import Source, WrongEndingError, open_source
from seedbed.data.marks import WORD, mark_tokens
from seedbed.errors import DataError, IncompatibleError
from seedbed.evaluation.infilling import Gap, Infilling, gap_log_probabilities, infilling_vocabulary
from seedbed.models.language_model import LanguageModel
from seedbed.objectives.base import Vocabulary
from seedbed.progress import Progress, silent
from seedbed.runtime import autocast
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = [
    "LENGTHS",
    "METHODS",
    "Method",
    "MinimalPair",
    "PairScores",
    "choose_pairs",
    "read_pairs",
    "report",
    "score_pairs",
]

Method = Literal["likelihood", "pll", "pll_word_l2r", "detection", "infill_span", "infill_text"]
METHODS: tuple[Method, ...] = get_args(Method)
LENGTHS = {0: "one length", 1: "acceptable longer", -1: "acceptable shorter"}
"""What pairs are called by which of their sentences has more tokens (`PairScores.longer`)."""

_GAPS: tuple[Infilling, ...] = get_args(Infilling)
_WHOLE = tuple(method for method in METHODS if method not in _GAPS)
_MAX_LINE_BYTES = 1 << 20
_BATCH_TOKENS = 8192
_MAX_LOGITS = 1 << 26


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """One pair: the acceptable sentence, the other one, what it is about, and where it stands."""

    good: str
    bad: str
    field: str
    phenomenon: str
    uid: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class PairScores:
    """Hold the log-probabilities of pairs.

    Attributes:
        pairs: those scored.
        good, bad: (n,) float64 sums of ln p over the tokens of each sentence; for "detection", p that the token is original.
        is_same: (n,) bool; the tokenizer makes both sentences the same tokens, so that nothing can tell them apart.
        lengths: (n, 2) int64 tokens of the acceptable sentence and of the other.
        left_out: pairs that were not scored, as (file, line, reason).
        method: how sentences were scored.
    """

    pairs: Sequence[MinimalPair]
    good: np.ndarray[Any, np.dtype[np.float64]]
    bad: np.ndarray[Any, np.dtype[np.float64]]
    is_same: np.ndarray[Any, np.dtype[np.bool_]]
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    left_out: Sequence[tuple[str, int, str]]
    method: Method

    def points(self, *, per_token: bool = False) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return 1 for each pair whose acceptable sentence is likelier, 0.5 for ties, 0 for the others.

        Args:
            per_token: by the mean over a sentence's tokens instead of the sum.
        """
        good, bad = (
            (self.good, self.bad) if not per_token else np.stack([self.good, self.bad]) / self.lengths.T
        )
        return np.where((good == bad) | self.is_same, 0.5, (good > bad).astype(np.float64))

    def longer(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return 1 for each pair whose acceptable sentence has more tokens than the other, 0 for as many, -1 for fewer."""
        sign: np.ndarray[Any, np.dtype[np.int64]] = np.sign(self.lengths[:, 0] - self.lengths[:, 1])
        return sign


def read_pairs(paths: Sequence[Path]) -> tuple[list[MinimalPair], list[tuple[str, int, str]]]:
    """Read JSON lines with `sentence_good` and `sentence_bad`; also .gz and .zst.

    `UID` (or the file's name), `phenomenon` (or `linguistics_term`, as BLiMP writes it) and `field` group the pairs.

    Returns:
        The pairs, and the lines left out as (file, line, reason): no JSON, a sentence missing, or both the same.

    Raises:
        DataError: a file cannot be read, or there is no pair at all.
    """
    pairs: list[MinimalPair] = []
    left_out: list[tuple[str, int, str]] = []

    def report(reject: Reject) -> None:
        if not reject.line or reject.kind == "damaged_file":
            raise DataError(f"{reject}.", hint="restore the file")
        left_out.append((reject.file, reject.line, reject.reason))

    for path in paths:
        try:
            with open_source(Source(str(path), path, "jsonl")) as (stream, raw):
                for number, line in read_lines(
                    str(path), stream, raw, _MAX_LINE_BYTES, report, lambda done: None
                ):
                    if line.strip():
                        pair = _pair(line, path, number)
                        if isinstance(pair, str):
                            left_out.append((str(path), number, pair))
                        else:
                            pairs.append(pair)
        except (OSError, WrongEndingError) as error:
            raise DataError(f"{path} cannot be read: {error}.", hint="check the path") from error
    if not pairs:
        first = f" The first of {len(left_out)}: line {left_out[0][1]}, {left_out[0][2]}." if left_out else ""
        raise DataError(
            f"the files hold no pair.{first}",
            hint="one JSON object a line, with sentence_good and sentence_bad",
        )
    return pairs, left_out


def choose_pairs(pairs: Sequence[MinimalPair], count: int) -> list[MinimalPair]:
    """Return at most `count` pairs of each paradigm (UID), those with the smallest hashes, in their order; 0: all."""
    if not count:
        return list(pairs)
    by_uid: dict[str, list[tuple[int, int]]] = {}
    for index, pair in enumerate(pairs):
        key = xxhash.xxh3_64_intdigest(f"{pair.good}\0{pair.bad}".encode())
        by_uid.setdefault(pair.uid, []).append((key, index))
    kept = {index for entries in by_uid.values() for _, index in sorted(entries)[:count]}
    return [pair for index, pair in enumerate(pairs) if index in kept]


def score_pairs(
    model: LanguageModel,
    tokenizer: Tokenizer,
    pairs: Sequence[MinimalPair],
    *,
    method: Method | None = None,
    is_shifted: bool = False,
    batch_tokens: int = _BATCH_TOKENS,
    compute_dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> PairScores:
    """Score both sentences of every pair.

    A causal model reads the separator, then the sentence, and its tokens' log-probabilities are added up. A masked model reads
    `[CLS] sentence [SEP]` once for each token, with that token hidden ("pll"), or with it and the rest of its word hidden
    ("pll_word_l2r"). A model of two streams (XLNet) predicts each token from all others. A decoder trained with masked
    next-token prediction (GPT-BERT's hybrid) can be asked either way: it names a hidden token at the place before it, reading
    both sides. An encoder-decoder reads the sentence once for each word, with that word left out, and is asked for its tokens.
    Scores do not depend on what is batched together beyond rounding.

    Args:
        model: with its language-model head, on its device.
        tokenizer: of the model.
        pairs: what to score; pairs with a sentence longer than the model reads are left out and listed.
        method: None: "likelihood" for causal models, "detection" for those that only tell replaced tokens, "infill_span" for
            encoder-decoders whose vocabulary has sentinels and "infill_text" for others, else "pll".
        is_shifted: the model names hidden tokens from the place before them (masked next-token prediction).
        batch_tokens: tokens of one forward pass at most.
        compute_dtype: number type of the matrix products.
        progress: told of sentences.

    Raises:
        IncompatibleError: the model has no head, or is not of the kind the method needs.
    """
    method = _checked(model, tokenizer, method, is_shifted=is_shifted)
    sentences = [text for pair in pairs for text in (pair.good, pair.bad)]
    ids, words = _encode(tokenizer, sentences)
    frame = _frame(tokenizer, is_causal=model.config.is_causal and method not in _GAPS)
    find: _Find = _originality if method == "detection" else _log_probabilities
    if method == "infill_span" or method == "infill_text":
        vocabulary, way = infilling_vocabulary(model, tokenizer, method)
        find = partial(_filled, vocabulary=vocabulary, way=way)
    room = model.config.max_length - sum(x is not None for x in frame)
    fits = [bool(len(i)) and len(i) <= room for i in ids]
    left_out = []
    kept: list[int] = []
    for number, pair in enumerate(pairs):
        if fits[2 * number] and fits[2 * number + 1]:
            kept.append(number)
            continue
        longest = max(len(ids[2 * number]), len(ids[2 * number + 1]))
        reason = (
            f"{longest} tokens, the model reads {room}" if longest > room else "a sentence without tokens"
        )
        left_out.append((pair.file, pair.line, reason))
    asked = _Asked(model, tokenizer, ids, frame, compute_dtype, is_shifted)
    totals = np.zeros(len(sentences), dtype=np.float64)
    chosen = [s for number in kept for s in (2 * number, 2 * number + 1)]
    rows = _rows_of(chosen, ids, words, method)
    rows.sort(key=lambda row: len(ids[row.sentence]))
    done = 0
    for batch in _batches(
        rows, ids, sum(x is not None for x in frame), batch_tokens, model.config.vocab_size
    ):
        for row, value in zip(batch, find(asked, batch), strict=True):
            totals[row.sentence] += value
        done += len(batch)
        progress("minimal pairs", done=done, total=len(rows), unit="rows")
    return PairScores(
        pairs=[pairs[number] for number in kept],
        good=totals[[2 * number for number in kept]],
        bad=totals[[2 * number + 1 for number in kept]],
        is_same=np.array([ids[2 * n] == ids[2 * n + 1] for n in kept], dtype=np.bool_),
        lengths=np.array([[len(ids[2 * n]), len(ids[2 * n + 1])] for n in kept], dtype=np.int64).reshape(
            -1, 2
        ),
        left_out=left_out,
        method=method,
    )


def report(scores: PairScores) -> dict[str, Any]:
    """Return accuracies as JSON values: over all pairs, as the mean over paradigms, and by field, phenomenon and paradigm.

    Each has `accuracy`, `pairs`, and `standard_error`, that of a share of so many pairs. `ties` counts pairs with equal
    scores, `same` those of them whose sentences are the same tokens: many of these mean that the vocabulary cannot show the
    difference. `per_token` is the accuracy by means over tokens; `by["length"]` parts the pairs by which sentence has more.
    """
    points = scores.points()

    def share(index: Sequence[int]) -> dict[str, Any]:
        value = float(points[list(index)].mean())
        error = math.sqrt(max(0.0, value * (1 - value)) / len(index))
        return {"accuracy": value, "pairs": len(index), "standard_error": error}

    groups: dict[str, dict[str, Any]] = {}
    for name, of in (("field", "field"), ("phenomenon", "phenomenon"), ("UID", "uid")):
        members: dict[str, list[int]] = {}
        for index, pair in enumerate(scores.pairs):
            members.setdefault(getattr(pair, of), []).append(index)
        groups[name] = {key: share(members[key]) for key in sorted(members)}
    longer = scores.longer()
    parts = {name: np.nonzero(longer == sign)[0].tolist() for sign, name in LENGTHS.items()}
    groups["length"] = {name: share(places) for name, places in parts.items() if places}
    every = range(len(scores.pairs))
    return {
        "method": scores.method,
        **share(every),
        "per_token": float(scores.points(per_token=True).mean()),
        "accuracy_over_paradigms": float(np.mean([g["accuracy"] for g in groups["UID"].values()])),
        "ties": int((points == 0.5).sum()),
        "same": int(scores.is_same.sum()),
        "left_out": len(scores.left_out),
        "by": groups,
    }


@dataclass(frozen=True, slots=True)
class _Row:
    """One forward row: which sentence, which of its tokens is predicted (None: all), which are hidden.

    Of a gap that is filled, all hidden tokens are predicted.
    """

    sentence: int
    predicted: int | None
    hidden: tuple[int, ...] = ()


Frame = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who is asked, and about what.

    Attributes:
        model: on its device.
        tokenizer: of it.
        ids: tokens of each sentence.
        frame: ids before and after a sentence.
        compute_dtype: number type of the matrix products.
        is_shifted: hidden tokens are named from the place before them.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    ids: Sequence[Sequence[int]]
    frame: Frame
    compute_dtype: torch.dtype
    is_shifted: bool

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return next(self.model.parameters()).device

    @property
    def num_before(self) -> int:
        """Return how many ids stand before a sentence."""
        return int(self.frame[0] is not None)


_Find = Callable[[_Asked, Sequence[_Row]], list[float]]
"""Scores the rows of one batch."""


def _checked(
    model: LanguageModel, tokenizer: Tokenizer, method: Method | None, *, is_shifted: bool
) -> Method:
    config = model.config
    detects = "replaced_token" in model.extras
    if method == "detection" or (method is None and model.head is None and detects):
        if not detects:
            raise IncompatibleError(
                "method detection does not fit this model: it has no head that tells replaced tokens.",
                hint="choose likelihood or pll",
            )
        return "detection"
    if model.head is None:
        raise IncompatibleError(
            "this model has no language-model head; it gives no probabilities.",
            hint="load a folder that was saved with its head",
        )
    has_decoder = config.stack == "encoder_decoder"
    if method is not None and has_decoder != (method in _GAPS):
        kind, ways = ("an encoder-decoder", _GAPS) if has_decoder else ("a model of one stack", _WHOLE)
        raise IncompatibleError(
            f"method {method} does not fit {kind}.", hint=f"choose {', '.join(ways[:-1])} or {ways[-1]}"
        )
    if has_decoder:
        way = next((way for way in _GAPS if way == method), None)
        return infilling_vocabulary(model, tokenizer, way)[1]
    chosen: Method = method or ("likelihood" if config.is_causal else "pll")
    fits = config.is_causal if chosen == "likelihood" else not config.is_causal or is_shifted
    if not fits:
        kind = "causal" if config.is_causal else "masked"
        raise IncompatibleError(
            f"method {chosen} does not fit a {kind} model.",
            hint=f"choose {'likelihood' if config.is_causal else 'pll or pll_word_l2r'}",
        )
    if chosen != "likelihood" and tokenizer.mask_id is None and not config.query_stream:
        raise IncompatibleError("the tokenizer has no mask token.", hint="use the model's own tokenizer")
    return chosen


def _encode(tokenizer: Tokenizer, sentences: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of each sentence, and the number of the word each token belongs to: in Chinese the segmenter's."""
    ids: list[list[int]] = []
    words: list[list[int]] = []
    for start in range(0, len(sentences), 4096):
        texts = sentences[start : start + 4096]
        spans = tokenizer.encode_spans(texts)
        marks = mark_tokens(texts, spans.tokens(texts), special_ids=(), segment_chinese=True)
        numbers = np.cumsum((marks & WORD) > 0)
        ends = np.cumsum(spans.counts).tolist()
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            ids.append(spans.ids[begin:end].tolist())
            words.append(numbers[begin:end].tolist())
    return ids, words


def _frame(tokenizer: Tokenizer, *, is_causal: bool) -> Frame:
    """Return the ids before and after a sentence."""
    if is_causal:
        return tokenizer.separator_id, None
    return tokenizer.cls_id, tokenizer.sep_id


def _rows_of(
    sentences: Sequence[int], ids: Sequence[Sequence[int]], words: Sequence[Sequence[int]], method: Method
) -> list[_Row]:
    """Return the rows to run: one a token where tokens are hidden, one a word where gaps are filled, else one a sentence."""
    if method in ("likelihood", "detection"):
        return [_Row(sentence, None) for sentence in sentences]
    rows = []
    for sentence in sentences:
        own = words[sentence]
        for place, word in enumerate(own):
            end = place + 1
            if method != "pll":
                while end < len(own) and own[end] == word:
                    end += 1
            if method not in _GAPS or place == 0 or own[place - 1] != word:
                rows.append(_Row(sentence, place, tuple(range(place, end))))
    return rows


def _batches(
    rows: Sequence[_Row], ids: Sequence[Sequence[int]], num_special: int, batch_tokens: int, vocab_size: int
) -> Iterator[Sequence[_Row]]:
    """Cut rows, sorted by length, into batches of at most so many tokens, and of logits that fit 256 MiB."""
    start = 0
    while start < len(rows):
        end, logits = start, 0
        while end < len(rows):
            length = len(ids[rows[end].sentence])
            logits += vocab_size * (length if rows[end].predicted is None else len(rows[end].hidden))
            if end > start and (
                (end + 1 - start) * (length + num_special) > batch_tokens or logits > _MAX_LOGITS
            ):
                break
            end += 1
        yield rows[start:end]
        start = end


def _framed(asked: _Asked, rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
    """Return the framed sentences of rows, padded, (B, T) int64, and segments (B, T) int32, 0 at padding."""
    ids = asked.ids
    before, after = ([] if x is None else [x] for x in asked.frame)
    width = max(len(ids[row.sentence]) for row in rows) + len(before) + len(after)
    inputs = torch.full((len(rows), width), asked.tokenizer.pad_id or 0, dtype=torch.int64)
    segments = torch.zeros((len(rows), width), dtype=torch.int32)
    for number, row in enumerate(rows):
        tokens = [*before, *ids[row.sentence], *after]
        inputs[number, : len(tokens)] = torch.tensor(tokens)
        segments[number, : len(tokens)] = 1
    return inputs, segments


def _log_probabilities(asked: _Asked, rows: Sequence[_Row]) -> list[float]:
    """Return the summed log-probability of what each row predicts."""
    model, ids, num_before = asked.model, asked.ids, asked.num_before
    inputs, segments = _framed(asked, rows)
    width = inputs.shape[1]
    at: list[int] = []  # flat places that are predicted
    values: list[int] = []
    owners: list[int] = []
    is_causal = rows[0].predicted is None
    is_query = model.config.query_stream and not model.config.is_causal
    for number, row in enumerate(rows):
        if row.predicted is None:
            places = range(len(ids[row.sentence]))  # the place before each token
            values += ids[row.sentence]
        else:
            place = row.predicted + num_before - int(asked.is_shifted)
            places = range(place, place + 1)
            values.append(ids[row.sentence][row.predicted])
            if not is_query:
                for hidden in row.hidden:
                    inputs[number, hidden + num_before] = asked.tokenizer.mask_id or 0
        at += [number * width + place for place in places]
        owners += [number] * len(places)
    has_padding = not bool(segments.all())
    batch = Batch(
        inputs,
        segment_ids=segments if has_padding else None,
        has_padding=has_padding,
        attention="causal" if is_causal else "full",
    ).to(asked.device)
    flat = torch.tensor(at, device=asked.device)
    with torch.no_grad(), autocast(asked.device.type, asked.compute_dtype):
        if is_query:
            features = _query_features(model, batch, rows, flat % width, num_before)
        else:
            features = model.trunk(batch, at=flat).last
        logits: Tensor = model.logits(features).float()
    found = -torch.nn.functional.cross_entropy(
        logits, torch.tensor(values, device=asked.device), reduction="none"
    ).double()
    sums = torch.zeros(len(rows), dtype=torch.float64, device=asked.device)
    return [float(x) for x in sums.index_add_(0, torch.tensor(owners, device=asked.device), found)]


def _originality(asked: _Asked, rows: Sequence[_Row]) -> list[float]:
    """Return the summed log-probability that the tokens of each row's sentence are the original ones."""
    model = asked.model
    inputs, segments = _framed(asked, rows)
    is_token = torch.zeros(inputs.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        is_token[number, asked.num_before : asked.num_before + len(asked.ids[row.sentence])] = True
    has_padding = not bool(segments.all())
    batch = Batch(
        inputs, segment_ids=segments if has_padding else None, has_padding=has_padding, attention="full"
    ).to(asked.device)
    with torch.no_grad(), autocast(asked.device.type, asked.compute_dtype):
        logits = model.extras["replaced_token"](model.trunk(batch).last)[..., 0].float()
    sure = torch.nn.functional.logsigmoid(-logits).double()  # the logit is that of a replaced token
    return [float(x) for x in (sure * is_token.to(asked.device)).sum(1)]


def _filled(asked: _Asked, rows: Sequence[_Row], *, vocabulary: Vocabulary, way: Infilling) -> list[float]:
    """Return the summed log-probability of the tokens each row leaves out."""
    gaps = [Gap(asked.ids[row.sentence], row.hidden[0], row.hidden[-1] + 1) for row in rows]
    return gap_log_probabilities(asked.model, vocabulary, gaps, way, asked.compute_dtype)


def _query_features(
    model: LanguageModel, batch: Batch, rows: Sequence[_Row], place: Tensor, offset: int
) -> Tensor:
    """Return the query stream's features (N, D) of one place a row, which sees all others but what the row hides."""
    order = torch.zeros(batch.input_ids.shape, dtype=torch.int32, device=place.device)
    for number, row in enumerate(rows):
        order[number, [hidden + offset for hidden in row.hidden]] = 1
    asked = Batch(
        batch.input_ids,
        segment_ids=batch.segment_ids,
        has_padding=batch.has_padding,
        attention="order",
        attend_order=order,
        query_at=place[:, None],
    )
    query = model.trunk(asked).query
    assert query is not None
    features: Tensor = query[:, 0]
    return features


def _pair(line: str, path: Path, number: int) -> MinimalPair | str:
    """Return the pair of a line, or why there is none."""
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({type(error).__name__})"
    if not isinstance(data, dict):
        return "the line is not a JSON object"
    good, bad = data.get("sentence_good"), data.get("sentence_bad")
    if not isinstance(good, str) or not isinstance(bad, str) or not good.strip() or not bad.strip():
        return "sentence_good or sentence_bad is missing"
    if good == bad:
        return "both sentences are the same"
    uid = str(data.get("UID") or path.name.partition(".")[0])
    phenomenon = str(data.get("phenomenon") or data.get("linguistics_term") or uid)
    return MinimalPair(good, bad, str(data.get("field") or "-"), phenomenon, uid, str(path), number)
