"""Turn raw text files into the `corpus` artifact: clean documents, each once, in train, validation and test splits.

Documents stream from the readers to the shards one at a time; only a table of 16-byte hashes grows with the corpus.
Large-scale cleaning (languages, quality, near duplicates) is not here.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, TextIO

from pydantic import Field, model_validator

from seedbed.artifact import (
    Artifact,
    Draft,
    current_stage,
    file_digest,
    open_verified,
    publish_stage,
    write_json,
)
from seedbed.config import Config
from seedbed.corpus.documents import Reading, Separator, documents_of
from seedbed.corpus.earlier import EARLIER, Earlier, open_earlier, write_hashes
from seedbed.corpus.normalize import UnicodeForm
from seedbed.corpus.readers import Limits
from seedbed.corpus.rejects import Reject, summary
from seedbed.corpus.script import ScriptCounter
from seedbed.corpus.shards import ShardWriter, read_shard
from seedbed.corpus.sources import Source, find_sources
from seedbed.corpus.split import document_hash, split_position
from seedbed.document import SPLITS, Document
from seedbed.errors import ConfigError, DataError
from seedbed.progress import Progress, silent

__all__ = ["CORPUS_VERSION", "CorpusConfig", "build_corpus", "iter_documents", "read_documents"]

CORPUS_VERSION = 1

_SHOWN = 5
"""How many rejects an error message names."""


class CorpusConfig(Config):
    """From which text a model learns, and how it is cleaned."""

    inputs: tuple[str, ...] = Field(
        (),
        description="Files, folders and globs with the text, relative to the working folder; ~ is the home folder.",
    )
    append_to: str | None = Field(
        None,
        description="Run folder whose corpus this one continues: documents it has are left out, everything else of inputs is"
        " trained on, and its validation and test splits are kept as they are. null: a corpus of its own.",
    )
    validation_inputs: tuple[str, ...] = Field(
        (),
        description="Your own validation files, read like inputs. When given, validation_fraction is not used, and"
        " documents of inputs that are among them are left out.",
    )
    format: Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet"] = Field(
        "auto", description="Format of all files. auto: by ending, below .gz and .zst."
    )
    documents: Separator = Field(
        "blank_line",
        description="What separates documents in .txt files: blank lines, nothing (a file is one document), or every"
        " line end. Other formats have one document a record.",
    )
    text_field: str = Field(
        "text",
        min_length=1,
        description="Key or column that holds the text in .jsonl, .csv, .tsv and .parquet.",
    )
    unicode_form: UnicodeForm = Field(
        "NFC",
        description="Unicode normalisation. NFC unites composed and decomposed letters; NFKC also maps full-width,"
        " circled and ligature forms to plain ones, which changes Chinese punctuation; none leaves code points.",
    )
    deduplicate: bool = Field(
        True, description="Keep only the first of documents with equal normalised text."
    )
    min_characters: int = Field(1, ge=1, description="Shorter documents are left out, characters.")
    max_line_bytes: int = Field(
        16 << 20,
        ge=64,
        description="A longer physical line is rejected by number and never held in memory, bytes.",
    )
    max_document_bytes: int = Field(
        16 << 20,
        ge=64,
        description="A longer document is cut at a line end into several, bytes; none of it is lost. At least"
        " max_line_bytes.",
    )
    validation_fraction: float = Field(
        0.05, ge=0.0, lt=1.0, description="Share of documents kept for validation, chosen by hash."
    )
    test_fraction: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of documents kept for a final test, chosen by hash."
    )
    split_seed: int = Field(0, ge=0, lt=2**64, description="Another seed chooses other documents.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError("validation_fraction + test_fraction must leave something for training")
        if self.max_document_bytes < self.max_line_bytes:
            raise ValueError(
                "max_document_bytes must be at least max_line_bytes: documents are cut at line ends"
            )
        if self.append_to is not None and self.validation_inputs:
            raise ValueError(
                "append_to keeps the validation split of the corpus before: leave out validation_inputs"
            )
        return self

    def reading(self) -> Reading:
        """Return what the reader needs."""
        return Reading(
            limits=Limits(self.text_field, self.max_line_bytes, self.max_document_bytes),
            separator=self.documents,
            unicode_form=self.unicode_form,
        )


def build_corpus(
    config: CorpusConfig,
    run: Path,
    *,
    strict: bool = False,
    replace: bool = False,
    progress: Progress = silent,
) -> Artifact:
    """Make the `corpus` stage of a run, or return it when it is up to date.

    Bad lines and files are listed in `rejects.jsonl` and the rest is kept. The same config and files give the same
    bytes, whatever the order in which files are listed.

    Args:
        config: the `corpus` section.
        run: the run folder.
        strict: publish nothing when any line or file is rejected (documents that are left out by design do not count).
        replace: make the stage anew when the run holds it from another config or other inputs.
        progress: is told how many bytes have been read.

    Raises:
        ConfigError: `inputs` is empty.
        DataError: an input matches nothing, nothing is kept, a split that was asked for stays empty, a file changes
            while it is read, or `strict` and something was rejected.
        IncompatibleError: the run holds another corpus and `replace` is false.
        DiskError: the disk is full or the run folder cannot be written.
    """
    if not config.inputs:
        raise ConfigError(
            "corpus.inputs is empty.", hint='name files or folders, e.g. corpus.inputs=["texts/"]'
        )
    earlier = None
    if config.append_to is not None:
        earlier = open_earlier(Path(config.append_to).expanduser(), unicode_form=config.unicode_form)
    found: list[Reject] = []
    validation = find_sources(config.validation_inputs, format=config.format, report=found.append)
    train = find_sources(config.inputs, format=config.format, report=found.append)
    shared = {source.name for source in validation} & {source.name for source in train}
    validation, train = _told_apart(validation, shared), _told_apart(train, shared)
    if not train or (config.validation_inputs and not validation):
        which = "inputs" if not train else "validation_inputs"
        raise DataError(
            f"no readable file in corpus.{which}: {summary(found[:_SHOWN])}.", hint="fix these files"
        )
    inputs = {**_digests("validation", validation, progress), **_digests("train", train, progress)}
    # A file that cannot be read is an input too: once it can, the stage is out of date.
    inputs.update({f"rejected {reject.file}": reject.kind for reject in found})

    values = config.model_dump(mode="json")
    if earlier is None:
        values.pop("append_to")
    else:
        inputs["append_to"] = earlier.artifact.digest
    artifact = current_stage(
        run, "corpus", version=CORPUS_VERSION, config=values, inputs=inputs, replace=replace
    )
    if artifact is not None:
        if strict and artifact.counts["faults"]:
            raise _strict_error(artifact.counts["faults"], _first_faults(artifact))
        return artifact
    with publish_stage(run, "corpus", version=CORPUS_VERSION, config=values, inputs=inputs) as draft:
        _write(config, draft, validation, train, inputs, found, earlier, strict=strict, progress=progress)
    return open_verified(run / "corpus", stage="corpus", version=CORPUS_VERSION)


def iter_documents(artifact: Artifact, split: str) -> Iterator[Document]:
    """Stream the documents of one split of a corpus artifact, in the order in which they were written.

    Raises:
        IntegrityError: a shard was changed; found when it is first touched.
    """
    assert split in SPLITS, split
    sources = [s["name"] for s in json.loads(artifact.file("sources.json").read_bytes())]
    for name in artifact.files:
        if name.startswith(f"{split}-") and name.endswith(".parquet"):
            yield from read_shard(artifact.file(name), sources)


def read_documents(
    inputs: Sequence[str], config: CorpusConfig | None = None, *, rejects: list[Reject] | None = None
) -> Iterator[Document]:
    """Stream clean documents straight from raw files, for evaluation on files of the user's own.

    Normalised like a corpus, without removing duplicates or short documents and without splits.

    Args:
        inputs: files, folders and globs.
        config: how files are read and cleaned; its `inputs` are not used. Default: `CorpusConfig()`.
        rejects: is filled with every line and file that was not kept.

    Raises:
        DataError: an input matches nothing.
    """
    config = config or CorpusConfig()
    report = (rejects if rejects is not None else []).append
    for source in find_sources(inputs, format=config.format, report=report):
        yield from documents_of(source, config.reading(), report)


# -------------------------------------------------------------------------------------------- files to documents


def _told_apart(sources: Sequence[Source], shared: set[str]) -> list[Source]:
    """Call files by their whole path where a training and a validation file have the same short name."""
    return [dataclasses.replace(s, name=str(s.path)) if s.name in shared else s for s in sources]


def _digests(role: str, sources: Sequence[Source], progress: Progress) -> dict[str, str]:
    digests: dict[str, str] = {}
    for index, source in enumerate(sources):
        try:
            digests[f"{role} {source.name}"] = file_digest(source.path)
        except OSError as error:
            raise DataError(
                f"{source.path} cannot be read to its end: {error.strerror}.",
                hint="check the disk and the permissions, or leave the file out",
            ) from error
        progress(f"hashing {role} files", done=index + 1, total=len(sources), unit="files")
    return digests


# ------------------------------------------------------------------------------------------ documents to artifact


class _Ledger:
    """Write rejects to a file as they come; keep their counts and the first faults."""

    def __init__(self, file: TextIO) -> None:
        self.kinds: Counter[str] = Counter()
        self.first_faults: list[Reject] = []
        self.faults = 0
        self._file = file

    def __call__(self, reject: Reject) -> None:
        self.kinds[reject.kind] += 1
        if reject.is_fault:
            self.faults += 1
            if len(self.first_faults) < _SHOWN:
                self.first_faults.append(reject)
        self._file.write(json.dumps(reject.as_json(), ensure_ascii=False) + "\n")


def _write(
    config: CorpusConfig,
    draft: Draft,
    validation: Sequence[Source],
    train: Sequence[Source],
    inputs: dict[str, str],
    found: Sequence[Reject],
    earlier: Earlier | None,
    *,
    strict: bool,
    progress: Progress,
) -> None:
    """Fill the artifact's folder."""
    sources = [*validation, *train]
    sizes = [source.path.stat() for source in sources]
    total, done = sum(s.st_size for s in sizes), 0
    script, reading = ScriptCounter(), config.reading()
    # The first document of each text, as (is validation, source, line): about 190 bytes a document.
    first: dict[bytes, tuple[bool, int, int]] = {}
    num_read = 0

    with ExitStack() as stack:
        ledger = _Ledger(stack.enter_context((draft.path / "rejects.jsonl").open("w", encoding="utf-8")))
        for reject in sorted(found, key=lambda r: (r.file, r.reason)):
            ledger(reject)
        writers = {split: stack.enter_context(ShardWriter(draft.path, split)) for split in SPLITS}
        for index, source in enumerate(sources):
            is_validation = index < len(validation)

            def tick(position: int, before: int = done) -> None:
                progress("reading", done=before + position, total=total, unit="bytes")

            for document in documents_of(source, reading, ledger, tick):
                num_read += 1
                digest = document_hash(document.text)
                reject_ = None if earlier is None else _in_earlier(document, digest, earlier)
                if reject_ := reject_ or _left_out(
                    document, first.get(digest), is_validation, sources, config
                ):
                    ledger(reject_)
                    continue
                if config.deduplicate or is_validation:
                    first.setdefault(digest, (is_validation, index, document.line_numbers[0]))
                split = _split_of(digest, is_validation, config)
                writers[split].add(document.text, index, document.line_numbers, digest)
                script.add(document.text)
            _check_unchanged(source, sizes[index])
            done += sizes[index].st_size
        progress("reading", done=total, total=total, unit="bytes")
        if earlier is not None:
            for split in ("validation", "test"):
                for kept, index, digest in earlier.documents(split):
                    writers[split].add(kept.text, len(sources) + index, kept.line_numbers, digest)
                    script.add(kept.text)
            write_hashes(earlier.trained, draft.path / EARLIER)

    if strict and ledger.faults:
        raise _strict_error(ledger.faults, ledger.first_faults)
    _check_splits(config, {split: writer.documents for split, writer in writers.items()}, ledger)
    described = _describe_sources(validation, train, inputs)
    described += [{**source, "role": "earlier"} for source in (earlier.sources if earlier else ())]
    write_json(draft.path / "sources.json", described)
    draft.counts.update(
        {
            "splits": {split: writer.counts() for split, writer in writers.items()},
            "documents_read": num_read,
            "files": len(sources),
            "faults": ledger.faults,
            "rejects": dict(sorted(ledger.kinds.items())),
            "duplicates": ledger.kinds["duplicate"] + ledger.kinds["in_validation"],
            **script.result(),
        }
    )


