"""Learn a vocabulary from lines of text: WordPiece, byte-level BPE, Unigram.

Pure functions from lines to a backend; the same lines in the same order give the same file, on any machine and with any
number of threads. Choosing the lines and publishing the result lives in `train.py`.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import sentencepiece
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from seedbed.errors import ConfigError, DataError
from seedbed.tokenizer.chinese import HAN, HAN_RUN, cut_words
from seedbed.tokenizer.load import wordpiece_backend

__all__ = ["ALGORITHMS", "Learner", "alphabet", "learn_bpe", "learn_unigram", "learn_wordpiece"]

_HAN_RUN: Final = Regex("[" + HAN.encode("ascii").decode("unicode_escape") + "]+")
_CUT: Final = "\x1f"  # the unit separator: a control character, which the corpus stage removes from text
# Part of the result: partial sums are added per thread, so the number is fixed whatever the machine has.
_SENTENCEPIECE_THREADS: Final = 4


def learn_wordpiece(
    lines: Sequence[str],
    *,
    vocab_size: int,
    special: Sequence[str],
    lowercase: bool,
    min_frequency: int,
    coverage: float,
) -> Backend:
    """Learn BERT's WordPiece: Han characters and punctuation stand alone, merges happen inside words.

    Deviates from the trainer of `tokenizers` in two ways. Its ids, and with them the merges among equally frequent
    pairs, change from run to run, because the `##` characters are numbered in the order of a hash map; here a first pass
    without merges finds them and a second is given them in code point order. And places that merges leave empty
    (Chinese text has few) go to the most frequent characters the alphabet left out.
    """
    kept, left = alphabet(
        lines, size=vocab_size, lowercase=lowercase, min_frequency=min_frequency, coverage=coverage
    )
    empty = wordpiece_backend(
        {token: i for i, token in enumerate(special)}, lowercase=lowercase, special=special
    )

    def trained(first: Sequence[str], size: int) -> dict[str, int]:
        backend = Backend(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
        backend.normalizer = empty.normalizer
        backend.pre_tokenizer = empty.pre_tokenizer
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=min_frequency,
            special_tokens=list(first),
            initial_alphabet=kept,
            limit_alphabet=max(1, len(kept)),
            show_progress=False,
        )
        backend.train_from_iterator(lines, trainer)
        return backend.get_vocab(with_added_tokens=True)

    inside = sorted(token for token in trained([], 0) if token.startswith("##") and len(token) == 3)
    vocab = trained([*special, *inside], vocab_size)
    _check_room(len(special) + len(inside) + len(kept), vocab_size, "characters")
    for character in left[: vocab_size - len(vocab)]:
        vocab[character] = len(vocab)
    return wordpiece_backend(vocab, lowercase=lowercase, special=special)


def learn_bpe(
    lines: Sequence[str],
    *,
    vocab_size: int,
    special: Sequence[str],
    lowercase: bool,
    min_frequency: int,
    coverage: float,
) -> Backend:
    """Learn GPT-2's byte-level BPE, with runs of Han characters kept apart so that merges stay inside them.

    Merges are learned inside rjieba's words, and applied to whole runs. Learned from whole runs, of which few occur twice,
    16 MiB of Chinese took 1.6 GB of memory instead of 0.3 and three times as long, for 2 % fewer tokens, some of them
    clauses that the source repeats.

    Nothing is ever unknown and, unless lowercased, decoding gives the text back byte for byte. `coverage` has no meaning here.
    """
    alphabet_bytes = sorted(pre_tokenizers.ByteLevel.alphabet())
    _check_room(len(special) + len(alphabet_bytes), vocab_size, "bytes")
    backend = Backend(models.BPE())
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_HAN_RUN, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=_added(special),
        initial_alphabet=alphabet_bytes,
        show_progress=False,
    )
    settled = backend.pre_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(_CUT, "removed"), settled])
    backend.train_from_iterator((_cut_chinese(line) for line in lines), trainer)
    backend.pre_tokenizer = settled
    return backend


def learn_unigram(
    lines: Sequence[str],
    *,
    vocab_size: int,
    special: Sequence[str],
    lowercase: bool,
    min_frequency: int,
    coverage: float,
) -> Backend:
    """Learn a Unigram vocabulary with SentencePiece, and rebuild it as a backend that gives the same ids.

    `tokenizers` learns the same model six times slower. Text is normalised to NFC, not NFKC as SentencePiece does by
    default: NFKC would turn Chinese punctuation into ASCII for good. `min_frequency` holds for characters only. Chinese is
    learned inside rjieba's words, as for `learn_bpe`: in half the time. An opening bracket is always a piece of its own,
    so that no text is read as "[MASK]".
    """
    kept, _ = alphabet(
        lines, size=vocab_size, lowercase=lowercase, min_frequency=min_frequency, coverage=coverage
    )
    _check_room(len(special) + len(kept), vocab_size, "characters")
    fold: Callable[[str], str] = (lambda t: t.lower()) if lowercase else (lambda t: t)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(
                _cut_chinese(" ".join(fold(unicodedata.normalize("NFC", line)).split())) for line in lines
            ),
            pretokenization_delimiter=_CUT,
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=coverage,
            required_chars="".join(c for c in kept if c != "["),
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            pad_id=0,
            pad_piece=special[0],
            unk_id=1,
            unk_piece=special[1],
            bos_id=-1,
            eos_id=-1,
            control_symbols=list(special[2:]),
            user_defined_symbols=["["],
            num_threads=_SENTENCEPIECE_THREADS,
            max_sentence_length=1 << 24,  # longer lines are dropped without a word; ours are cut long before
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"SentencePiece cannot learn {vocab_size} pieces from this text: {error}.",
            hint="give more text or ask for a smaller tokenizer.vocab_size",
        ) from error
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    # Six decimals hold what a 32-bit score knows, and survive the file: longer ones come back changed in the last bit.
    pieces = [(model.id_to_piece(i), round(model.get_score(i), 6)) for i in range(model.get_piece_size())]
    backend = Backend(models.Unigram(pieces, unk_id=1, byte_fallback=False))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            *([normalizers.Lowercase()] if lowercase else []),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=True),
            pre_tokenizers.Split("[", "isolated"),
        ]
    )
    backend.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="first", split=True)
    backend.add_special_tokens(_added(special))
    return backend


Learner = Callable[..., Backend]

ALGORITHMS: Mapping[str, Learner] = {"wordpiece": learn_wordpiece, "bpe": learn_bpe, "unigram": learn_unigram}


def alphabet(
    lines: Sequence[str], *, size: int, lowercase: bool, min_frequency: int, coverage: float
) -> tuple[list[str], list[str]]:
    """Choose the characters that are always tokens.

    Kept are the most frequent ones until `coverage` of the text is reached, and at least `size // 16` of them: scripts with
    few characters keep their accents, Chinese gives up its rarest characters. Ties are broken by code point.

    Returns:
        The characters kept, and those left out that occur `min_frequency` times, both by falling frequency.
    """
    raw = np.zeros(0x110000, np.int64)
    for start in range(0, len(lines), 4096):
        block = "".join(lines[start : start + 4096]).encode("utf-32-le", "surrogatepass")
        counted = np.bincount(np.frombuffer(block, "<u4"))
        raw[: len(counted)] += counted
    fold = normalizers.BertNormalizer(lowercase=lowercase) if lowercase else normalizers.NFC()
    counts: dict[str, int] = {}
    for code in np.flatnonzero(raw):
        for character in fold.normalize_str(chr(code)).strip():
            counts[character] = counts.get(character, 0) + int(raw[code])
    ordered = sorted((c for c in counts if counts[c] >= min_frequency), key=lambda c: (-counts[c], c))
    reached = np.cumsum([counts[c] for c in ordered]) / max(1, sum(counts.values()))
    enough = int(np.searchsorted(reached, coverage)) + 1
    cut = max(enough, size // 16)
    return ordered[:cut], ordered[cut:]


def _cut_chinese(line: str) -> str:
    """Put a separator between the words of every run of Han characters."""
    return HAN_RUN.sub(lambda run: _CUT.join(cut_words([run.group()])), line.replace(_CUT, " "))


def _added(special: Sequence[str]) -> list[AddedToken]:
    """Flag special tokens; the mask takes the blank before it, as the word it stands for would."""
    return [AddedToken(name, lstrip=name == "[MASK]", normalized=False, special=True) for name in special]


def _check_room(needed: int, vocab_size: int, what: str) -> None:
    if needed > vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size is {vocab_size}, but special tokens and {what} alone take {needed}.",
            hint=f"set tokenizer.vocab_size to {-(-needed // 1024) * 1024} or more, or lower"
            " tokenizer.character_coverage or tokenizer.num_reserved",
        )
