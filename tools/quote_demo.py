"""Put what a demo printed into a README.

    seedbed demo 2> demo.txt && python tools/quote_demo.py README.md demo.txt
    seedbed demo --lang zh 2> demo.txt && python tools/quote_demo.py README.zh.md demo.txt

Replaces the block after `<!-- demo -->` by the figures and the first two samples.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SAMPLES = 2


def excerpt(printed: str) -> str:
    """Return the part that says what was learned, with the first samples."""
    lines = printed[printed.index("what it learned") :].splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"  \S", line)]
    return "\n".join(line.rstrip() for line in lines[1 : starts[SAMPLES]])


def main(readme: Path, printed: Path) -> None:
    """Rewrite the README in place."""
    text, count = re.subn(
        r"(<!-- demo -->\n```\n).*?(\n```\n)",
        lambda match: match[1] + excerpt(printed.read_text(encoding="utf-8")) + match[2],
        readme.read_text(encoding="utf-8"),
        flags=re.S,
    )
    assert count == 1, f"{readme} has {count} blocks after <!-- demo -->"
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
