"""Read the user's own words: units to hide together, and words to put in the place of others.

Both are files of one entry a line, UTF-8, English or Chinese; `#` begins a comment line. Entries are encoded by the run's
tokenizer once and looked up as token ids while batches are made. What cannot be used is counted and kept by name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.artifact import digest_of, file_digest
from seedbed.data.store import SPECIAL, WORD
from seedbed.data.views import TokenStream
from seedbed.errors import DataError, IncompatibleError, IntegrityError
from seedbed.models.folder import read_model
from seedbed.objectives.base import Vocabulary
from seedbed.tokenizer.chinese import HAN

__all__ = ["Lexicon", "LexiconReport", "SimilarTokens", "SimilarWords", "check_digest", "path_digest"]

_logger = logging.getLogger(__name__)

_BEGINS_HAN: Final = re.compile(f"[{HAN}]")
_ENDS_HAN: Final = re.compile(f"[{HAN}]$")
_SAMPLE_WINDOWS: Final = 128
_SAMPLE_TOKENS: Final = 512
_ANY: Final = 0
_AT_WORDS: Final = 1


@dataclass(frozen=True, slots=True)
class LexiconReport:
    """Say what became of the entries of a file.

    Attributes:
        usable: entries that can match.
        unknown: entries with characters the vocabulary does not know.
        too_long: entries of more tokens than a row may hide.
    """

    usable: int
    unknown: tuple[str, ...] = ()
    too_long: tuple[str, ...] = ()

    def warn(self, path: str) -> None:
        """Log what was left out, with examples."""
        for what, entries in (
            ("hold characters the vocabulary does not know", self.unknown),
            ("have more tokens than a row may hide", self.too_long),
        ):
            if entries:
                examples = ", ".join(entries[:8])
                _logger.warning("%s: %d entries %s and are left out: %s", path, len(entries), what, examples)


class Lexicon:
    """Find entries in rows of token ids: the longest one at each place, from left to right.

    An entry begins where a word begins and ends where one ends; a side that is a Han character may lie inside a word of
    the segmenter, which does not know the user's terms.

    Attributes:
        report: what became of the entries.
    """

    def __init__(self, entries: Iterable[str], vocabulary: Vocabulary, *, max_tokens: int) -> None:
        self._root: dict[int, Any] = {}
        unknown: list[str] = []
        too_long: list[str] = []
        usable = 0
        for entry in dict.fromkeys(entries):
            variants = _encodings(entry, vocabulary)
            if not variants:
                unknown.append(entry)
            elif min(map(len, variants)) > max_tokens:
                too_long.append(entry)
            else:
                usable += 1
                for ids in variants:
                    self._add(ids, entry)
        self.report = LexiconReport(usable, tuple(unknown), tuple(too_long))
        self._is_first = np.zeros(vocabulary.vocab_size, bool)
        self._is_first[list(self._root)] = True

    @classmethod
    def read(cls, path: str, vocabulary: Vocabulary, *, max_tokens: int) -> Lexicon:
        """Read a file of one entry a line.

        Raises:
            DataError: the file cannot be read, or none of its entries can be used.
        """
        lexicon = cls(
            (line.split("\t")[0].strip() for line in _lines(path)), vocabulary, max_tokens=max_tokens
        )
        lexicon.report.warn(path)
        if not lexicon.report.usable:
            raise DataError(
                f"{path} has no entry that could be found in this text.", hint="one word a line, UTF-8"
            )
        return lexicon

    def units(self, ids: Tensor, begins: Tensor) -> tuple[Tensor, int]:
        """Merge words to entries.

        Args:
            ids: (B, L) int64.
            begins: (B, L) bool, where words begin.

        Returns:
            (B, L) bool, where units begin, and the number of entries found.
        """
        merged = begins.numpy().copy()
        tokens, starts = ids.numpy(), begins.numpy()
        found = 0
        for row, places in _by_row(self._is_first[tokens]):
            line, at_word = tokens[row].tolist(), starts[row].tolist()
            reached = 0
            for place in places:
                if place < reached:
                    continue
                end = self._match(line, at_word, place)
                if end:
                    merged[row, place:end] = False
                    merged[row, place] = True
                    if end < len(line):
                        merged[row, end] = True
                    reached = end
                    found += 1
        return torch.from_numpy(merged), found

    def report_matches(self, tokens: TokenStream) -> float:
        """Return the entries found in 1,000 tokens of a sample of the text, and log them; none is worth a warning."""
        starts = np.arange(_SAMPLE_WINDOWS, dtype=np.int64) * tokens.num_tokens // _SAMPLE_WINDOWS
        ids, marks, valid = tokens.gather(np.unique(starts), _SAMPLE_TOKENS)
        begins = torch.from_numpy((marks & (WORD | SPECIAL)) != 0)
        found = self.units(torch.from_numpy(ids.astype(np.int64)), begins)[1]
        rate = 1000.0 * found / max(1, int(valid.sum()))
        level = logging.INFO if found else logging.WARNING
        _logger.log(level, "the lexicon's entries stand %.1f times in 1,000 tokens of this text", rate)
        return rate

    def _add(self, ids: Sequence[int], entry: str) -> None:
        node = self._root
        for token in ids:
            node = node.setdefault(token, {})
        begin = _ANY if _BEGINS_HAN.match(entry) else _AT_WORDS
        end = _ANY if _ENDS_HAN.search(entry) else _AT_WORDS
        old = node.get(_END, (_AT_WORDS, _AT_WORDS))
        node[_END] = (min(begin, old[0]), min(end, old[1]))

    def _match(self, line: list[int], at_word: list[bool], place: int) -> int:
        """Return where the longest entry that begins at `place` ends, or 0."""
        node: dict[int, Any] | None = self._root
        end = 0
        for at in range(place, len(line)):
            node = node.get(line[at]) if node is not None else None
            if node is None:
                break
            sides = node.get(_END)
            if sides is not None:
                starts_well = at_word[place] or sides[0] == _ANY
                ends_well = at + 1 == len(line) or at_word[at + 1] or sides[1] == _ANY
                if starts_well and ends_well:
                    end = at + 1
        return end


_END: Final = -1
"""Key of a trie's node that says an entry ends there."""


