"""Publish and open artifacts: folders that are complete, verified and never change.

A folder is an artifact when it holds `manifest.json`, written last: stage, version, key, resolved config, digests of
the inputs, counts, and the sha256 of every file. `publish` is the only writer and `open_verified` the only reader.
A stage of a run is a pointer (a relative symbolic link, swapped atomically) to such a folder, so that replacing one is
never seen half done. Run folders with their growing logs and locks are not artifacts; they live in `training/`.

    runs/wiki/                     a run
        corpus -> .stages/corpus-1f2e3d4c5b6a        the pointer
        .stages/corpus-1f2e3d4c5b6a/manifest.json    the artifact
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from seedbed.errors import DiskError, IncompatibleError, IntegrityError, disk_errors

__all__ = [
    "MANIFEST",
    "Artifact",
    "Draft",
    "current_stage",
    "digest_of",
    "file_digest",
    "flush_to_disk",
    "open_verified",
    "publish",
    "publish_stage",
    "read_json",
    "read_sealed_json",
    "remove",
    "stage_key",
    "sweep",
    "verify_if_artifact",
    "write_json",
    "write_sealed_json",
    "write_text",
]

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 20


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    ).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the key under which a stage's result is reused: its section, its inputs' content, its version."""
    return digest_of({"stage": stage, "version": version, "config": dict(config), "inputs": dict(inputs)})


