"""Artifacts: complete or absent, never changed unnoticed, reused only when nothing they depend on differs."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seedbed import artifact as module
from seedbed.artifact import (
    MANIFEST,
    current_stage,
    file_digest,
    open_verified,
    publish,
    publish_stage,
    read_sealed_json,
    verify_if_artifact,
    write_json,
    write_sealed_json,
)
from seedbed.errors import DiskError, IncompatibleError, IntegrityError, SeedbedError

CONFIG = {"rate": 1e-8, "name": "文字", "nested": {"a": [1, 2.5, None, True]}}


def make(target: Path, *, content: bytes = b"hello", config: dict | None = None) -> Path:
    with publish(
        target, stage="corpus", version=1, config=config or CONFIG, inputs={"raw": "ab" * 32}
    ) as draft:
        (draft.path / "a.bin").write_bytes(content)
        (draft.path / "folder").mkdir()
        (draft.path / "folder" / "b.txt").write_text("第二\n", encoding="utf-8")
        draft.counts = {"documents": 3}
    return target


def make_stage(
    run: Path, *, content: bytes = b"hello", seed: int = 0, inputs: dict[str, str] | None = None
) -> None:
    with publish_stage(
        run, "corpus", version=1, config={"seed": seed}, inputs=inputs or {"raw": "r"}
    ) as draft:
        (draft.path / "a.bin").write_bytes(content)


def everything(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def hinted(error: SeedbedError) -> str:
    assert error.hint
    return error.message


# --- publish ---------------------------------------------------------------------------------------------------------


def test_a_published_folder_opens_and_says_what_it_is(tmp_path):
    artifact = open_verified(make(tmp_path / "x"), stage="corpus", version=1)
    artifact.verify()
    assert artifact.files == ["a.bin", "folder/b.txt"]
    assert artifact.counts == {"documents": 3}
    assert artifact.manifest["config"] == CONFIG
    assert artifact.file("a.bin").read_bytes() == b"hello"
    assert artifact.manifest["files"]["a.bin"] == {
        "sha256": file_digest(tmp_path / "x" / "a.bin"),
        "bytes": 5,
    }
    assert everything(tmp_path) == ["x", "x/a.bin", "x/folder", "x/folder/b.txt", "x/manifest.json"]


def test_the_digest_is_of_the_content_alone(tmp_path):
    one, two = make(tmp_path / "one"), make(tmp_path / "two", config={"other": 1})
    other = make(tmp_path / "three", content=b"hellp")
    assert open_verified(one).digest == open_verified(two).digest != open_verified(other).digest


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_leaves_nothing(tmp_path, error):
    def fail_half_way() -> None:
        with publish(tmp_path / "x", stage="s", version=1) as draft:
            (draft.path / "half").write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert everything(tmp_path) == []


def test_an_artifact_is_never_overwritten(tmp_path):
    make(tmp_path / "x")
    with pytest.raises(IncompatibleError, match="never overwritten") as caught:
        make(tmp_path / "x", content=b"other")
    hinted(caught.value)
    assert open_verified(tmp_path / "x").file("a.bin").read_bytes() == b"hello"


def test_nothing_is_seen_before_it_is_complete(tmp_path):
    with publish(tmp_path / "x", stage="s", version=1) as draft:
        (draft.path / "a").write_bytes(b"a")
        assert not (tmp_path / "x").exists()
        with pytest.raises(IntegrityError, match="does not exist"):
            open_verified(tmp_path / "x")
        with pytest.raises(IntegrityError, match="unfinished"):
            open_verified(draft.path)
    open_verified(tmp_path / "x").verify()


def test_what_is_removed_loses_its_name_first(tmp_path, monkeypatch):
    """Killed half-way through the files, it is not there any more, and the next writer removes the rest."""
    make(tmp_path / "x")
    monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
    module.remove(tmp_path / "x")
    module.remove(tmp_path / "never-was")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".x.")


# --- damage ------------------------------------------------------------------------------------------------------


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.bin", "folder/b.txt"])
def test_every_flipped_bit_of_a_file_is_refused_with_both_hashes(tmp_path, name):
    target = make(tmp_path / "x")
    path = target / name
    expected = file_digest(path)
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        with pytest.raises(IntegrityError) as caught:
            open_verified(target).verify()
        message = hinted(caught.value)
        assert str(path) in message
        assert expected in message
        assert file_digest(path) in message
        flip(path, bit)
    open_verified(target).verify()


def test_a_flipped_bit_in_the_manifest_is_refused(tmp_path):
    """Also where the value stays the same, as from 1e-08 to 1E-08."""
    with publish(tmp_path / "x", stage="s", version=1, config={"rate": 1e-8}) as draft:
        (draft.path / "a.bin").write_bytes(b"hello")
    target = tmp_path / "x"
    path = target / MANIFEST
    exponent = path.read_bytes().index(b"e-08")
    for bit in (8 * exponent + 5, *(8 * byte + byte % 8 for byte in range(0, path.stat().st_size, 3))):
        flip(path, bit)
        with pytest.raises(IntegrityError) as caught:
            open_verified(target)
        assert str(path) in hinted(caught.value)
        flip(path, bit)
    open_verified(target).verify()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[1]", b"3", b"null", b'"root"', b"{}", b'{"root": 1}', b"\xff", b"{"]
)
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    target = make(tmp_path / "x")
    (target / MANIFEST).write_bytes(content)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        open_verified(target)


def test_an_edited_manifest_is_refused(tmp_path):
    target = make(tmp_path / "x")
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    manifest["counts"]["documents"] = 4
    module.write_json(target / MANIFEST, manifest)
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        open_verified(target)


@pytest.mark.parametrize("size", [0, 4, 6])
def test_another_length_is_refused_on_opening(tmp_path, size):
    target = make(tmp_path / "x")
    (target / "a.bin").write_bytes(b"helloo"[:size])
    with pytest.raises(IntegrityError, match=rf"a\.bin has {size} bytes, expected 5"):
        open_verified(target)


def test_a_missing_file_is_refused_by_name(tmp_path):
    target = make(tmp_path / "x")
    (target / "folder" / "b.txt").unlink()
    with pytest.raises(IntegrityError, match=r"b\.txt is missing"):
        open_verified(target)


def test_a_file_that_goes_after_opening_is_refused_by_name(tmp_path):
    artifact = open_verified(make(tmp_path / "x"))
    (tmp_path / "x" / "a.bin").unlink()
    with pytest.raises(IntegrityError, match=r"a\.bin is missing"):
        artifact.file("a.bin")
    with pytest.raises(IntegrityError, match=r"no file 'c'.*a\.bin"):
        artifact.file("c")


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(IntegrityError, match=r"no manifest\.json"):
        open_verified(tmp_path / "x", stage="tokens")


def test_another_stage_version_or_format_is_refused_by_name(tmp_path, monkeypatch):
    target = make(tmp_path / "x")
    with pytest.raises(IncompatibleError, match="is a 'corpus' artifact, not 'tokens'"):
        open_verified(target, stage="tokens")
    with pytest.raises(IncompatibleError, match="corpus version 1; this release reads 2"):
        open_verified(target, version=2)
    monkeypatch.setattr(module, "FORMAT", 2)
    with pytest.raises(IncompatibleError, match="artifact format 1; this release reads 2"):
        open_verified(target)


# --- stages of a run ---------------------------------------------------------------------------------------------


def current(run: Path, *, seed: int = 0, version: int = 1, raw: str = "r", replace: bool = False):
    return current_stage(
        run, "corpus", version=version, config={"seed": seed}, inputs={"raw": raw}, replace=replace
    )


def test_the_same_key_is_skipped_and_anything_else_names_what_differs(tmp_path):
    assert current(tmp_path) is None
    make_stage(tmp_path)
    assert current(tmp_path) is not None
    for changes, named in (
        ({"seed": 1}, "seed 0 -> 1"),
        ({"raw": "q"}, 'input raw "r" -> "q"'),
        ({"version": 2}, "version 1 -> 2"),
    ):
        with pytest.raises(IncompatibleError) as caught:
            current(tmp_path, **changes)
        assert named in hinted(caught.value)
        assert current(tmp_path, **changes, replace=True) is None


def test_replacing_helps_out_of_damage_and_of_an_old_format(tmp_path, monkeypatch):
    make_stage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 2)
        with pytest.raises(IncompatibleError):
            current(tmp_path)
        assert current(tmp_path, replace=True) is None
    flip(tmp_path / "corpus" / MANIFEST, 100)
    with pytest.raises(IntegrityError):
        current(tmp_path)
    assert current(tmp_path, replace=True) is None
    make_stage(tmp_path)
    assert current(tmp_path) is not None


def test_replacing_swings_the_pointer_and_removes_the_old_folder(tmp_path):
    make_stage(tmp_path, content=b"one")
    first = (tmp_path / "corpus").resolve()
    make_stage(tmp_path, content=b"two", seed=1)
    assert open_verified(tmp_path / "corpus").file("a.bin").read_bytes() == b"two"
    assert not first.exists()
    assert len(list((tmp_path / ".stages").iterdir())) == 1


def test_readers_of_a_replaced_stage_keep_what_they_opened(tmp_path):
    """What is mapped stays; what was not touched yet is refused, never mixed with the new content."""
    make_stage(tmp_path, content=b"one")
    reader, late_reader = open_verified(tmp_path / "corpus"), open_verified(tmp_path / "corpus")
    with (
        reader.file("a.bin").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        make_stage(tmp_path, content=b"two", seed=1)
        assert mapped[:] == b"one"
    with pytest.raises(IntegrityError, match=r"a\.bin"):
        late_reader.file("a.bin")


def test_a_run_folder_can_be_moved(tmp_path):
    make_stage(tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    open_verified(tmp_path / "elsewhere" / "corpus").verify()


def test_a_plain_folder_in_the_place_of_a_stage_is_left_alone(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine.txt").write_text("mine")
    with (
        pytest.raises(DiskError, match="plain folder"),
        publish_stage(tmp_path, "corpus", version=1, config={}, inputs={}),
    ):
        pytest.fail("work was done that could not be published")
    assert (tmp_path / "corpus" / "mine.txt").read_text() == "mine"


def test_one_stage_does_not_sweep_another(tmp_path):
    make_stage(tmp_path)
    with publish_stage(tmp_path, "corp", version=1, config={}, inputs={}):
        pass
    with publish_stage(tmp_path, "corpus-x", version=1, config={}, inputs={}):
        pass
    make_stage(tmp_path, seed=1)
    for name in ("corpus", "corp", "corpus-x"):
        open_verified(tmp_path / name).verify()


# --- writers that die ----------------------------------------------------------------------------------------------


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_are_swept_only_if_their_writer_is_dead(tmp_path):
    dead, alive, foreign = (
        tmp_path / f".y.{dead_pid()}-0123abcd.tmp",
        tmp_path / f".y.{os.getpid()}-0123abcd.tmp",
        tmp_path / ".somebody-elses.tmp",
    )
    for folder in (dead, alive, foreign):
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
    namesake = (
        tmp_path / f".z.{os.getpid()}-0123abcd.tmp"
    )  # its writer had our number, in another life of the container
    namesake.mkdir()
    os.utime(namesake, (1.0, 1.0))
    make(tmp_path / "x")
    assert [p.exists() for p in (dead, alive, foreign, namesake)] == [False, True, True, False]


KILLED_AT_EACH_EVENT = """
import os, signal, sys
from pathlib import Path
from seedbed.artifact import open_verified, publish_stage

