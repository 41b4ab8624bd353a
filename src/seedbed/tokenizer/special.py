"""Name the special tokens and the parts they play.

Every learned vocabulary starts with the five tokens of BERT and a reserve, so that one token store serves every
objective: masked, causal, and span corruption later (its sentinels take reserved places). Loaded vocabularies keep their own
tokens; `find_roles` tells which token plays which part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal

__all__ = ["ROLES", "SEPARATOR", "SPECIAL_TOKENS", "Role", "find_roles", "special_tokens"]

Role = Literal["pad", "unk", "cls", "sep", "mask", "bos", "eos"]

SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The first tokens of every learned vocabulary, ids 0 to 4."""

SEPARATOR: Final = "[SEP]"
"""What stands between documents in the store of a learned vocabulary; decoders begin and end with it."""

ROLES: Final[Mapping[Role, tuple[str, ...]]] = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<s>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "[SEP]"),
    "eos": ("</s>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "[SEP]"),
}
"""The names each part goes by in public vocabularies, most telling first."""


def special_tokens(num_reserved: int) -> list[str]:
    """Return the special tokens of a learned vocabulary in id order."""
    return [*SPECIAL_TOKENS, *(f"[unused{i}]" for i in range(num_reserved))]


def find_roles(tokens: Collection[str], declared: Mapping[str, str]) -> dict[Role, str]:
    """Say which token plays which part: what a configuration declares, else the first known name that is present.

    Args:
        tokens: all tokens of the vocabulary.
        declared: part -> token, as read from a configuration file; tokens that do not exist are ignored.
    """
    roles: dict[Role, str] = {}
    for role, names in ROLES.items():
        candidates = [declared[role], *names] if role in declared else list(names)
        found = next((name for name in candidates if name in tokens), None)
        if found is not None:
            roles[role] = found
    return roles
