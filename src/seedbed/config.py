"""Typed configuration: tables to unions, YAML in and out, dotted overrides, errors that name the nearest key.

A config is a frozen pydantic model beside the class it configures; this module holds what they share. Which sections a
recipe has is decided in `recipe.py`.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError
from pydantic.fields import FieldInfo

from seedbed.errors import ConfigError

__all__ = ["Config", "commented_yaml", "json_schema", "load_config", "one_of", "read_yaml", "validate"]


class Config(BaseModel):
    """Base of every config: frozen, no unknown keys, every field with a description and a default that works."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def updated(self, **changes: Any) -> Self:
        """Return a validated copy with some fields changed."""
        # Values themselves, not their dump: a section built in code has its kind in its class, not among its set fields.
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate({**given, **changes})


C = TypeVar("C", bound=Config)


def one_of(table: Mapping[str, type[Config]], *, default: str | None = None) -> Any:
    """Turn a table of named configs into a pydantic field type: a union told apart by its `name` key.

    Args:
        table: name to config; each has a field `name: Literal["<its key>"]` with that default.
        default: the kind meant where a section has no `name`; None makes the name required.
    """

    def tag(value: Any) -> Any:
        return value.get("name", default) if isinstance(value, Mapping) else getattr(value, "name", None)

    kinds = tuple(Annotated[kind, Tag(name)] for name, kind in table.items())
    return Annotated[Union[kinds], Discriminator(tag)]  # noqa: UP007 - built from a table, cannot be written with |


def json_schema(kind: type[Config]) -> dict[str, Any]:
    """Return the JSON schema editors complete and check a file with.

    Pydantic writes a union as `oneOf`, and an editor refuses a section that fits several kinds, as one without a `name`
    does; `anyOf` says what is meant.
    """

    def loosened(node: Any) -> Any:
        if isinstance(node, dict):
            return {"anyOf" if key == "oneOf" else key: loosened(value) for key, value in node.items()}
        return [loosened(value) for value in node] if isinstance(node, list) else node

    schema: dict[str, Any] = loosened(kind.model_json_schema())
    return schema


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key given twice: YAML forbids it, PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """The safe dumper, with texts that hold a line end escaped: plain and single-quoted ones do not survive nesting."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if any(end in text for end in "\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping with the safe loader.

    Raises:
        ConfigError: the file is missing, is not UTF-8 YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        is_override = "=" in str(path)
        raise ConfigError(
            f"cannot read the recipe {path}: {error.strerror}.",
            hint="the file of the recipe comes first, keys to change (key=value) behind it"
            if is_override
            else "seedbed config prints a complete recipe to start from",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 (byte {error.start}).", hint="save the recipe as UTF-8"
        ) from error
    try:
        data = _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise ConfigError(
            f"{place}: not valid YAML: {getattr(error, 'problem', error)}.",
            hint="check the indentation and the colons",
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} holds a {type(data).__name__}, not a mapping of sections.",
            hint="start lines with 'section:' as `seedbed config` prints them",
        )
    return data


def load_config(kind: type[C], path: Path | None, overrides: Sequence[str] = ()) -> C:
    """Build a config from a YAML file and dotted overrides such as `training.budget_minutes=20`.

    Override values are parsed with `yaml.safe_load`, so `a.b=[1, 2]`, `a.b=null` and `a.b=0.1` mean what they say.

    Raises:
        ConfigError: unreadable file, malformed override, unknown key (names the nearest known one), wrong value.
    """
    data = read_yaml(path) if path is not None else {}
    for override in overrides:
        key, separator, raw = override.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"override {override!r} is not of the form section.key=value.",
                hint="for example training.budget_minutes=20",
            )
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"override {override!r}: the value is not valid YAML.",
                hint="quote it, for example 'tokens.x=\"a: b\"'",
            ) from error
        node = data
        *parents, last = key.split(".")
        for parent in parents:
            child = node.get(parent)
            if child is None:
                child = node[parent] = {}
            if not isinstance(child, dict):
                raise ConfigError(
                    f"override {override!r}: {parent} is a single value, not a section.",
                    hint=f"write {parent}=... instead",
                )
            node = child
        node[last] = value
    return validate(kind, data, place=str(path) if path is not None else "command line")


def validate(kind: type[C], data: Mapping[str, Any], *, place: str) -> C:
    """Validate `data` as `kind`, with one readable `ConfigError` for everything that is wrong."""
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        problems = [_explain(kind, detail) for detail in error.errors(include_url=False)]
        lines = "; ".join(problem for problem, _ in problems)
        hints = list(dict.fromkeys(hint for _, hint in problems if hint))
        raise ConfigError(
            f"{place}: {lines}.", hint="; ".join(hints) or "seedbed config prints every key with its meaning"
        ) from error


def _explain(kind: type[BaseModel], detail: Any) -> tuple[str, str | None]:
    """Turn one pydantic error into a sentence and, where one is known, a hint."""
    location = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        *parents, unknown = location
        kinds, path = _kinds_at(kind, parents)
        known = [key for k in kinds for key in k.model_fields]
        nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
        where = f"{'.'.join(path)}.{unknown}" if path else unknown
        hint = (
            f"did you mean {'.'.join([*path, nearest[0]])}?"
            if nearest
            else f"known keys here: {', '.join(sorted(known))}"
        )
        return f"unknown key {where}", hint
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kinds, path = _kinds_at(kind, location)
        expected = [str(k.model_fields["name"].default) for k in kinds]
        where = ".".join([*path, "name"])
        choices = f"choose one of {', '.join(expected)}"
        if detail["type"] == "union_tag_not_found":
            if isinstance(detail["input"], Mapping):
                return f"{where} is missing", choices
            return f"{'.'.join(path)} is not a section (found {_shown(detail['input'])})", choices
        found = str(detail["ctx"]["tag"])
        nearest = difflib.get_close_matches(found, expected, n=1, cutoff=0.4)
        return (
            f"{where} is {found!r}, which is not known",
            f"did you mean {nearest[0]}?" if nearest else choices,
        )
    _, path = _kinds_at(kind, location)
    message = detail["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path) or 'recipe'}: {message} (found {_shown(detail['input'])})", None


def _shown(value: Any) -> str:
    """Write a value into a message, not longer than 60 characters."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _members(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield every config class inside an annotation, through unions, optionals and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (Union, types.UnionType, Annotated):
        for argument in typing.get_args(annotation):
            yield from _members(argument)