def _in_earlier(document: Document, digest: bytes, earlier: Earlier) -> Reject | None:
    """Return why a document that the corpus before has is not kept, or None."""
    what = (
        "kept for validation or test by"
        if digest in earlier.held_out
        else "in the training text of"
        if digest in earlier.trained
        else ""
    )
    if not what:
        return None
    run = earlier.artifact.path.parent
    return Reject(document.source, document.line_numbers[0], "earlier", f"the text is {what} {run}")


def _left_out(
    document: Document,
    earlier: tuple[bool, int, int] | None,
    is_validation: bool,
    sources: Sequence[Source],
    config: CorpusConfig,
) -> Reject | None:
    """Return why a document is not kept, or None."""
    place, line = document.source, document.line_numbers[0]
    if len(document.text) < config.min_characters:
        reason = f"{len(document.text)} characters, fewer than min_characters = {config.min_characters}"
        return Reject(place, line, "short", reason)
    if earlier is not None:
        in_validation, index, at = earlier
        where = f"{sources[index].name}, line {at}"
        if in_validation and not is_validation:
            return Reject(
                place, line, "in_validation", f"the same text as the validation document at {where}"
            )
        if config.deduplicate:
            return Reject(place, line, "duplicate", f"the same text as the document at {where}")
    return None