FILE_EVENTS = ("open", "os.", "shutil.")

def write(run, content):
    with publish_stage(run, "corpus", version=1, config={"content": content}, inputs={}) as draft:
        (draft.path / "a.txt").write_text(content)
        (draft.path / "b.txt").write_text(content)

def child(run, number):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event.startswith(FILE_EVENTS):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    write(run, "new")
    os._exit(0)

root, seen, number = Path(sys.argv[1]), set(), 0
while True:
    number += 1
    run = root / str(number)
    write(run, "old")
    pid = os.fork()
    if pid == 0:
        child(run, number)
    _, status = os.waitpid(pid, 0)
    artifact = open_verified(run / "corpus")
    artifact.verify()
    contents = {artifact.file(name).read_text() for name in ("a.txt", "b.txt")}
    assert len(contents) == 1, contents
    seen |= contents
    write(run, "newest")
    names = sorted(p.name for p in run.iterdir())
    stages = sorted(p.name for p in (run / ".stages").iterdir())
    assert names == [".stages", "corpus"] and len(stages) == 1, (number, names, stages)
    assert open_verified(run / "corpus").file("a.txt").read_text() == "newest"
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0 and contents == {"new"}
        break
assert seen == {"old", "new"} and number > 20, (seen, number)
print(number)
"""


@pytest.mark.fault
def test_a_kill_at_every_single_file_operation_leaves_old_or_new(tmp_path):
    """The writer is killed before its 1st, 2nd, ... file operation; the next writer also finds nothing in its way."""
    result = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_EVENT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


REPLACING_FOR_EVER = """
import sys, itertools
from pathlib import Path
from seedbed.artifact import publish_stage
run = Path(sys.argv[1])
for number in itertools.count():
    with publish_stage(run, "corpus", version=1, config={"number": number}, inputs={}) as draft:
        for name in "abcd":
            (draft.path / name).write_bytes(number.to_bytes(8, "little") * 20_000)
    print(number, flush=True)
