"""Jobs on one storage: each is done once, whatever workers do; what a dead one left is given to the next."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from seedbed.compare import board as board_module
from seedbed.compare.board import Board, Job
from seedbed.errors import DataError

JOBS = [Job(arm, seed, "s") for seed in range(3) for arm in ("masked", "causal")]
TESTS = Path(__file__).parents[1]


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request, tmp_path):
    """A storage of each kind; that of a server where PostgreSQL and its driver are installed."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'compare.db'}"
    return request.getfixturevalue("new_database")()


@pytest.fixture(scope="module")
def new_database():
    """Make empty databases on a server of our own, which listens on a socket in a folder only."""
    programs = [shutil.which(name) for name in ("initdb", "pg_ctl")]
    is_root = os.geteuid() == 0
    users = [entry.pw_name for entry in pwd.getpwall()]
    if (
        None in programs
        or importlib.util.find_spec("psycopg") is None
        or (is_root and "postgres" not in users)
    ):
        pytest.skip("needs PostgreSQL's initdb and pg_ctl, and psycopg")
    import psycopg

    options = {"user": "postgres", "group": "postgres", "extra_groups": []} if is_root else {}
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # pytest's own paths are longer than a socket's may be
    if is_root:
        shutil.chown(folder, "postgres", "postgres")

    def do(*words):
        subprocess.run(
            words, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
        )

    do(programs[0], "-D", "data", "-A", "trust", "-U", "tester", "-N")
    do(programs[1], "-D", "data", "-w", "-l", "log", "-o", f"-k {folder} -c listen_addresses='' -F", "start")
    numbers = itertools.count()

    def make():
        name = f"compare{next(numbers)}"
        with psycopg.connect(
            host=str(folder), user="tester", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://tester@/{name}?host={folder}"

    yield make
    do(programs[1], "-D", "data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture
def board(address):
    return Board(address, "arms")


def test_jobs_are_done_in_the_order_asked_for_and_once(board):
    assert board.add(JOBS) == 6
    assert board.add(JOBS) == 0
    keys = [job.key for job in JOBS]
    seen = []
    while (claimed := board.claim(keys)) is not None:
        ticket, job, attempt = claimed
        assert attempt == 1
        seen.append(job)
        board.finish(ticket, {"loss": 1.0, "name": "中文"}, value=1.0)
    assert seen == JOBS
    assert set(board.results()) == set(keys)
    assert board.results()[keys[0]]["name"] == "中文"


def test_another_board_on_the_storage_sees_the_same(board, address):
    board.add(JOBS)
    ticket, job, _ = board.claim()
    board.finish(ticket, {"loss": 2.0}, value=2.0)
    other = Board(address, "arms")
    assert other.results() == {job.key: {"loss": 2.0}}
    assert Board(address, "another").results() == {}


def test_an_arm_added_tomorrow_joins(board):
    board.add(JOBS[:2])
    for _ in range(2):
        board.finish(board.claim()[0], {}, value=0.0)
    assert board.claim() is None
    assert board.add([*JOBS[:2], Job("added", 0, "s")]) == 1
    assert board.claim()[1].arm == "added"


def test_other_settings_are_another_job(board):
    board.add([Job("masked", 0, "one")])
    board.finish(board.claim()[0], {"loss": 1.0}, value=1.0)
    assert board.add([Job("masked", 0, "two")]) == 1


def test_a_result_set_aside_is_made_anew_and_counts_then(board, address):
    board.add(JOBS[:2])
    for loss in (1.0, 2.0):
        board.finish(board.claim()[0], {"loss": loss}, value=loss)
    key = JOBS[1].key
    assert board.renew(key)
    assert not board.renew(key), "it waits already"
    assert board.add(JOBS[:2]) == 0
    assert set(board.results()) == {JOBS[0].key}
    ticket, job, attempt = Board(address, "arms").claim()
    assert (job.key, job.renewals, attempt) == (key, 1, 1)
    board.give_back(ticket)
    ticket, job, _ = board.claim()
    assert job.renewals == 1
    board.finish(ticket, {"loss": 3.0}, value=3.0)
    assert board.results() == {JOBS[0].key: {"loss": 1.0}, key: {"loss": 3.0}}
    assert board.renew(key)
    assert board.claim()[1].renewals == 2


def test_what_was_given_back_waits_again_and_what_failed_does_not(board):
    board.add(JOBS[:2])
    keys = [job.key for job in JOBS[:2]]
    ticket, job, _ = board.claim(keys)
    board.give_back(ticket)
    again, same, _ = board.claim(keys)
    assert same == job
    assert again != ticket
    board.fail(again, "error: no mask token")
    assert board.failures() == {job.key: "error: no mask token"}
    assert board.claim(keys)[1] == JOBS[1]
    assert board.claim(keys) is None
    assert board.add(JOBS[:2]) == 1, "asked for anew, a failed job is tried again"


def test_jobs_put_up_twice_at_one_moment_are_done_once(board):
    """Two workers that start together may both find nothing there yet."""
    for _ in range(2):
        for job in JOBS[:2]:
            board._put(job, attempt=1)
    done = []
    while (claimed := board.claim()) is not None:
        done.append(claimed[1])
        board.finish(claimed[0], {}, value=0.0)
    assert done == JOBS[:2]


WORKER = """
import sys, time
from seedbed.compare.board import Board
board = Board(sys.argv[1], "arms")
while (claimed := board.claim()) is not None:
    with board.alive(claimed[0]):
        print(claimed[1].key, flush=True)
        time.sleep(float(sys.argv[2]))
        board.finish(claimed[0], {"worker": sys.argv[3]}, value=0.0)
"""


def worker(address, *, seconds, name):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, address, str(seconds), name],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(board_module.__file__).parents[2])},
    )