class SimilarWords:
    """Know the words that may stand in the place of a word, from a file `word<TAB>similar similar ...`.

    Only words of as many tokens as the word they replace can stand there.

    Attributes:
        num_words: words with at least one replacement.
        num_unequal: replacements left out because their number of tokens differs, or because they cannot be encoded.
    """

    def __init__(self, pairs: Iterable[tuple[str, Sequence[str]]], vocabulary: Vocabulary) -> None:
        self._table: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        self.num_unequal = 0
        for word, candidates in pairs:
            # Encodings come in the same order (as given, then behind a blank), so they belong together by place.
            variants = _encodings(word, vocabulary)
            others = [_encodings(candidate, vocabulary) for candidate in candidates]
            for number, ids in enumerate(variants):
                equal = [o[number] for o in others if number < len(o) and len(o[number]) == len(ids)]
                if equal:
                    self._table.setdefault(ids, []).extend(equal)
                self.num_unequal += len(others) - len(equal) if number == 0 else 0
        self.num_words = len(self._table)

    @classmethod
    def read(cls, path: str, vocabulary: Vocabulary) -> SimilarWords:
        """Read a file.

        Raises:
            DataError: unreadable, a line without a tab, or nothing in it can be used.
        """
        pairs: list[tuple[str, list[str]]] = []
        for number, line in enumerate(_lines(path), start=1):
            word, tab, similar = line.partition("\t")
            if not tab:
                raise DataError(
                    f"{path}: entry {number} ({line[:40]!r}) has no tab.", hint="word<TAB>similar similar"
                )
            pairs.append((word.strip(), similar.split()))
        words = cls(pairs, vocabulary)
        if words.num_unequal:
            _logger.warning(
                "%s: %d similar words have another number of tokens than their word, or none, and are left out",
                path,
                words.num_unequal,
            )
        if not words.num_words:
            raise DataError(
                f"{path} has no pair of words of equally many tokens.",
                hint="give more similar words, or a model's folder for neighbours of single tokens",
            )
        return words

    def replace(self, ids: Tensor, first: Tensor, chosen: Tensor, draw: Tensor, fallback: Tensor) -> Tensor:
        """Return ids with the chosen words replaced; words without a similar one by `fallback`.

        Args:
            ids: (B, L) int64.
            first: (B, L) int64 place of the first token of each token's word.
            chosen: (B, L) bool, whole words.
            draw: (B, L) int64 in [0, 2^32), of which a word reads the one at its first token.
            fallback: (B, L) int64 what stands where no similar word is known.
        """
        replaced = torch.where(chosen, fallback, ids)
        firsts, lines, draws = first.tolist(), ids.tolist(), draw.tolist()
        for row, places in _by_row(chosen.numpy()):
            words: dict[int, int] = {}
            for place in places:
                words[firsts[row][place]] = place + 1
            for start, end in words.items():
                candidates = self._table.get(tuple(lines[row][start:end]))
                if candidates:
                    pick = candidates[draws[row][start] * len(candidates) >> 32]
                    replaced[row, start:end] = torch.tensor(pick)
        return replaced


