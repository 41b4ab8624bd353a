"""Add words of a new domain to a vocabulary, keeping every old id: propose them from text, add them, say what changes.

WordPiece: words of letters become entries of their own, found because the longest match wins; Chinese words, which WordPiece
would cut into characters before it looks, become added tokens matched in the text itself. Byte-level BPE: the merges that
build a word from its present pieces are appended behind all old ones, so every text is first cut as before. Both leave a
text as it was unless it holds a new word (WordPiece: or a longer word that begins with one; BPE: or the same pieces in a row).
Unigram is refused: a new piece competes by its score with every other way to cut, and there is no right score for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from seedbed.config import Config
from seedbed.errors import DataError, IncompatibleError
from seedbed.tokenizer.chinese import HAN_RUN, cut_words
from seedbed.tokenizer.tokenizer import Tokenizer

__all__ = [
    "ExtendVocabularyConfig",
    "Proposal",
    "extend",
    "is_extension",
    "pieces_of_new",
    "propose",
    "table",
]


class ExtendVocabularyConfig(Config):
    """Words of the new text that join the start's vocabulary."""

    num_tokens: int = Field(
        0, ge=0, le=100_000, description="Tokens to add at most. 0: the vocabulary stays."
    )
    min_count: int = Field(20, ge=2, description="A word must occur this often in the sample.")
    sample_mib: float = Field(
        16.0, gt=0.0, description="Training text words are counted in, MiB: lines with the smallest hashes."
    )


@dataclass(frozen=True, slots=True)
class Proposal:
    """One word that would save tokens.

    Attributes:
        word: as the vocabulary would write it.
        count: how often it occurs in the sample.
        pieces: the ids it is cut into now.
    """

    word: str
    count: int
    pieces: tuple[int, ...]

    @property
    def saved(self) -> int:
        """Return the tokens it would save in the sample."""
        return self.count * (len(self.pieces) - 1)


def propose(tokenizer: Tokenizer, lines: Iterable[str], *, num_tokens: int, min_count: int) -> list[Proposal]:
    """Return the words that save most tokens, count x (pieces - 1), best first; ties in the order of the words.

    Words are the tokenizer's own pre-tokens made of letters, and in runs of Han characters the words of rjieba. Words the
    vocabulary cannot write (an unknown token among the pieces) are left out: there is nothing to make a vector from.
    What a word saves inside longer words that begin with it is not counted.

    Raises:
        IncompatibleError: the vocabulary cannot be extended exactly.
    """
    _refuse(tokenizer)
    backend, is_wordpiece = tokenizer.backend, tokenizer.algorithm == "wordpiece"
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(word for word in cut_words(HAN_RUN.findall(line)) if len(word) > 1)
        text = HAN_RUN.sub(" ", line)
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text) if len(word) > 1)
    frequent = [word for word, count in counts.items() if count >= min_count]
    proposals = []
    for word, pieces in zip(frequent, _cut(tokenizer, frequent), strict=True):
        token = word if is_wordpiece else "".join(map(tokenizer.token, pieces))
        surface = word if is_wordpiece else tokenizer.decode(pieces).strip()
        if surface.isalpha() and len(pieces) > 1 and tokenizer.unk_id not in pieces:
            proposals.append(Proposal(token, counts[word], tuple(pieces)))
    return sorted(proposals, key=lambda p: (-p.saved, p.word))[:num_tokens]


def extend(tokenizer: Tokenizer, proposals: Sequence[Proposal], *, num_tokens: int) -> Tokenizer:
    """Return the tokenizer with the proposed words, in their order, until `num_tokens` tokens were added.

    A word of BPE takes a token for every merge that has none yet. A longer word that begins with a new entry of WordPiece goes
    on with pieces behind it; that every character has such a piece is checked, or it could become unknown.

    Raises:
        IncompatibleError: the vocabulary cannot be extended exactly.
        DataError: there is nothing to add.
    """
    _refuse(tokenizer)
    parts = json.loads(tokenizer.backend.to_str())
    # Added tokens that the model does not hold are numbered behind it when the file is read: it must hold all before it grows.
    for token in parts["added_tokens"]:
        parts["model"]["vocab"].setdefault(token["content"], token["id"])
    if tokenizer.algorithm == "wordpiece":
        added = _extend_wordpiece(tokenizer, parts, proposals, num_tokens)
    else:
        added = _extend_bpe(tokenizer, parts, proposals, num_tokens)
    backend = Backend.from_str(json.dumps(parts))
    if added:
        backend.add_tokens([AddedToken(word, normalized=False, special=False) for word in added])
    extended = Tokenizer(
        backend, declared={str(k): v for k, v in tokenizer.roles.items()}, notes=tokenizer.notes
    )
    if extended.vocab_size == tokenizer.vocab_size:
        raise DataError(
            "no word of the text is worth a token of its own.",
            hint="lower start.extend_vocabulary.min_count, or leave the vocabulary as it is",
        )
    assert is_extension(extended, tokenizer)
    return extended