def test_two_workers_share_the_work(board, address):
    many = [Job(f"arm{n}", seed, "s") for n in range(8) for seed in range(3)]
    board.add(many)
    workers = [worker(address, seconds=0.02, name=name) for name in "ab"]
    printed = [line for w in workers for line in w.communicate(timeout=120)[0].split()]
    assert Counter(printed) == Counter(job.key for job in many)
    assert {r["worker"] for r in board.results().values()} == {"a", "b"}


def test_a_killed_workers_job_is_taken_at_once_and_nothing_else_is(board, address):
    board.add(JOBS[:3])
    killed = worker(address, seconds=60, name="killed")
    key = killed.stdout.readline().strip()
    assert list(board.running()) == [key]
    claimed = board.claim([key])
    assert claimed is None, "its worker lives"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    ticket, job, attempt = board.claim([key])
    assert (job.key, attempt) == (key, 2)
    board.finish(ticket, {"worker": "second"}, value=0.0)
    assert board.results()[key]["worker"] == "second"
    assert board.claim([key]) is None


def test_what_ends_its_worker_lets_others_go_first(board, address):
    board.add(JOBS[:2])
    killed = worker(address, seconds=60, name="killed")
    assert killed.stdout.readline().strip() == JOBS[0].key
    killed.kill()
    killed.communicate()
    keys = [job.key for job in JOBS[:2]]
    assert [board.claim(keys)[1] for _ in range(2)] == [JOBS[1], JOBS[0]]


def test_a_worker_elsewhere_is_gone_when_it_has_been_silent(board, monkeypatch):
    board.add(JOBS[:1])
    ticket, job, _ = board.claim()
    board._storage.set_trial_user_attr(ticket, "host", "elsewhere")
    board._storage.set_trial_user_attr(ticket, "pid", 2**22 + 1)
    assert board.claim() is None
    board._storage.set_trial_user_attr(ticket, "beat", time.time() - 1000)
    assert board.claim()[1] == job


def test_a_living_worker_is_not_gone_when_clocks_are_read_apart(board):
    """A process's start is reckoned from the machine's, which two readers may see a second apart."""
    board.add(JOBS[:1])
    ticket, _, _ = board.claim()
    (entry,) = board._entries()
    board._storage.set_trial_user_attr(ticket, "began", entry.attributes["began"] + 1.0)
    assert board.claim() is None
    board._storage.set_trial_user_attr(ticket, "began", entry.attributes["began"] - 3600.0)
    assert board.claim() is not None, "another process has the number now"


def test_a_worker_that_lost_its_job_does_not_fail(board):
    """Silent for long, on another machine: the other's result counts, and this worker goes on."""
    board.add(JOBS[:1])
    late, job, _ = board.claim()
    for name, value in (("host", "elsewhere"), ("beat", time.time() - 1000)):
        board._storage.set_trial_user_attr(late, name, value)
    ticket, again, _ = board.claim()
    assert again == job
    assert not board.finish(late, {"who": "late"}, value=0.0)
    assert not board.fail(late, "late")
    board.give_back(late)
    assert board.finish(ticket, {"who": "other"}, value=0.0)
    assert board.results() == {job.key: {"who": "other"}}
    assert board.claim() is None


def test_one_that_was_killed_within_a_moment_of_taking_it(board, monkeypatch):
    board.add(JOBS[:1])
    monkeypatch.setattr(board_module, "_beat", lambda storage, ticket: None)
    board.claim()
    assert board.claim() is None
    monkeypatch.setattr(board_module, "_SILENCE_SECONDS", -1.0)
    assert board.claim() is not None


def test_a_storage_that_is_none_is_refused_without_its_password(tmp_path):
    path = tmp_path / "not-a-database.db"
    path.write_text("hello" * 1000)
    with pytest.raises(DataError, match="cannot be opened"):
        Board(path, "arms")
    with pytest.raises(DataError) as caught:
        Board("postgresql://me:secret@127.0.0.1:1/nowhere", "arms")
    assert "secret" not in str(caught.value)
    assert json.dumps(str(caught.value)).count("127.0.0.1") == 1
