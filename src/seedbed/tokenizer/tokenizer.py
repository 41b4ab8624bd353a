"""Turn text into token ids and back, and write what others can open.

`Tokenizer` wraps the Rust tokenizer with what the rest of seedbed needs: the ids of the special tokens, a digest that
says whether two tokenizers give the same ids, and flat arrays for the token store. Reading foreign files lives in
`load.py`, learning a vocabulary in `train.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from seedbed.artifact import digest_of, write_json
from seedbed.errors import IncompatibleError
from seedbed.tokenizer.load import read_tokenizer
from seedbed.tokenizer.spans import Spans
from seedbed.tokenizer.special import ROLES, Role, find_roles

__all__ = ["Kind", "Spans", "Tokenizer"]

Kind = Literal["encoder", "decoder", "encoder_decoder"]
"""What a model makes of texts, which decides what is put around them."""


class Tokenizer:
    """Encode and decode; immutable after it was made.

    Attributes:
        vocab_size: one more than the largest id, which is what an embedding needs.
        pad_id, unk_id, cls_id, sep_id, mask_id, bos_id, eos_id: ids, None where the vocabulary has no such token.
        special_ids: ids of all tokens flagged special, [UNK] and reserved ones included.
        notes: what had to be guessed when it was loaded.
    """

    def __init__(
        self, backend: Backend, *, declared: dict[str, str] | None = None, notes: tuple[str, ...] = ()
    ) -> None:
        self._backend = backend
        self.notes = notes
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values()) + 1
        self.roles: dict[Role, str] = find_roles(vocab, declared or {})
        ids: dict[Role, int | None] = {role: vocab.get(self.roles.get(role, "")) for role in ROLES}
        self.pad_id = ids["pad"]
        self.unk_id = ids["unk"]
        self.cls_id = ids["cls"]
        self.sep_id = ids["sep"]
        self.mask_id = ids["mask"]
        self.bos_id = ids["bos"]
        self.eos_id = ids["eos"]
        added = backend.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def load(cls, path: Path | str, *, lowercase: bool | None = None) -> Self:
        """Load an artifact, a `tokenizer.json`, a `vocab.txt` or a Hugging Face folder.

        Args:
            path: file or folder, see `load.read_tokenizer`.
            lowercase: for a bare `vocab.txt` only; None reads or guesses it, and `notes` says so.

        Raises:
            DataError: nothing readable there.
            IntegrityError: a folder made by seedbed was changed.
        """
        loaded = read_tokenizer(Path(path), lowercase=lowercase)
        return cls(loaded.backend, declared=loaded.declared, notes=loaded.notes)

    @property
    def backend(self) -> Backend:
        """Return the Rust tokenizer; not to be changed."""
        return self._backend

    @cached_property
    def digest(self) -> str:
        """Return a content hash over all that decides ids; equal digests give equal ids for every text.

        What only decorates (padding, truncation, the template around a text) is left out, so that an exported copy keeps it.
        """
        parts = json.loads(self._backend.to_str())
        return digest_of(
            {key: parts[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")}
        )

    @property
    def separator_id(self) -> int:
        """Return the id that ends every document in the store: the end-of-text token, [SEP] in learned vocabularies.

        Raises:
            IncompatibleError: the vocabulary has no token that could serve.
        """
        found = self.eos_id if self.eos_id is not None else self.sep_id
        if found is None:
            raise IncompatibleError(
                "this tokenizer has no token that could separate documents.",
                hint=f"it needs one of {', '.join(ROLES['eos'])}, or eos_token in tokenizer_config.json",
            )
        return found

    @cached_property
    def unused_ids(self) -> tuple[int, ...]:
        """Return the ids kept free for objectives (`[unusedN]`, `<extra_id_N>` of T5), in the order of N."""
        named = re.compile(r"(?:\[unused(\d+)\]|<extra_id_(\d+)>)")
        found = ((named.fullmatch(token), i) for token, i in self._backend.get_vocab().items())
        return tuple(i for _, i in sorted((int(m.group(1) or m.group(2)), i) for m, i in found if m))

    @property
    def algorithm(self) -> str:
        """Return the kind of model: "wordpiece", "bpe", "unigram" or "wordlevel"."""
        return type(self._backend.model).__name__.lower()

    @cached_property
    def keeps_newlines(self) -> bool:
        """Say whether a newline survives encoding and decoding."""
        return "\n" in self.decode(self.encode("a\nb"))

    @cached_property
    def plain_backend(self) -> Backend:
        """Return the backend that reads special tokens written in a text as the characters they are; not to be changed."""
        backend = Backend.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of a text; nothing is put around it.

        Args:
            text: any text.
            allow_special: read "[MASK]" and its like as special tokens. By default they are plain text, so that no
                corpus can smuggle them in.
        """
        backend = self._backend if allow_special else self.plain_backend
        return list(backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """Return the ids of several texts, on all cores."""
        backend = self._backend if allow_special else self.plain_backend
        return [list(e.ids) for e in backend.encode_batch(list(texts), add_special_tokens=False)]

    def encode_spans(self, texts: Sequence[str]) -> Spans:
        """Return ids, character spans and pre-tokens of several texts in flat arrays, on all cores.

        Takes about 40 times the size of the texts in memory while it runs; give it a few megabytes at a time.
        """
        encodings = self.plain_backend.encode_batch(list(texts), add_special_tokens=False)
        counts = np.fromiter((len(e) for e in encodings), np.int64, len(encodings))
        size = int(counts.sum())
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, size)
        pretokens = np.fromiter(chain.from_iterable(e.word_ids for e in encodings), np.int32, size)
        spans = np.fromiter(
            chain.from_iterable(chain.from_iterable(e.offsets for e in encodings)), np.int32, 2 * size
        ).reshape(size, 2)
        return Spans(ids, spans[:, 0], spans[:, 1], pretokens, counts)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of some ids."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def token(self, token_id: int) -> str:
        """Return a token as the vocabulary writes it; an id without a token gives an empty string."""
        return self._backend.id_to_token(token_id) or ""

    def token_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary writes it."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def save(
        self,
        folder: Path,
        *,
        kind: Kind = "encoder",
        max_length: int | None = None,
        token_types: bool = False,
    ) -> None:
        """Write a folder that `transformers.AutoTokenizer` opens with the same ids, and without code.

        Args:
            folder: created if missing; its tokenizer files are written anew.
            kind: what `transformers` puts around a text. "encoder": `[CLS] text [SEP]`, pairs with type ids 0 and 1;
                "decoder": the begin token in front, as rows of the store do after a document's end; "encoder_decoder": the
                separator behind, as T5. A loaded tokenizer that has a template of its own keeps it.
            max_length: longest input of the model, in tokens; None leaves it open.
            token_types: the model takes `token_type_ids` (BERT does, ModernBERT refuses them).
        """
        folder.mkdir(parents=True, exist_ok=True)
        backend = Backend.from_str(self._backend.to_str())
        if (template := self._template(kind)) is not None:
            backend.post_processor = template
        write_json(folder / "tokenizer.json", json.loads(backend.to_str()))
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "padding_side": "right",
        }
        if token_types:
            settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        if max_length is not None:
            settings["model_max_length"] = max_length
        settings |= {f"{role}_token": token for role, token in self.roles.items()}
        write_json(folder / "tokenizer_config.json", settings)
        if self.algorithm == "wordpiece":
            vocab = self._backend.get_vocab(with_added_tokens=False)
            if sorted(vocab.values()) == list(range(len(vocab))):
                (folder / "vocab.txt").write_text(
                    "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__)), encoding="utf-8"
                )

    def _template(self, kind: Kind) -> Any:
        """Return the template to put around texts; None leaves what the backend has."""
        templates: dict[Kind, Any] = {
            "encoder": self._encoder_template(),
            "decoder": self._decoder_template(),
            "encoder_decoder": self._ending_template(),
        }
        own = json.loads(self._backend.to_str())["post_processor"]
        ours = [_as_json(template) for template in templates.values() if template is not None]
        return templates[kind] if own is None or own in ours else None

    def _encoder_template(self) -> Any:
        cls, sep = self.roles.get("cls"), self.roles.get("sep")
        if cls is None or sep is None:
            return None
        return processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, self.cls_id), (sep, self.sep_id)],
        )

    def _decoder_template(self) -> Any:
        bos = self.roles.get("bos")
        if bos is None:
            return None
        return processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:0 $B:0", special_tokens=[(bos, self.bos_id)]
        )

    def _ending_template(self) -> Any:
        token = self.token(self.separator_id)
        return processors.TemplateProcessing(
            single=f"$A:0 {token}:0",
            pair=f"$A:0 {token}:0 $B:0 {token}:0",
            special_tokens=[(token, self.separator_id)],
        )


def _as_json(template: Any) -> Any:
    """Return a post-processor as `tokenizer.json` writes it."""
    scratch = Backend(models.BPE())
    scratch.post_processor = template
    return json.loads(scratch.to_str())["post_processor"]