def _split_of(digest: bytes, is_validation: bool, config: CorpusConfig) -> str:
    """Return the split: [0, validation) validation, then test, then train.

    BIAS: shares are of documents, not of bytes; with few or very unequal documents the shares of text differ.
    """
    if is_validation:
        return "validation"
    position = split_position(digest, config.split_seed)
    if config.append_to is not None:
        return "train"
    share = 0.0 if config.validation_inputs else config.validation_fraction
    return (
        "validation" if position < share else "test" if position < share + config.test_fraction else "train"
    )


def _check_splits(config: CorpusConfig, documents: dict[str, int], ledger: _Ledger) -> None:
    kept = sum(documents.values())
    if not kept:
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(ledger.kinds.items())) or "no text found"
        faults = f" First: {summary(ledger.first_faults)}." if ledger.first_faults else ""
        raise DataError(f"no document was kept ({counts}).{faults}", hint="check the files and corpus.format")
    wanted = {
        "train": True,
        "validation": bool(config.validation_fraction or config.validation_inputs) and not config.append_to,
        "test": bool(config.test_fraction) and not config.append_to,
    }
    for split, is_wanted in wanted.items():
        if is_wanted and not documents[split]:
            other = "" if split == "train" else f"raise corpus.{split}_fraction, "
            own = "" if split == "test" else "give corpus.validation_inputs, "
            raise DataError(
                f"the {split} split is empty: the corpus has only {kept} documents.",
                hint=f"{other}{own}or cut the text into more documents (corpus.documents)",
            )


def _check_unchanged(source: Source, before: Any) -> None:
    try:
        after = source.path.stat()
        is_same = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    except FileNotFoundError:
        is_same = False
    if not is_same:
        raise DataError(
            f"{source.path} changed while it was read.", hint="run again when nothing writes to it"
        )


def _first_faults(artifact: Artifact) -> list[Reject]:
    """Return the first faults that an artifact's list of rejects names."""
    with artifact.file("rejects.jsonl").open(encoding="utf-8", newline="\n") as file:
        faults = (reject for line in file if (reject := Reject(**json.loads(line))).is_fault)
        return list(islice(faults, _SHOWN))


def _strict_error(count: int, shown: Sequence[Reject]) -> DataError:
    return DataError(
        f"{count} lines or files were rejected, and strict allows none: {summary(shown)}.",
        hint="fix them, or run without --strict to keep the good ones and list these in rejects.jsonl",
    )


def _describe_sources(
    validation: Sequence[Source], train: Sequence[Source], inputs: dict[str, str]
) -> list[dict[str, Any]]:
    return [
        {"name": source.name, "role": role, "sha256": inputs[f"{role} {source.name}"]}
        for role, sources in (("validation", validation), ("train", train))
        for source in sources
    ]
