"""Bad input: every fault is named by file and physical line, and every good line beside it is kept."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from seedbed.corpus.pipeline import CorpusConfig, read_documents
from seedbed.corpus.rejects import KINDS, Reject

PER_KIND = 10
NUM_GOOD = 20
SECRET = "Geheimnis"
"""Stands in every bad row; must never come back in an error text."""


@dataclass
class Case:
    """One file: its bytes, its good lines in order, its faults as (line, kind)."""

    name: str
    data: bytes = b""
    good: list[str] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)
    make: Callable[[Path], None] | None = None


def _good(rng: random.Random, n: int = NUM_GOOD) -> list[str]:
    words = ["reed", "Straße", "话说天下", "大势", "naïve", "𠀀𠀁", "ocean", "42", "it's"]
    return [f"{i} " + " ".join(rng.choices(words, k=rng.randint(1, 8))) for i in range(n)]


def _text_case(bad: bytes, kind: str) -> Callable[[random.Random], Case]:
    """A .txt file with one bad line among good ones."""

    def build(rng: random.Random) -> Case:
        good = _good(rng)
        at = rng.randint(0, NUM_GOOD)
        lines = [line.encode() for line in good]
        lines.insert(at, bad)
        end = b"\n" if rng.random() < 0.5 else b""
        return Case(".txt", b"\n".join(lines) + end, good, [(at + 1, kind)])

    return build


def _json_case(bad: str | bytes, kind: str) -> Callable[[random.Random], Case]:
    def build(rng: random.Random) -> Case:
        good = _good(rng)
        at = rng.randint(0, NUM_GOOD)
        lines = [
            json.dumps({"text": line, "n": 1}, ensure_ascii=rng.random() < 0.5).encode() for line in good
        ]
        lines.insert(at, bad.encode() if isinstance(bad, str) else bad)
        return Case(".jsonl", b"\n".join(lines) + b"\n", good, [(at + 1, kind)])

    return build


def _csv_case(bad: bytes, kind: str, ending: str = ".csv") -> Callable[[random.Random], Case]:
    def build(rng: random.Random) -> Case:
        good = _good(rng)
        at = rng.randint(0, NUM_GOOD)
        separator = b"," if ending == ".csv" else b"\t"
        lines = [b"7" + separator + line.encode() for line in good]
        lines.insert(at, bad)
        return Case(
            ending, separator.join([b"id", b"text"]) + b"\r\n" + b"\r\n".join(lines), good, [(at + 2, kind)]
        )

    return build


def _truncated_gz(rng: random.Random) -> Case:
    good = _good(rng)
    data = gzip.compress(
        "\n".join(good).encode() + b"\n", compresslevel=0
    )  # stored: the cut decides what is left
    keep = rng.randint(0, NUM_GOOD - 1)
    header = len(data) - len("\n".join(good).encode()) - 1 - 8
    cut = header + len("".join(f"{line}\n" for line in good[:keep]).encode()) + 1
    return Case(".txt.gz", data[:cut], good[:keep], [(keep + 1, "damaged_file")])


def _bad_crc_gz(rng: random.Random) -> Case:
    good = _good(rng)
    data = bytearray(gzip.compress("\n".join(good).encode()))
    data[-5] ^= 0x40
    return Case(".txt.gz", bytes(data), good, [(NUM_GOOD + 1, "damaged_file")])


def _garbage_after_gz(rng: random.Random) -> Case:
    good = _good(rng)
    return Case(
        ".txt.gz", gzip.compress("\n".join(good).encode()) + b"xyz", good, [(NUM_GOOD + 1, "damaged_file")]
    )


def _truncated_zst(rng: random.Random) -> Case:
    good, late = _good(rng), _good(rng)
    whole = zstandard.compress("\n".join(good).encode() + b"\n")
    cut = zstandard.compress("\n".join(late).encode())[: -rng.randint(1, 20)]
    return Case(".txt.zst", whole + cut, good, [(NUM_GOOD + 1, "damaged_file")])


def _damaged_zst(rng: random.Random) -> Case:
    good = _good(rng)
    second = bytearray(zstandard.compress(b"x" * 1000))
    second[4:8] = b"\xff\xff\xff\xff"
    data = zstandard.compress("\n".join(good).encode() + b"\n") + bytes(second)
    return Case(".txt.zst", data, good, [(NUM_GOOD + 1, "damaged_file")])


def _not_gz(rng: random.Random) -> Case:
    return Case(".txt.gz", b"plain " + SECRET.encode(), [], [(0, "wrong_ending")])


def _hidden_gz(rng: random.Random) -> Case:
    return Case(".txt", gzip.compress(b"text"), [], [(0, "wrong_ending")])


def _empty(rng: random.Random) -> Case:
    return Case(rng.choice([".txt", ".jsonl", ".csv", ".parquet"]), b"", [], [(0, "empty_file")])


def _empty_inside_gz(rng: random.Random) -> Case:
    return Case(".txt.gz", gzip.compress(b""), [], [(0, "empty_file")])


def _blank(rng: random.Random) -> Case:
    return Case(
        ".txt", rng.choice([" \n\t\n\n", "\u200b\n\ufeff\u3000", "\n"]).encode(), [], [(0, "empty_file")]
    )


def _utf16(rng: random.Random) -> Case:
    encoding = rng.choice(["utf-16", "utf-32"])
    return Case(".txt", "\n".join(_good(rng)).encode(encoding), [], [(0, "wrong_encoding")])


def _utf16_without_bom(rng: random.Random) -> Case:
    data = "ab\ncd\n".encode(
        "utf-16-le"
    )  # every byte pair holds a NUL; newlines still cut: "ab\0\n" "\0c..." "\0"
    return Case(".txt", data, [], [(1, "nul_byte"), (2, "nul_byte"), (3, "nul_byte")])


def _unknown(rng: random.Random) -> Case:
    return Case(rng.choice([".pdf", ".json", "", ".txt.bz2"]), b"%PDF-1.7", [], [(0, "unknown_format")])


def _folder(rng: random.Random) -> Case:
    return Case(".txt", good=[], faults=[(0, "not_a_file")], make=lambda path: path.mkdir())


def _pipe(rng: random.Random) -> Case:
    return Case(".txt", good=[], faults=[(0, "not_a_file")], make=lambda path: os.mkfifo(path))


def _dangling(rng: random.Random) -> Case:
    return Case(".txt", faults=[(0, "not_a_file")], make=lambda path: path.symlink_to("nowhere"))


def _long_line(rng: random.Random) -> Case:
    good = _good(rng)
    at = rng.randint(0, NUM_GOOD)
    lines = [line.encode() for line in good]
    lines.insert(at, b"y" * rng.choice([1001, 300_000, 600_000]))
    return Case(".txt", b"\n".join(lines), good, [(at + 1, "long_line")])


def _no_column(rng: random.Random) -> Case:
    return Case(".csv", b"a,b\n1,2\n", [], [(1, "no_text_field")])


def _open_quote(rng: random.Random) -> Case:
    good = _good(rng)
    at = rng.randint(0, NUM_GOOD)
    lines = [f"1,{line}" for line in good]
    lines.insert(at, f'2,"{SECRET} never closed')
    return Case(".csv", ("id,text\n" + "\n".join(lines)).encode(), good, [(at + 2, "quote")])


def _fault_after_spanning_record(rng: random.Random) -> Case:
    good = _good(rng, 4)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "id"])
    writer.writerow([f"{good[0]}\n{good[1]}", 1])  # lines 2 and 3
    writer.writerow([good[2], 2, "one too many"])  # line 4
    writer.writerow([good[3], 'a "quoted"\nid'])  # lines 5 and 6
    out.write('"x" y,3\n')  # line 7
    kept = [f"{good[0]}\n{good[1]}", good[3]]
    return Case(".csv", out.getvalue().encode(), kept, [(4, "column_count"), (7, "quote")])


def _parquet(rng: random.Random) -> Case:
    good = _good(rng)
    at = rng.randint(0, NUM_GOOD)
    values: list[bytes | None] = [line.encode() for line in good]
    bad = rng.choice([(None, "no_text"), (b"\xff" + SECRET.encode(), "invalid_utf8"), (b"a\0b", "nul_byte")])
    values.insert(at, bad[0])
    column = pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())
    out = io.BytesIO()
    pq.write_table(pa.table({"text": column}), out, row_group_size=7)
    return Case(".parquet", out.getvalue(), good, [(at + 1, bad[1])])


def _parquet_damaged_group(rng: random.Random) -> Case:
    good = _good(rng, 30)
    out = io.BytesIO()
    options = {"use_dictionary": False, "write_statistics": False, "compression": "zstd"}
    values = [*good[:20], None, *good[20:]]
    pq.write_table(pa.table({"text": values}), out, row_group_size=10, **options)
    data = bytearray(out.getvalue())
    start = pq.ParquetFile(io.BytesIO(out.getvalue())).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 60] = bytes(rng.randbytes(60))
    return Case(".parquet", bytes(data), good[:10] + good[20:], [(11, "damaged_rows"), (21, "no_text")])


def _parquet_truncated(rng: random.Random) -> Case:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": _good(rng)}), out)
    return Case(".parquet", out.getvalue()[:-10], [], [(0, "damaged_file")])


def _parquet_of_numbers(rng: random.Random) -> Case:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": [1, 2]}), out)
    return Case(".parquet", out.getvalue(), [], [(0, "no_text_field")])


def _mixed(rng: random.Random) -> Case:
    """Several faults in one file, in the same block."""
    good = _good(rng, 3)
    lines = [
        good[0].encode(),
        b"a\0b",
        b"",
        b"\xc3(",
        good[1].encode() + b"\r",
        b"\xed\xa0\x80",
        good[2].encode(),
    ]
    return Case(".txt", b"\n".join(lines), good, [(2, "nul_byte"), (4, "invalid_utf8"), (6, "invalid_utf8")])


S = SECRET.encode()
CASES: dict[str, Callable[[random.Random], Case]] = {
    "overlong_utf8": _text_case(S + b"\xc0\xaf", "invalid_utf8"),
    "cut_utf8": _text_case(S + "中".encode()[:2], "invalid_utf8"),
    "latin1": _text_case(S + b" caf\xe9 au lait", "invalid_utf8"),
    "surrogate_in_utf8": _text_case(S + b"\xed\xa0\x80", "invalid_utf8"),
    "beyond_unicode": _text_case(S + b"\xf5\x80\x80\x80", "invalid_utf8"),
    "nul": _text_case(S + b"\0", "nul_byte"),
    "long_line": _long_line,
    "mixed": _mixed,
    "broken_json": _json_case('{"text": "' + SECRET, "invalid_json"),
    "json_then_more": _json_case('{"text": "a"} ' + SECRET, "invalid_json"),
    "json_control": _json_case('{"text": "' + SECRET + '\x01"}', "invalid_json"),
    "json_array": _json_case('["' + SECRET + '"]', "not_an_object"),
    "json_null": _json_case("null", "not_an_object"),
    "json_number": _json_case("12", "not_an_object"),
    "json_missing": _json_case('{"txt": "' + SECRET + '"}', "no_text"),
    "json_null_text": _json_case('{"text": null}', "no_text"),
    "json_text_number": _json_case('{"text": 5}', "text_not_a_string"),
    "json_text_list": _json_case('{"text": ["' + SECRET + '"]}', "text_not_a_string"),
    "json_surrogate": _json_case('{"text": "' + SECRET + '\\ud800"}', "lone_surrogate"),
    "json_nul_escape": _json_case('{"text": "' + SECRET + '\\u0000"}', "nul_byte"),
    "json_nan_text": _json_case('{"text": NaN}', "text_not_a_string"),
    "json_deep": _json_case('{"text": "a", "b": ' + "[" * 100_000 + "]" * 100_000 + "}", "invalid_json"),
    "json_digits": _json_case('{"text": "a", "b": ' + "9" * 5000 + "}", "invalid_json"),
    "json_twice": _json_case('{"text": "' + SECRET + '", "text": "b"}', "repeated_text_field"),
    "json_bad_utf8": _json_case(b'{"text": "\xff"}', "invalid_utf8"),
    "csv_more": _csv_case(b"1,2," + S, "column_count"),
    "csv_fewer": _csv_case(S, "column_count"),
    "csv_after_quote": _csv_case(b'1,"a" ' + S, "quote"),
    "csv_utf8": _csv_case(b"1,\xff" + S, "invalid_utf8"),
    "tsv_more": _csv_case(b"1\t2\t3", "column_count", ".tsv"),
    "csv_open_quote": _open_quote,
    "csv_spanning": _fault_after_spanning_record,
    "csv_no_column": _no_column,
    "gz_truncated": _truncated_gz,
    "gz_crc": _bad_crc_gz,
    "gz_garbage": _garbage_after_gz,
    "gz_not": _not_gz,
    "gz_hidden": _hidden_gz,
    "gz_empty": _empty_inside_gz,
    "zst_truncated": _truncated_zst,
    "zst_damaged": _damaged_zst,
    "parquet_rows": _parquet,
    "parquet_group": _parquet_damaged_group,
    "parquet_truncated": _parquet_truncated,
    "parquet_numbers": _parquet_of_numbers,
    "empty": _empty,
    "blank": _blank,
    "utf16": _utf16,
    "utf16_without_bom": _utf16_without_bom,
    "unknown": _unknown,
    "folder": _folder,
    "pipe": _pipe,
    "dangling": _dangling,
}


def test_malformed_files_each_give_file_and_line_and_keep_the_good_lines(tmp_path: Path) -> None:
    cases: dict[str, Case] = {}
    for kind, build in CASES.items():
        for i in range(PER_KIND):
            case = build(random.Random(f"{kind} {i}"))
            name = f"{kind}-{i}{case.name}"
            cases[name] = case
            if case.make is not None:
                case.make(tmp_path / name)
            else:
                (tmp_path / name).write_bytes(case.data)
    assert len(cases) >= 300

    rejects: list[Reject] = []
    config = CorpusConfig(documents="line", max_line_bytes=1_000, unicode_form="none")
    # The two giants among the JSON lines are cut by their own faults, not by their length.
    wide = config.updated(max_line_bytes=1 << 20)
    found: dict[str, list[str]] = {}
    for name in sorted(cases):
        chosen = config if name.startswith("long_line") else wide
        for document in read_documents([str(tmp_path / name)], chosen, rejects=rejects):
            found.setdefault(document.source, []).append(document.text)

    wrong = []
    for name, case in cases.items():
        faults = [(r.line, r.kind) for r in rejects if r.file == name]
        good = [" ".join(line.split(" ")) for line in case.good]
        if faults != case.faults or found.get(name, []) != good:
            wrong.append((name, faults, case.faults, len(found.get(name, [])), len(good)))
    assert not wrong
    assert all(SECRET not in str(r) and SECRET not in json.dumps(r.as_json()) for r in rejects)
    assert {r.kind for r in rejects} == {k for k, level in KINDS.items() if level in ("line", "file")} - {
        "unreadable"
    }


def test_byte_offsets_point_at_the_fault(tmp_path: Path) -> None:
    data = "\ufeffgood\r\nzwei 中".encode() + b"\xff\nline\0\nend"
    (tmp_path / "a.txt").write_bytes(data)
    rejects: list[Reject] = []
    texts = [d.text for d in read_documents([str(tmp_path / "a.txt")], rejects=rejects)]
    assert texts == ["good\nend"]
    assert [(r.line, r.byte_offset) for r in rejects] == [(2, data.index(b"\xff")), (3, data.index(b"\0"))]


def test_line_numbers_go_on_after_long_lines(tmp_path: Path) -> None:
    for length in (101, 99_999, 600_000):  # found in a block, at its end, and over several blocks
        data = b"a\n" + b"x" * length + b"\nb\n\xff\n" + b"y" * length + b"\n" + b"z" * length
        (tmp_path / "a.txt").write_bytes(data)
        rejects: list[Reject] = []
        config = CorpusConfig(max_line_bytes=100)
        documents = list(read_documents([str(tmp_path / "a.txt")], config, rejects=rejects))
        assert [(d.text, d.line_numbers) for d in documents] == [("a\nb", (1, 3))]
        assert [(r.line, r.kind, r.byte_offset) for r in rejects] == [
            (2, "long_line", 2),
            (4, "invalid_utf8", length + 5),
            (5, "long_line", length + 7),
            (6, "long_line", 2 * length + 8),
        ]
        assert all(f" {length} bytes" in r.reason for r in rejects if r.kind == "long_line")


def test_only_newlines_count_as_lines(tmp_path: Path) -> None:
    # str.splitlines would see eight lines here.
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\nsecond\r\n\nthird"
    (tmp_path / "a.txt").write_bytes(text.encode())
    first, second = read_documents([str(tmp_path / "a.txt")])
    assert (first.text, first.line_numbers) == ("a b c d e f g h\nsecond", (1, 2))
    assert (second.text, second.line_numbers) == ("third", (4,))


def test_json_values_beside_the_text_may_be_anything(tmp_path: Path) -> None:
    rows = [
        '{"text": "one", "x": NaN, "y": 1e999}',
        '{"x": {"text": "inner"}, "text": "two\\nlines"}',
        "",
        '{"text": "\\ud83d\\ude00", "k": "text"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    rejects: list[Reject] = []
    documents = list(read_documents([str(tmp_path / "a.jsonl")], rejects=rejects))
    assert [d.text for d in documents] == ["one", "two\nlines", "😀"]
    assert [d.line_numbers for d in documents] == [(1,), (2, 2), (4,)]
    assert rejects == []


def test_csv_fields_over_lines_keep_their_physical_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'id,text\r\n"x\r\ny","one ""1""\r\n\r\ntwo"\r\n2,three\r\n')
    first, second = read_documents([str(tmp_path / "a.csv")])
    assert (first.text, first.line_numbers) == ('one "1"\ntwo', (3, 5))
    assert (second.text, second.line_numbers) == ("three", (6,))


def test_a_rejected_line_inside_a_quoted_record_costs_that_record_only(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,n\n"one\n\xff\ntwo",1\nthree,2\n')
    rejects: list[Reject] = []
    texts = [d.text for d in read_documents([str(tmp_path / "a.csv")], rejects=rejects)]
    # Line 4 alone is `two",1`: two columns, a stray quote inside an unquoted field, so it reads as text.
    assert texts == ['two"', "three"]
    assert sorted((r.line, r.kind) for r in rejects) == [(2, "quote"), (3, "invalid_utf8")]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv", "parquet"])
def test_every_format_and_compression_gives_the_same_documents(
    tmp_path: Path, kind: str, ending: str
) -> None:
    texts = [f"document {i} 第{i}回" for i in range(50)]
    if kind == "txt":
        data = "\n\n".join(texts).encode()
    elif kind == "jsonl":
        data = "".join(json.dumps({"body": t}) + "\n" for t in texts).encode()
    elif kind == "parquet":
        out = io.BytesIO()
        pq.write_table(pa.table({"body": pa.array(texts).dictionary_encode()}), out)
        data = out.getvalue()
    else:
        separator = "," if kind == "csv" else "\t"
        data = "\n".join(
            [f"id{separator}body", *(f"{i}{separator}{t}" for i, t in enumerate(texts))]
        ).encode()
    half = len(data) // 2
    parts = [data[:half], data[half:]]  # several members or frames, cut in the middle of a line
    pack: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
    path = tmp_path / f"a.{kind}{ending}"
    path.write_bytes(b"".join(pack[ending](part) for part in parts))
    rejects: list[Reject] = []
    found = [d.text for d in read_documents([str(path)], CorpusConfig(text_field="body"), rejects=rejects)]
    assert (found, rejects) == (texts, [])


def test_a_hundred_megabyte_line_is_never_held(tmp_path: Path) -> None:
    import tracemalloc

    size = 100_000_000
    with (tmp_path / "a.txt").open("wb") as file:
        file.write(b"before\n")
        for _ in range(size // 1_000_000):
            file.write(b"x" * 1_000_000)
        file.write(b"\nafter\n")
    rejects: list[Reject] = []
    tracemalloc.start()
    documents = list(read_documents([str(tmp_path / "a.txt")], rejects=rejects))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [d.text for d in documents] == ["before\nafter"]
    assert [(r.line, r.kind, r.byte_offset) for r in rejects] == [(2, "long_line", 7)]
    assert str(size) in rejects[0].reason
    assert peak < 60_000_000
