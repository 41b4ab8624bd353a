"""Tell in which script a corpus is written: what decides word marks and defaults for Chinese."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ScriptCounter"]


class ScriptCounter:
    """Count letters, and Han characters among them, to tell Chinese text from English."""

    def __init__(self) -> None:
        code_points = map(chr, range(0x10000))
        self._is_letter = np.array([c.isalpha() for c in code_points], dtype=bool)
        self._is_han = np.zeros(0x10000, dtype=bool)
        for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)):
            self._is_han[first : last + 1] = True
        self._letters = self._han = 0

    def add(self, text: str) -> None:
        """Count one text."""
        for start in range(0, len(text), 1 << 20):
            part = text[start : start + (1 << 20)]
            if part.isascii():
                self._letters += int(self._is_letter[np.frombuffer(part.encode("ascii"), np.uint8)].sum())
                continue
            points = np.frombuffer(part.encode("utf-32-le"), np.uint32)
            # BIAS: above the basic plane only Han (planes 2 and 3) counts as letters; other scripts there are rare.
            astral = int(((points >= 0x20000) & (points < 0x40000)).sum())
            points = points[points < 0x10000]
            self._letters += int(self._is_letter[points].sum()) + astral
            self._han += int(self._is_han[points].sum()) + astral

    def result(self) -> dict[str, Any]:
        """Return the share of Han among letters, and the language it suggests."""
        share = self._han / self._letters if self._letters else 0.0
        return {"han_fraction": round(share, 6), "language": "zh" if share > 0.3 else "en"}