def _kinds_at(kind: type[BaseModel], location: Sequence[str]) -> tuple[list[type[BaseModel]], list[str]]:
    """Return the configs possible at an error location, and the location without the union tags pydantic puts into it."""
    kinds: list[type[BaseModel]] = [kind]
    path: list[str] = []
    for part in location:
        # Where a union is open its tag comes next, also where a field of one of its members has that very name.
        tagged = [k for k in kinds if "name" in k.model_fields and k.model_fields["name"].default == part]
        if tagged and len(kinds) > 1:
            kinds = tagged
            continue
        if any(part in k.model_fields for k in kinds):
            kinds = [
                m for k in kinds if part in k.model_fields for m in _members(k.model_fields[part].annotation)
            ]
            path.append(part)
        elif tagged:
            kinds = tagged
        else:
            path.append(part)
    return kinds, path


def commented_yaml(config: Config, *, depth: int = 0, only: Sequence[str] | None = None) -> str:
    """Print a config as YAML with every field's description as a comment above it.

    The result parses back to an equal config. `only` prints some top-level fields.
    """
    lines: list[str] = []
    indent = "  " * depth
    for name, field in type(config).model_fields.items():
        if only is not None and name not in only:
            continue
        value = getattr(config, name)
        for comment in _comment(field):
            lines.append(f"{indent}# {comment}")
        if isinstance(value, Config):
            body = commented_yaml(value, depth=depth + 1)
            lines.append(f"{indent}{name}:" if body.strip() else f"{indent}{name}: {{}}")
            if body.strip():
                lines.append(body.rstrip("\n"))
        else:
            plain = config.model_dump(mode="json", include={name})[name]
            text = (
                yaml.dump(plain, Dumper=_Dumper, allow_unicode=True, default_flow_style=True, width=10_000)
                .strip(" \n")  # of YAML's own blanks only: others are text
                .removesuffix("...")
                .strip(" \n")
            )
            lines.append(f"{indent}{name}: {text}")
    return "\n".join(lines) + "\n"


def _comment(field: FieldInfo) -> list[str]:
    """Wrap a field's description to comment lines."""
    words = (field.description or "").split()
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) < 100:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