@dataclass(slots=True)
class Draft:
    """A folder being filled; becomes an artifact when its `publish` block ends without an error."""

    path: Path
    counts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Artifact:
    """A complete folder whose manifest was checked; files are verified the first time they are asked for."""

    path: Path
    manifest: dict[str, Any]
    _verified: set[str] = field(default_factory=set)

    @property
    def digest(self) -> str:
        """Content digest: stage, version and files; independent of where and when it was made."""
        return str(self.manifest["digest"])

    @property
    def counts(self) -> dict[str, Any]:
        """The stage's counts."""
        return dict(self.manifest["counts"])

    @property
    def files(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(self.manifest["files"])

    def file(self, name: str) -> Path:
        """Return the path of one file after checking its sha256 (once per artifact object).

        Raises:
            IntegrityError: the file is missing or its content differs; names the file and both hashes.
        """
        path = self.path / name
        if name in self._verified:
            return path
        expected = self.manifest["files"].get(name)
        if expected is None:
            raise IntegrityError(
                f"{self.path} has no file {name!r}; its manifest lists {', '.join(self.files)}."
            )
        if not path.is_file():
            raise IntegrityError(
                f"{path} is missing, though the manifest lists it.",
                hint="restore it from a copy, or rerun the stage",
            )
        found = file_digest(path)
        if found != expected["sha256"]:
            raise IntegrityError(
                f"{path} was changed after it was written: sha256 {found}, expected {expected['sha256']}.",
                hint="restore it from a copy, or rerun the stage",
            )
        self._verified.add(name)
        return path

    def verify(self) -> None:
        """Check every file."""
        for name in self.files:
            self.file(name)


@contextmanager
def publish(
    target: Path,
    *,
    stage: str,
    version: int,
    config: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    needed_bytes: int = 0,
) -> Iterator[Draft]:
    """Fill a folder and make it an artifact: write beside, flush, manifest last, rename, flush the folder.

    Args:
        target: the folder to create. It must not exist: artifacts are never overwritten.
        stage: what kind of artifact this is, for example "corpus".
        version: version of the stage's format and meaning.
        config: the resolved config of the stage, as plain JSON values.
        inputs: content digests of what it was made from, by name.
        needed_bytes: about how large it will be, said where the disk is full; 0: not known.

    Half-written folders that killed writers left beside `target` are removed first.

    Raises:
        DiskError: the disk is full or the folder cannot be written. The half-written folder is removed.
        IncompatibleError: `target` exists.
    """
    if target.exists():
        raise IncompatibleError(
            f"{target} exists already; artifacts are never overwritten.",
            hint="choose another name or remove it",
        )
    sweep(target.parent)
    temporary = _temporary(target)
    with disk_errors(target, doing="writing", needed_bytes=needed_bytes):
        try:
            made = [parent for parent in temporary.parents if not parent.exists()]
            temporary.mkdir(parents=True)
            draft = Draft(temporary)
            yield draft
            files: dict[str, dict[str, Any]] = {}
            for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
                flush_to_disk(path)
                files[path.relative_to(temporary).as_posix()] = {
                    "sha256": file_digest(path),
                    "bytes": path.stat().st_size,
                }
            manifest: dict[str, Any] = {
                "format": FORMAT,
                "stage": stage,
                "version": version,
                "key": stage_key(stage, version, config or {}, inputs or {}),
                "config": dict(config or {}),
                "inputs": dict(inputs or {}),
                "counts": draft.counts,
                "files": files,
                "digest": digest_of(
                    {"stage": stage, "version": version, "files": {n: f["sha256"] for n, f in files.items()}}
                ),
            }
            manifest["root"] = digest_of(manifest)
            write_json(temporary / MANIFEST, manifest)
            for folder in [temporary, *(p for p in temporary.rglob("*") if p.is_dir())]:
                flush_to_disk(folder)
            os.rename(temporary, target)
            flush_to_disk(target.parent)
            for parent in made:  # the folders that lead to it are new names too
                flush_to_disk(parent.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def open_verified(path: Path | str, *, stage: str | None = None, version: int | None = None) -> Artifact:
    """Open an artifact: check its manifest, its format and that every listed file is there with its size.

    Contents are hashed by `Artifact.file` when first touched, so opening a large artifact is quick.

    Raises:
        IntegrityError: unfinished (no manifest), damaged manifest, missing or truncated file.
        IncompatibleError: another stage than asked for, or a version this release does not read.
    """
    path = Path(path)
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        what = (
            "does not exist"
            if not path.exists()
            else f"has no {MANIFEST}: it is unfinished, or not made by seedbed"
        )
        raise IntegrityError(
            f"{path} {what}.",
            hint=f"run the stage that makes it{f' (seedbed {stage} RECIPE)' if stage else ''}",
        )
    try:
        written = manifest_path.read_bytes()
        manifest = json.loads(written)
        # The bytes too, since 1e-08 and 1E-08 are the same value and not the same file.
        is_as_written = _json_bytes(manifest) == written
        root = manifest.pop("root")
        sound = is_as_written and digest_of(manifest) == root
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{manifest_path} is damaged: {error}.", hint="restore it from a copy, or rerun the stage"
        ) from error
    if not sound:
        raise IntegrityError(
            f"{manifest_path} was changed after it was written: sha256 {digest_of(manifest)}, expected {root}.",
            hint="restore it from a copy, or rerun the stage",
        )
    manifest["root"] = root
    if manifest["format"] != FORMAT:
        raise IncompatibleError(
            f"{path} has artifact format {manifest['format']}; this release reads {FORMAT}.",
            hint="rerun the stage",
        )
    if stage is not None and manifest["stage"] != stage:
        raise IncompatibleError(
            f"{path} is a {manifest['stage']!r} artifact, not {stage!r}.",
            hint=f"give the folder that `seedbed {stage}` made",
        )
    if version is not None and manifest["version"] != version:
        raise IncompatibleError(
            f"{path} has {manifest['stage']} version {manifest['version']}; this release reads {version}.",
            hint="rerun the stage",
        )
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise IntegrityError(
                f"{file} is missing, though the manifest lists it.",
                hint="restore it from a copy, or rerun the stage",
            )
        if (size := file.stat().st_size) != expected["bytes"]:
            raise IntegrityError(
                f"{file} has {size} bytes, expected {expected['bytes']}.",
                hint="restore it from a copy, or rerun the stage",
            )
    return Artifact(path, manifest)


def verify_if_artifact(folder: Path) -> None:
    """Check every file of a folder that is an artifact, or lies in one (the model of a fine-tune); other folders pass.

    Raises:
        IntegrityError: a file is missing or was changed; names it and both hashes.
    """
    folder = folder.resolve()
    for place in (folder, folder.parent):
        if (place / MANIFEST).is_file():
            artifact = open_verified(place)
            for name in artifact.files:
                if (place / name).is_relative_to(folder):
                    artifact.file(name)
            return


def current_stage(
    run: Path,
    stage: str,
    *,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    replace: bool = False,
) -> Artifact | None:
    """Return the run's finished artifact for this stage if its key is the same, None if the stage must run.

    Raises:
        IncompatibleError: the run holds this stage made from another config, other inputs or by another version,
            and `replace` is false. Names what differs.
    """
    pointer = run / stage
    if not pointer.exists():
        return None
    try:
        artifact = open_verified(pointer, stage=stage)
    except (IntegrityError, IncompatibleError):
        if replace:
            return None
        raise
    if artifact.manifest["key"] == stage_key(stage, version, config, inputs):
        return artifact
    if replace:
        return None
    changes = _changes("", artifact.manifest["config"], dict(config)) + _changes(
        "input ", artifact.manifest["inputs"], dict(inputs)
    )
    if artifact.manifest["version"] != version:
        changes.append(f"version {artifact.manifest['version']} -> {version}")
    raise IncompatibleError(
        f"{pointer} was made differently: {'; '.join(changes[:5])}{' ...' if len(changes) > 5 else ''}.",
        hint="use another run folder (run=...), or --replace to make this stage anew",
    )


@contextmanager
def publish_stage(
    run: Path,
    stage: str,
    *,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    needed_bytes: int = 0,
) -> Iterator[Draft]:
    """Publish a stage of a run and swing its pointer to the new folder; the folder replaced is removed afterwards."""
    key = stage_key(stage, version, config, inputs)
    folder = run / ".stages"
    pointer = run / stage
    if pointer.exists() and not pointer.is_symlink():
        raise DiskError(
            f"{pointer} is a plain folder or file, not a stage of this run.",
            hint="move it away or choose another run folder",
        )
    with disk_errors(run, doing="writing"):
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{stage}-{key[:12]}"
        if (
            target.exists()
        ):  # a damaged or orphaned result with the same key: a fresh name, so that publish never overwrites
            target = folder / f"{stage}-{key[:12]}-{uuid.uuid4().hex[:6]}"
        with publish(
            target, stage=stage, version=version, config=config, inputs=inputs, needed_bytes=needed_bytes
        ) as draft:
            yield draft
        temporary = _temporary(folder / stage)
        temporary.symlink_to(target.relative_to(run))
        os.replace(temporary, pointer)
        flush_to_disk(run)
        # What was replaced, and what a writer killed before its pointer swung had finished.
        for other in folder.glob(f"{stage}-*"):
            if other != target and re.fullmatch(
                rf"{re.escape(stage)}-[0-9a-f]{{12}}(-[0-9a-f]{{6}})?", other.name
            ):
                shutil.rmtree(other, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove an artifact: it loses its name first, so that nobody sees one half removed; a missing one is no error."""
    temporary = _temporary(path)
    with disk_errors(path, doing="removing"):
        try:
            os.rename(path, temporary)
        except FileNotFoundError:
            return
        flush_to_disk(path.parent)
    shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file and flush it to the disk; a reader sees the old content or the new, never a part."""
    _write(path, _json_bytes(value))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a command wrote.

    Raises:
        IntegrityError: it is none any more; names the file and its hash.
    """
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise IntegrityError(
            f"{path} is damaged: {error}; sha256 {file_digest(path)}.",
            hint="restore it from a copy, or start over with --replace",
        ) from error
    return value


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with the sha256 of what it says: for files of a live run that decide how it goes on."""
    write_json(path, {**value, "sha256": digest_of(dict(value))})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote, without the hash; one without a hash, as earlier releases wrote it, is taken as it is.

    Raises:
        IntegrityError: it was changed, or is no JSON object; names the file and both hashes.
    """
    value = read_json(path)
    expected = value.pop("sha256", None)
    if expected is not None and (found := digest_of(value)) != expected:
        raise IntegrityError(
            f"{path} was changed after it was written: sha256 {found}, expected {expected}.",
            hint="restore it from a copy, or start over with --replace",
        )
    return value


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, in the same way."""
    _write(path, text.encode("utf-8"))


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def flush_to_disk(path: Path) -> None:
    """Flush a file's content, or a folder's names, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(target: Path) -> Path:
    """Return a name beside `target` that says who writes there."""
    return target.parent / f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


def sweep(folder: Path) -> None:
    """Remove what writers that are gone (killed) left half written or half removed; a living writer's is left alone."""
    for leftover in folder.glob(".*.tmp"):
        writer = re.fullmatch(r"\..+\.(\d+)-[0-9a-f]{8}\.tmp", leftover.name)
        if writer is None or (_alive(int(writer[1])) and not _is_of_a_namesake(leftover, int(writer[1]))):
            continue
        if leftover.is_symlink():
            leftover.unlink(missing_ok=True)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_of_a_namesake(leftover: Path, pid: int) -> bool:
    """Say whether a killed process of before had the number this one has: in a container all have the same."""
    return pid == os.getpid() and leftover.lstat().st_mtime < psutil.Process().create_time() - 1.0


def _changes(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    changes: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += _changes(f"{prefix}{key}.", before, after)
        else:
            changes.append(f"{prefix}{key} {_short(before)} -> {_short(after)}")
    return changes


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