"""


@pytest.mark.fault
def test_kills_at_random_moments_leave_old_or_new(tmp_path):
    chance = random.Random(7)
    for _ in range(15):
        writer = subprocess.Popen(
            [sys.executable, "-c", REPLACING_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()  # it is replacing now
        time.sleep(chance.uniform(0, 0.2))
        writer.kill()
        writer.communicate()
        artifact = open_verified(tmp_path / "corpus")
        artifact.verify()
        assert len({file_digest(artifact.file(name)) for name in "abcd"}) == 1
    make_stage(tmp_path)
    assert everything(tmp_path / ".stages")[1:] == [
        f"{everything(tmp_path / '.stages')[0]}/{n}" for n in ("a.bin", MANIFEST)
    ]


# --- disks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "cannot be written"),
        (errno.EROFS, "cannot be written"),
        (errno.EIO, "I/O error"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failing_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch, number, words, call):
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DiskError, match=words) as caught:
        make(tmp_path / "x")
    assert caught.value.exit_code == 6
    assert str(tmp_path / "x") in hinted(caught.value)
    assert everything(tmp_path) == []


def test_a_full_disk_while_filling_is_the_same_error(tmp_path):
    with pytest.raises(DiskError, match="no space left"), publish(tmp_path / "x", stage="s", version=1):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert everything(tmp_path) == []


def test_another_operating_system_error_is_not_dressed_up(tmp_path):
    with pytest.raises(FileNotFoundError), publish(tmp_path / "x", stage="s", version=1):
        (tmp_path / "nowhere").read_bytes()


def test_a_file_in_place_of_the_run_folder_is_a_disk_error(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(DiskError, match="a file stands where a folder is needed"):
        make_stage(tmp_path / "run")


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DiskError, match="cannot be written"):
            make(tmp_path / "x")
    finally:
        tmp_path.chmod(0o700)


FULL_DISK = """
import sys
from pathlib import Path
from seedbed.artifact import open_verified, publish_stage
from seedbed.errors import DiskError
run = Path(sys.argv[1])
def write(size):
    with publish_stage(run, "corpus", version=1, config={"size": size}, inputs={}) as draft:
        (draft.path / "a.bin").write_bytes(bytes(size))
