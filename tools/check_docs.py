"""Check what the docs say against what is there: links, pages, commands, recipe keys, the two READMEs.

    python tools/check_docs.py          prints what is wrong, exits 1 if anything is

`make check` runs it; tests/test_docs.py holds it to finding things.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from seedbed.cli import COMMANDS, _parser
from seedbed.config import Config, _members, validate
from seedbed.errors import ConfigError
from seedbed.recipe import Recipe

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
UNMEASURED = re.compile(r"^(?:MEASURED|\(output\))", re.M)
FILE_ENDINGS = {"json", "py", "md", "yaml", "txt", "html", "bin", "model", "parquet", "jsonl", "safetensors"}


def pages(root: Path) -> list[Path]:
    """Return every page that is checked."""
    return [
        *sorted(root.glob("README*.md")),
        *(root / name for name in ("CONTRIBUTING.md", "CHANGELOG.md") if (root / name).exists()),
        *sorted((root / "docs").rglob("*.md")),
    ]


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as the docs builder and GitHub make them."""
    found = set()
    for line in prose(text).splitlines():
        if heading := re.fullmatch(r"#{1,6} (.+)", line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "")
            found.add(re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Yield links to files or headings that are not there."""
    for link in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists():
            yield f"link to {link}, which does not exist"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            yield f"link to {link}: no such heading"


def outside_nav(root: Path) -> Iterator[str]:
    """Yield pages the navigation does not have, and entries without a page."""

    def entries(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from entries(child)

    listed = list(entries(yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    there = {path.relative_to(root / "docs").as_posix() for path in (root / "docs").rglob("*.md")}
    yield from (f"docs/{name} is not in the nav of mkdocs.yml" for name in sorted(there - set(listed)))
    yield from (f"mkdocs.yml names docs/{name}, which does not exist" for name in listed if name not in there)


def wrong_commands(text: str) -> Iterator[str]:
    """Yield commands with a verb, an option or a recipe key that does not exist."""
    blocks = [
        line.strip()
        for _, language, code in FENCE.findall(text)
        if language in ("", "bash", "sh")
        for line in code.splitlines()
    ]
    shown = [line for line in blocks if re.match(r"(\$ )?([\w./]*/)?seedbed [a-z]", line)]
    shown += [code for code in INLINE.findall(prose(text)) if re.match(r"seedbed [a-z]", code)]
    for line in shown:
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)[1:]
        except ValueError as error:
            yield f"`{line}`: {error}"
            continue
        words = words[: words.index(">")] if ">" in words else words
        if words[0] not in COMMANDS:
            yield f"`{line}`: there is no command {words[0]!r}"
        elif len(words) > 1:
            yield from (f"`{line}`: {problem}" for problem in wrong_words(words))


def wrong_words(words: list[str]) -> Iterator[str]:
    """Yield what the parser of a verb, or the recipe, does not know of the words after it."""
    module = __import__(COMMANDS[words[0]][0], fromlist=["run"])
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            _parser(words[0], module).parse_intermixed_args(words[1:])
    except SystemExit as error:
        if error.code:
            yield complaint.getvalue().strip().splitlines()[-1]
    kind = module.config_kind() if hasattr(module, "config_kind") else Recipe
    for word in words[1:]:
        key, is_override, _ = word.partition("=")
        if is_override and re.fullmatch(r"[a-z_0-9.]+", key) and not is_known(key, kind):
            yield f"{key} is no key of a recipe"


def is_known(key: str, kind: type[BaseModel] = Recipe) -> bool:
    """Say whether a dotted key exists in a recipe (or another config), in any kind of its sections."""
    first, _, rest = key.partition(".")
    if rest and kind is not Recipe and first == "recipe" and first in kind.model_fields:
        return is_known(rest)  # of a comparison, which holds a recipe's sections as they are given
    kinds: list[type[BaseModel]] = [kind]
    for part in key.split("."):
        fields = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
        if not fields:
            return False
        kinds = [member for field in fields for member in _members(field.annotation)]
    return True


def wrong_keys(text: str) -> Iterator[str]:
    """Yield dotted recipe keys in backticks, and recipes in YAML blocks, that the recipe does not have."""
    for code in INLINE.findall(prose(text)):
        key = re.split(r"[=:]", code, maxsplit=1)[0].strip()
        parts = key.split(".")
        looks = re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", key) and parts[0] in Recipe.model_fields
        if looks and parts[-1] not in FILE_ENDINGS and not is_known(key):
            yield f"`{code}`: {key} is no key of a recipe"
    for _, language, code in FENCE.findall(text):
        if language == "yaml" and "--8<--" not in code:
            data = yaml.safe_load(code)
            if isinstance(data, dict) and set(data) & set(Recipe.model_fields):
                try:
                    validate(typing.cast(type[Config], Recipe), data, place="a recipe shown")
                except ConfigError as error:
                    yield str(error)


def differing_readmes(root: Path) -> Iterator[str]:
    """Yield how the two READMEs differ in sections or code; what the demo prints may differ."""

    def outline(name: str) -> tuple[list[int], list[str]]:
        text = (root / name).read_text(encoding="utf-8")
        levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(text), re.M)]
        shown = re.sub(r"<!-- demo -->\n```.*?^```", "", text, flags=re.M | re.S)
        return levels, [code for _, _, code in FENCE.findall(shown)]

    (levels, codes), (levels_zh, codes_zh) = outline("README.md"), outline("README.zh.md")
    if levels != levels_zh:
        yield f"README.md has headings of levels {levels}, README.zh.md {levels_zh}"
    for number, (code, code_zh) in enumerate(zip(codes, codes_zh, strict=False), start=1):
        if code != code_zh:
            yield f"code block {number} of README.md and README.zh.md differ"
    if len(codes) != len(codes_zh):
        yield f"README.md has {len(codes)} code blocks, README.zh.md {len(codes_zh)}"


def problems(root: Path = ROOT) -> list[str]:
    """Return everything that is wrong."""
    found = [*outside_nav(root), *differing_readmes(root)]
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(root)
        for check in (broken_links(page, text), wrong_commands(text), wrong_keys(text)):
            found += [f"{name}: {problem}" for problem in check]
        found += [f"{name}: a figure is missing at {m[0]!r}" for m in UNMEASURED.finditer(text)]
    return found


if __name__ == "__main__":
    wrong = problems()
    sys.stdout.write("".join(f"{problem}\n" for problem in wrong))
    sys.exit(1 if wrong else 0)