class SimilarTokens:
    """Know the tokens that may stand in the place of a token: its nearest neighbours in an embedding table.

    Neighbours are by cosine, special tokens left out. A word of several tokens is replaced token by token, each by a
    neighbour of its own, where MacBERT replaces words: the table knows no others.
    """

    def __init__(self, table: Tensor, vocabulary: Vocabulary, *, num_neighbours: int) -> None:
        if table.shape[0] < vocabulary.vocab_size:
            raise IncompatibleError(
                f"the embedding table has {table.shape[0]} tokens, the vocabulary {vocabulary.vocab_size}.",
                hint="objective.similar_words: a model of the same tokenizer",
            )
        ordinary = vocabulary.ordinary_ids()
        unit = F.normalize(table.float()[ordinary], dim=1)
        count = min(num_neighbours, len(ordinary) - 1)
        nearest = torch.empty(len(ordinary), count, dtype=torch.int64)
        for start in range(0, len(ordinary), 1024):  # 1024 rows of similarities at a time
            similarity = unit[start : start + 1024] @ unit.T
            similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -2.0
            nearest[start : start + 1024] = similarity.topk(count, dim=1).indices
        self.neighbours = torch.arange(vocabulary.vocab_size)[:, None].expand(-1, count).clone()
        self.neighbours[ordinary] = ordinary[nearest]

    @classmethod
    def read(cls, folder: str, vocabulary: Vocabulary, *, num_neighbours: int) -> SimilarTokens:
        """Read the token embeddings of a model folder, whose tokenizer must be the run's."""
        model, _ = read_model(Path(folder).expanduser())
        return cls(model.trunk.embedding.token.weight.detach(), vocabulary, num_neighbours=num_neighbours)

    def replace(self, ids: Tensor, first: Tensor, chosen: Tensor, draw: Tensor, fallback: Tensor) -> Tensor:
        """Return ids with the chosen tokens replaced; see `SimilarWords.replace`."""
        pick = (draw * self.neighbours.shape[1]) >> 32
        return torch.where(chosen, self.neighbours[ids, pick], ids)


def path_digest(path: str) -> str | None:
    """Return the sha256 of a file, or of the files of a folder; None where there is nothing yet."""
    place = Path(path).expanduser()
    if place.is_file():
        return file_digest(place)
    if place.is_dir():
        files = sorted(
            file for file in place.iterdir() if file.suffix in (".safetensors", ".json") and file.is_file()
        )
        return digest_of({file.name: file_digest(file) for file in files})
    return None


def check_digest(path: str, expected: str | None, key: str) -> None:
    """Refuse a file that is missing, or is not the one the recipe was resolved with.

    Raises:
        DataError: nothing there.
        IntegrityError: other content than the recipe says.
    """
    found = path_digest(path)
    if found is None:
        raise DataError(f"{path} does not exist.", hint=f"objective.{key} names a file of yours")
    if expected is not None and found != expected:
        raise IntegrityError(
            f"{path} is not the file this recipe was resolved with: {found[:12]}, expected {expected[:12]}.",
            hint=f"restore it, or set objective.{key}_digest=null for a new run",
        )


def _lines(path: str) -> list[str]:
    """Return the lines of a file that are neither empty nor comments."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.", hint="name a UTF-8 text file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}).", hint="save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _encodings(word: str, vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    """Return the token ids a word has at the start of a text and behind a blank; none where a character is unknown."""
    assert vocabulary.encode is not None
    found = [tuple(vocabulary.encode(text)) for text in (word, f" {word}")]
    return [ids for ids in dict.fromkeys(found) if ids and not vocabulary.special_ids.intersection(ids)]


def _by_row(mask: npt.NDArray[np.bool_]) -> Iterable[tuple[int, list[int]]]:
    """Return (row, places) for the rows of a mask that have any."""
    for row in np.flatnonzero(mask.any(axis=1)).tolist():
        yield row, np.flatnonzero(mask[row]).tolist()