write(200_000)
try:
    write(2_000_000)
except DiskError as error:
    assert "no space left" in error.message and error.exit_code == 6, error
else:
    raise SystemExit("the disk was not full")
open_verified(run / "corpus").verify()
assert [p for p in (run / ".stages").iterdir() if p.name.endswith(".tmp")] == []
write(300_000)
assert open_verified(run / "corpus").file("a.bin").stat().st_size == 300_000
"""


def test_a_truly_full_disk_keeps_the_old_stage_and_goes_on_once_there_is_room(tmp_path):
    """On a real file system of one megabyte, in a mount namespace of its own."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    ):
        pytest.skip("this machine lets nobody mount a small file system")
    script = 'mount -t tmpfs -o size=1m none "$1" || exit 99; exec "$2" -c "$3" "$1/run"'
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL_DISK],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if result.returncode == 99:
        pytest.skip("this machine lets nobody mount a small file system")
    assert result.returncode == 0, result.stderr


def test_a_sealed_file_that_was_changed_is_refused_with_both_hashes(tmp_path):
    path = tmp_path / "plan.json"
    write_sealed_json(path, CONFIG)
    assert read_sealed_json(path) == CONFIG
    sealed = path.read_bytes()
    seal = sealed.index(b"sha256")
    for bit in range(0, 8 * len(sealed), 7):
        flip(path, bit)
        if seal <= bit // 8 < seal + 6:  # no seal by that name: taken for a file of before there were any
            path.write_bytes(sealed)
            continue
        try:
            said, read = "plan.json sha256", read_sealed_json(path)
        except IntegrityError as error:
            said, read = hinted(error), CONFIG
        assert "plan.json" in said
        assert "sha256" in said
        assert read == CONFIG, "only a flip in white space or in a number's spelling passes"
        path.write_bytes(sealed)
    write_json(path, CONFIG)
    assert read_sealed_json(path) == CONFIG, "as earlier releases wrote it"


def test_a_folder_inside_an_artifact_is_verified_with_it(tmp_path):
    make(tmp_path / "x")
    (tmp_path / "plain").mkdir()
    for folder in ("x", "x/folder", "plain"):
        verify_if_artifact(tmp_path / folder)
    flip(tmp_path / "x" / "folder" / "b.txt", 3)
    for folder in ("x", "x/folder"):
        with pytest.raises(IntegrityError, match=r"b\.txt was changed"):
            verify_if_artifact(tmp_path / folder)


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    """Live files (plan, resolved recipe, samples) are rewritten in a folder that is no artifact: a kill must not tear them."""
    path = tmp_path / "plan.json"
    write_json(path, {"steps": 1})

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"steps": list(range(1000))})
    assert json.loads(path.read_text()) == {"steps": 1}