def is_extension(new: Tokenizer, old: Tokenizer) -> bool:
    """Say whether one tokenizer has every token of another under its id, and treats text alike otherwise."""
    ours, theirs = (json.loads(each.backend.to_str()) for each in (new, old))
    if any(ours[key] != theirs[key] for key in ("normalizer", "pre_tokenizer", "decoder")):
        return False
    if ours["model"]["type"] != theirs["model"]["type"]:
        return False
    vocab = new.backend.get_vocab(with_added_tokens=True)
    before = old.backend.get_vocab(with_added_tokens=True)
    if any(vocab.get(token) != token_id for token, token_id in before.items()):
        return False
    known = {token["id"]: token for token in ours["added_tokens"]}
    if any(known.get(token["id"]) != token for token in theirs["added_tokens"]):
        return False
    merges = theirs["model"].get("merges", [])
    return bool(ours["model"].get("merges", [])[: len(merges)] == merges)


def pieces_of_new(new: Tokenizer, old: Tokenizer) -> dict[int, tuple[int, ...]]:
    """Return the old ids each new token stands for, by its id."""
    before = old.backend.get_vocab(with_added_tokens=True)
    tokens = {t: i for t, i in new.backend.get_vocab(with_added_tokens=True).items() if t not in before}
    cut = _cut(old, list(tokens))
    return {token_id: tuple(ids) for token_id, ids in sorted(zip(tokens.values(), cut, strict=True))}


def table(new: Tokenizer, old: Tokenizer, proposals: Sequence[Proposal]) -> list[dict[str, Any]]:
    """Return one row for each word that is one token now: the word and its token, count, saved tokens, what it was cut into."""
    rows = []
    for proposal in proposals:
        token_id = new.token_id(proposal.word)
        if old.token_id(proposal.word) is None and token_id is not None:
            rows.append(
                {
                    "word": new.decode([token_id]).strip(),
                    "token": proposal.word,
                    "count": proposal.count,
                    "saved": proposal.saved,
                    "before": [old.token(i) for i in proposal.pieces],
                }
            )
    return rows


def _refuse(tokenizer: Tokenizer) -> None:
    if tokenizer.algorithm not in ("wordpiece", "bpe") or (
        tokenizer.algorithm == "bpe" and not _is_byte_level(tokenizer)
    ):
        raise IncompatibleError(
            f"a {tokenizer.algorithm} vocabulary cannot be extended and cut all other text as before.",
            hint="extend a WordPiece or byte-level BPE vocabulary, or leave start.extend_vocabulary out",
        )


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    return '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend.to_str())["pre_tokenizer"])


def _cut(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """Return the ids each word is cut into by the model alone; a word is a pre-token, or a word of Han characters."""
    if tokenizer.algorithm == "wordpiece":
        return tokenizer.encode_batch(words)
    model = tokenizer.backend.model
    return [
        tokenizer.encode(word) if HAN_RUN.fullmatch(word) else [token.id for token in model.tokenize(word)]
        for word in words
    ]


def _extend_wordpiece(
    tokenizer: Tokenizer, parts: dict[str, Any], proposals: Sequence[Proposal], num_tokens: int
) -> list[str]:
    """Add entries to the model's vocabulary; return the Chinese words, which must become added tokens."""
    vocab: dict[str, int] = parts["model"]["vocab"]
    prefix = parts["model"]["continuing_subword_prefix"]
    characters = {c for token in vocab for c in token.removeprefix(prefix) if token.startswith(prefix)}
    next_id = tokenizer.vocab_size
    chinese = []
    for proposal in proposals[:num_tokens]:
        if HAN_RUN.fullmatch(proposal.word):
            chinese.append(proposal.word)
            vocab[proposal.word] = next_id
            next_id += 1
        # A longer word goes on behind the new entry with pieces of its own: every character it could go on with is one.
        elif all(f"{prefix}{character}" in vocab for character in characters):
            vocab[proposal.word] = next_id
            next_id += 1
        else:
            missing = sorted(c for c in characters if f"{prefix}{c}" not in vocab)
            raise IncompatibleError(
                f"{prefix}{missing[0]} is no token, so a word going on with it behind a new one could become unknown.",
                hint="this vocabulary cannot be extended exactly; leave start.extend_vocabulary out",
            )
    return chinese


def _extend_bpe(
    tokenizer: Tokenizer, parts: dict[str, Any], proposals: Sequence[Proposal], num_tokens: int
) -> list[str]:
    """Append the merges that build each word from its pieces, from the left; what they build on the way are tokens too."""
    vocab: dict[str, int] = parts["model"]["vocab"]
    merges: list[list[str]] = parts["model"]["merges"]
    known = {tuple(pair) for pair in merges}
    next_id, limit = tokenizer.vocab_size, tokenizer.vocab_size + num_tokens
    for proposal in proposals:
        tokens = [tokenizer.token(i) for i in proposal.pieces]
        built = ["".join(tokens[:n]) for n in range(2, len(tokens) + 1)]
        fresh = [token for token in built if token not in vocab]
        if next_id + len(fresh) > limit:
            continue
        for token in fresh:
            vocab[token] = next_id
            next_id += 1
        left = tokens[0]
        for right, token in zip(tokens[1:], built, strict=True):
            if (left, right) not in known:
                known.add((left, right))
                merges.append([left, right])
            left = token
    return []
