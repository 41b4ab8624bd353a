"""One owner at a time, told by process and host, freed by the kernel when it is killed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from seedbed.errors import DiskError, LockedError
from seedbed.lock import owned

OWNER = """
import sys
from pathlib import Path
from seedbed.lock import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_owner(run: Path) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"mine\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_of_two_processes_one_wins_and_the_loser_is_told_who_holds_it(tmp_path):
    with other_owner(tmp_path / "run") as owner:
        with pytest.raises(LockedError) as caught, owned(tmp_path / "run"):
            pytest.fail("two owners")
        assert f"process {owner.pid} on {platform.node()}" in caught.value.message
        assert caught.value.exit_code == 7
        assert caught.value.hint
        with owned(tmp_path / "another"):
            pass


def test_a_killed_owner_frees_it(tmp_path):
    with other_owner(tmp_path) as owner:
        owner.kill()
        owner.wait()
        with owned(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_it_is_free_after_the_block_and_after_an_error_in_it(tmp_path):
    with pytest.raises(ValueError, match="ours"), owned(tmp_path):
        raise ValueError("ours")
    with owned(tmp_path):
        pass
    with other_owner(tmp_path):
        pass


def test_a_second_time_in_one_process_is_refused_too(tmp_path):
    with owned(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()} "), owned(tmp_path):
        pytest.fail("two owners")


def test_a_child_process_does_not_inherit_it(tmp_path):
    """A worker that outlives its parent must not keep the run."""
    with owned(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
        assert child.stdout is not None
        child.stdout.readline()  # it runs; the kernel closes what is not inherited on the way there
    try:
        with owned(tmp_path):
            pass
    finally:
        child.kill()
        child.communicate()


def test_a_run_folder_that_cannot_be_made_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(DiskError), owned(tmp_path / "file" / "run"):
        pytest.fail("owned nothing")


def test_a_file_system_without_locks_is_not_called_a_rival(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DiskError, match="locks"), owned(tmp_path):
        pytest.fail("owned nothing")
