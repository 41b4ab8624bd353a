"""Read tokenizer files of others: `tokenizer.json`, `vocab.txt`, `vocab.json` with `merges.txt`, or a folder of them.

Nothing here runs code from a file: JSON and plain text only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from seedbed.artifact import MANIFEST, open_verified
from seedbed.errors import DataError
from seedbed.tokenizer.chinese import HAN
from seedbed.tokenizer.special import ROLES, SPECIAL_TOKENS

__all__ = ["Loaded", "read_tokenizer", "wordpiece_backend"]

_CJK = HAN + r"\u3000-\u303f\uff00-\uffef\u2014\u2018\u2019\u201c\u201d\u2026\u00b7"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A backend, the token each part is declared to be played by, and what had to be guessed."""

    backend: Backend
    declared: dict[str, str]
    notes: tuple[str, ...] = ()


def read_tokenizer(path: Path, *, lowercase: bool | None = None) -> Loaded:
    """Read a tokenizer file or folder.

    Args:
        path: a `tokenizer.json`, a WordPiece `vocab.txt` (any name ending in .txt), or a folder holding `tokenizer.json`,
            `vocab.txt`, or `vocab.json` and `merges.txt`; or a run folder, whose tokenizer it is then. A folder made by
            seedbed is verified against its manifest.
        lowercase: for a WordPiece `vocab.txt`. None: `do_lower_case` of a `tokenizer_config.json` beside it, else a guess
            (lowercase unless some token has an ASCII capital), which `notes` reports.

    Raises:
        DataError: nothing readable there, or a damaged file.
        IntegrityError: a folder made by seedbed was changed.
    """
    if path.is_dir():
        if (path / "tokenizer" / MANIFEST).is_file() and not (path / MANIFEST).is_file():
            path /= "tokenizer"  # of a run
        if (path / MANIFEST).is_file():
            artifact = open_verified(path)
            for name in artifact.files:
                if "/" not in name and name.endswith((".json", ".txt")):
                    artifact.file(name)
        file = next(
            (path / n for n in ("tokenizer.json", "vocab.txt", "vocab.json") if (path / n).is_file()), None
        )
        if file is None:
            raise DataError(
                f"{path} holds no tokenizer.json, vocab.txt or vocab.json.",
                hint="give the folder or the file of a tokenizer",
            )
    elif path.is_file():
        file = path
    else:
        raise DataError(
            f"tokenizer {path} does not exist.", hint="give a tokenizer.json, a vocab.txt or a folder"
        )
    settings = _settings(file.parent)
    declared: dict[str, str] = {
        str(role): token for role in ROLES if (token := _content(settings.get(f"{role}_token"))) is not None
    }
    if file.suffix == ".txt":
        backend, notes = _read_wordpiece(file, settings, lowercase)
        return Loaded(backend, declared, notes)
    if file.name == "vocab.json":
        return Loaded(_read_byte_bpe(file, settings, declared), declared)
    try:
        backend = Backend.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:
        # The Rust side raises Exception itself for anything wrong with the text; of its kinds only bad UTF-8 is the file's.
        if type(error) is not Exception and not isinstance(error, UnicodeDecodeError):
            raise
        raise DataError(
            f"{file} is not a tokenizer.json: {error}.", hint="restore the file from its source"
        ) from error
    backend.no_padding()
    backend.no_truncation()
    return Loaded(backend, declared)


def wordpiece_backend(
    vocab: dict[str, int], *, lowercase: bool, special: Sequence[str] = SPECIAL_TOKENS
) -> Backend:
    """Build BERT's tokenizer around a vocabulary: each Han character apart, punctuation apart, `##` inside words."""
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))  # noqa: S106
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = _wordpiece_decoder()
    backend.add_special_tokens([token for token in special if token in vocab])
    return backend


def _wordpiece_decoder() -> decoders.Decoder:
    """Join pieces, and leave no blanks between Chinese characters (BERT's own decoder does)."""
    return decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=True),
            decoders.Fuse(),
            decoders.Replace(Regex(f"(?<=[{_oniguruma(_CJK)}]) (?=[{_oniguruma(_CJK)}])"), ""),
        ]
    )


def _oniguruma(ranges: str) -> str:
    """Write a Python character class for the regular expressions of `tokenizers`, which know no escapes by code point."""
    return ranges.encode("ascii").decode("unicode_escape")


def _read_wordpiece(
    file: Path, settings: dict[str, Any], lowercase: bool | None
) -> tuple[Backend, tuple[str, ...]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (byte {error.start}).", hint="save it as UTF-8") from error
    tokens = [line.rstrip("\r") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    vocab: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token in vocab:
            raise DataError(
                f"{file}, line {index + 1}: {token!r} stands there a second time, first at line {vocab[token] + 1}.",
                hint="a vocabulary file holds each token once, one a line",
            )
        vocab[token] = index
    if "[UNK]" not in vocab:
        raise DataError(
            f"{file} has no [UNK], so it is not a WordPiece vocabulary.",
            hint="give the tokenizer.json of this tokenizer instead",
        )
    notes: tuple[str, ...] = ()
    if lowercase is None and isinstance(settings.get("do_lower_case"), bool):
        lowercase = settings["do_lower_case"]
    if lowercase is None:
        capital = next(
            (t for t in tokens if not t.startswith("[") and not t.startswith("<") and _has_capital(t)), None
        )
        lowercase = capital is None
        why = "no token has a capital" if capital is None else f"it has the token {capital!r}"
        notes = (f"{file.name} is taken as {'lowercase' if lowercase else 'cased'}, because {why}",)
    return wordpiece_backend(vocab, lowercase=lowercase), notes


def _has_capital(token: str) -> bool:
    return any("A" <= character <= "Z" for character in token)


def _read_byte_bpe(file: Path, settings: dict[str, Any], declared: dict[str, str]) -> Backend:
    merges = file.with_name("merges.txt")
    if not merges.is_file():
        raise DataError(f"{file} needs merges.txt beside it.", hint="copy both files of the tokenizer")
    try:
        vocab = json.loads(file.read_bytes())
        pairs = [
            (left, right)
            for line in merges.read_text(encoding="utf-8").split("\n")
            if line and not line.startswith("#version")
            for left, _, right in [line.partition(" ")]
        ]
        backend = Backend(models.BPE(vocab, pairs))
    except (
        Exception
    ) as error:  # JSON, encoding, or the Rust side's plain Exception: the file is bad either way
        raise DataError(
            f"{file} and merges.txt are not a byte-level BPE: {error}.", hint="restore both files"
        ) from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(settings.get("add_prefix_space", False))
    )
    backend.decoder = decoders.ByteLevel()
    known = {name for names in ROLES.values() for name in names} | set(declared.values())
    mask = declared.get("mask", "<mask>")
    # RoBERTa's mask takes the blank before it, as the word it stands for would.
    backend.add_special_tokens(
        [AddedToken(t, lstrip=t == mask, normalized=False, special=True) for t in vocab if t in known]
    )
    return backend


def _settings(folder: Path) -> dict[str, Any]:
    """Merge the configuration files that may lie beside a tokenizer, the more specific one last."""
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_bytes())
        except ValueError as error:
            raise DataError(f"{file} is not JSON: {error}.", hint="restore the file, or remove it") from error
        if isinstance(found, dict):
            merged.update(found)
    return merged


def _content(token: Any) -> str | None:
    """Read a token that may be written as a string or as an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
