"""Share out the arms of a comparison among workers, and keep what each came to: one Optuna storage, SQLite or PostgreSQL.

A job is one arm under one seed. It is a trial: waiting, running, complete or failed, and only one worker can move it from
waiting to running. A result is there as soon as its arm is finished. Workers may come and go, be killed, and be started on
several machines; arms may be added at any time.

A running job whose worker is gone is given to another: at once where the worker was on this machine and its process has ended,
and elsewhere after `_SILENCE_SECONDS` without a sign of life.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from seedbed.errors import DataError, DependencyError
from seedbed.lock import in_turn

__all__ = ["Board", "Job", "alive", "is_gone", "open_storage", "optuna", "taking_turns"]

_BEAT_SECONDS = 20.0
_SILENCE_SECONDS = 120.0
_CLOCK_SECONDS = 5.0
_ASIDE = "set aside "


@dataclass(frozen=True, slots=True)
class Job:
    """One arm under one seed.

    Attributes:
        arm: its name.
        seed: what keys order, masks and initial weights.
        settings: what the arm is; a job of other settings is another job.
        renewals: how often a result of it was set aside, so that it is done anew.
    """

    arm: str
    seed: int
    settings: str
    renewals: int = 0

    @property
    def key(self) -> str:
        """Return what tells jobs apart."""
        return f"{self.arm}/{self.seed}/{self.settings}"


@dataclass(slots=True)
class _Entry:
    """A trial as the storage has it."""

    trial_id: int
    number: int
    state: Any
    attributes: Mapping[str, Any]
    started: float

    @property
    def key(self) -> str:
        return str(self.attributes.get("job", ""))


class Board:
    """The jobs of a comparison on one storage.

    Args:
        url: of the storage, `sqlite:///path` or `postgresql://...`; a path is an SQLite file, made if missing.
        name: of the comparison; one storage holds many.

    Raises:
        DependencyError: optuna is not installed.
        DataError: the storage cannot be opened.
    """

    def __init__(self, url: str | Path, name: str) -> None:
        library = optuna(needed_for="comparing strategies")
        self._storage = open_storage(url)
        study = library.create_study(
            study_name=name, storage=self._storage, load_if_exists=True, direction="minimize"
        )
        self._study_id = study._study_id
        self._states = library.trial.TrialState
        self._trial = library.trial.create_trial
        self._race = library.exceptions.UpdateFinishedTrialError

    def add(self, jobs: Sequence[Job]) -> int:
        """Put up the jobs that are not there yet; return how many those were. Two workers may do it at once."""
        with taking_turns(self._storage):
            have = {entry.key for entry in self._live()}
            new = [job for job in jobs if job.key not in have]
            for job in new:
                self._put(job, attempt=1)
        return len(new)

    def renew(self, key: str) -> bool:
        """Set the result of a finished job aside and put the job up again; says whether there was one."""
        with taking_turns(self._storage):
            done = [e for e in self._live() if e.key == key and e.state == self._states.COMPLETE]
            for entry in done:
                self._storage.set_study_user_attr(self._study_id, f"{_ASIDE}{entry.trial_id}", key)
            if done:
                self._put(Job(**json.loads(done[0].attributes["fields"])), attempt=1)
        return bool(done)

    def alive(self, ticket: int) -> AbstractContextManager[None]:
        """Give signs of life for a job while the block runs."""
        return alive(self._storage, ticket)

    def claim(self, keys: Sequence[str] | None = None) -> tuple[int, Job, int] | None:
        """Take a waiting job: its ticket, the job, and which attempt it is; None where none waits.

        Args:
            keys: only these, in this order; None: all, as they were put up.
        """
        with taking_turns(self._storage):
            return self._claim(keys)

    def _claim(self, keys: Sequence[str] | None) -> tuple[int, Job, int] | None:
        self._reclaim()
        waiting = [e for e in self._live() if e.state == self._states.WAITING]
        if keys is not None:
            places = {key: place for place, key in enumerate(keys)}
            waiting = [e for e in waiting if e.key in places]
            # What ended its worker before comes last, lest it keep the others from their turn.
            waiting.sort(key=lambda e: (int(e.attributes["attempt"]), places[e.key]))
        for entry in waiting:
            try:
                is_mine = self._storage.set_trial_state_values(entry.trial_id, self._states.RUNNING)
            except (self._race, RuntimeError):  # another worker was faster, and may even be done
                continue
            if not is_mine:
                continue
            _beat(self._storage, entry.trial_id)
            if entry.trial_id != self._first_of(entry.key):  # put up twice at the same moment
                self._storage.set_trial_state_values(entry.trial_id, self._states.FAIL)
                continue
            job = Job(**json.loads(entry.attributes["fields"]))
            return entry.trial_id, job, int(entry.attributes["attempt"])
        return None

    def finish(self, ticket: int, result: Mapping[str, Any], *, value: float) -> bool:
        """Publish the result of a job that was claimed; says whether it still was this worker's.

        A worker that was silent for long, a laptop asleep, may have lost its job to another, whose result counts then.
        """
        try:
            self._storage.set_trial_user_attr(ticket, "result", json.dumps(result, ensure_ascii=False))
            self._storage.set_trial_state_values(ticket, self._states.COMPLETE, values=[value])
        except self._race:
            return False
        return True

    def fail(self, ticket: int, reason: str) -> bool:
        """Give a job back as failed, with the reason; says whether it still was this worker's."""
        try:
            self._storage.set_trial_user_attr(ticket, "reason", reason)
            self._storage.set_trial_state_values(ticket, self._states.FAIL)
        except self._race:
            return False
        return True

    def give_back(self, ticket: int) -> None:
        """Let another worker, or the same one later, go on with a job that was interrupted; nothing where it was lost before."""
        entry = next(e for e in self._entries() if e.trial_id == ticket)
        try:
            self._storage.set_trial_state_values(ticket, self._states.FAIL)
        except self._race:
            return
        self._put(Job(**json.loads(entry.attributes["fields"])), attempt=int(entry.attributes["attempt"]))

    def results(self) -> dict[str, dict[str, Any]]:
        """Return the results so far by job key; of two of one job, the first."""
        found: dict[str, dict[str, Any]] = {}
        for entry in self._entries():
            if entry.state == self._states.COMPLETE and "result" in entry.attributes:
                found.setdefault(entry.key, json.loads(entry.attributes["result"]))
        return found

    def failures(self) -> dict[str, str]:
        """Return why jobs failed for good, by key."""
        live = {entry.key for entry in self._live()}
        return {
            entry.key: str(entry.attributes["reason"])
            for entry in self._entries()
            if entry.state == self._states.FAIL and "reason" in entry.attributes and entry.key not in live
        }

    def running(self) -> dict[str, str]:
        """Return who works at what: worker by job key."""
        return {
            entry.key: str(entry.attributes.get("worker", "?"))
            for entry in self._live()
            if entry.state == self._states.RUNNING
        }

    def _put(self, job: Job, *, attempt: int) -> None:
        renewals = list(self._aside().values()).count(job.key)
        fields = {"arm": job.arm, "seed": job.seed, "settings": job.settings, "renewals": renewals}
        attributes = {"job": job.key, "fields": json.dumps(fields), "attempt": attempt}
        self._storage.create_new_trial(
            self._study_id,
            template_trial=self._trial(state=self._states.WAITING, user_attrs=dict(attributes)),
        )

    def _aside(self) -> dict[int, str]:
        """Return the trials whose results were set aside, with the keys of their jobs; a finished trial takes no mark itself."""
        marks = self._storage.get_study_user_attrs(self._study_id)
        return {
            int(name.removeprefix(_ASIDE)): str(key) for name, key in marks.items() if name.startswith(_ASIDE)
        }

    def _entries(self) -> list[_Entry]:
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        aside = self._aside()
        return [
            _Entry(
                t._trial_id,
                t.number,
                t.state,
                t.user_attrs,
                t.datetime_start.timestamp() if t.datetime_start else 0.0,
            )
            for t in trials
            if "job" in t.user_attrs and t._trial_id not in aside
        ]

    def _live(self) -> list[_Entry]:
        """Return the entries that wait, run or are complete."""
        return [entry for entry in self._entries() if entry.state != self._states.FAIL]

    def _first_of(self, key: str) -> int:
        """Return the entry of a job that counts: the oldest live one."""
        return min(entry.trial_id for entry in self._live() if entry.key == key)

    def _reclaim(self) -> None:
        """Put up again what workers left behind that are gone."""
        for entry in self._live():
            if entry.state != self._states.RUNNING or not is_gone(entry.attributes, entry.started):
                continue
            try:
                self._storage.set_trial_user_attr(
                    entry.trial_id, "reason", f"its worker ended ({entry.attributes.get('worker', '?')})"
                )
                self._storage.set_trial_state_values(entry.trial_id, self._states.FAIL)
            except self._race:  # another worker did it
                continue
            attempt = int(entry.attributes["attempt"]) + 1
            if entry.key not in {other.key for other in self._live()}:
                self._put(Job(**json.loads(entry.attributes["fields"])), attempt=attempt)


def open_storage(url: str | Path) -> Any:
    """Open an Optuna storage; a path is an SQLite file, made if missing.

    Raises:
        DataError: it cannot be opened.
    """
    library = optuna(needed_for="comparing strategies")
    from sqlalchemy.exc import SQLAlchemyError  # Optuna's own

    library.logging.set_verbosity(library.logging.ERROR)
    if isinstance(url, Path):
        url.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{url}"
    # Named, since which driver SQLAlchemy takes by itself depends on its version.
    url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        return library.storages.RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        raise DataError(
            f"the storage {_without_password(url)} cannot be opened: its driver is not installed.",
            hint="pip install 'seedbed[postgres]'" if "+psycopg:" in url else "sqlite:///FILE needs none",
        ) from error
    except (
        SQLAlchemyError,
        RuntimeError,
        OSError,
    ) as error:  # RuntimeError: made by another version of Optuna
        raise DataError(
            f"the storage {_without_password(url)} cannot be opened: {type(error).__name__}.",
            hint="name a file, sqlite:///FILE, or a PostgreSQL database that can be reached",
        ) from error


def taking_turns(storage: Any) -> AbstractContextManager[None]:
    """Let one worker at a time look for work while the block runs, where the storage is an SQLite file.

    Optuna reads a trial's state and then sets it; a server locks the row in between, SQLite does not, and two workers took one
    trial in 2 of 12 runs of 24 short jobs. Elsewhere nothing is done.
    """
    engine = getattr(storage, "_backend", storage).engine
    if engine.dialect.name == "sqlite" and engine.url.database:
        return in_turn(Path(f"{engine.url.database}.lock"))
    return nullcontext()


@contextmanager
def alive(storage: Any, trial_id: int) -> Iterator[None]:
    """Give signs of life for a trial while the block runs."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_SECONDS):
            _beat(storage, trial_id)

    _beat(storage, trial_id)
    thread = threading.Thread(target=beat, daemon=True, name="sign of life")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _beat(storage: Any, trial_id: int) -> None:
    """Write who works at a trial, and that it lives."""
    sign = {
        "worker": f"process {os.getpid()} on {platform.node()}",
        "pid": os.getpid(),
        "host": platform.node(),
        "began": psutil.Process().create_time(),
        "beat": time.time(),
    }
    race = optuna(needed_for="comparing strategies").exceptions.UpdateFinishedTrialError
    try:
        for name, value in sign.items():
            storage.set_trial_user_attr(trial_id, name, value)
    except race:  # it ended meanwhile
        return


def is_gone(sign: Mapping[str, Any], started: float) -> bool:
    """Say whether the worker that took a trial has ended.

    Args:
        sign: attributes of the trial, its last sign of life among them.
        started: when it was taken, in seconds since 1970.
    """
    if "beat" not in sign:  # taken a moment ago, or its worker ended within that moment
        return time.time() - started > _SILENCE_SECONDS
    if sign.get("host") == platform.node():
        try:
            began = psutil.Process(int(sign["pid"])).create_time()
            # Reckoned from the time of start-up, which two processes may read a second apart.
            return abs(began - float(sign["began"])) > _CLOCK_SECONDS
        except psutil.NoSuchProcess:
            return True
    return time.time() - float(sign["beat"]) > _SILENCE_SECONDS


def _without_password(url: str) -> str:
    """Return the address with what stands between user and host left out."""
    head, at, tail = url.rpartition("@")
    scheme, _, login = head.partition("://")
    return f"{scheme}://{login.partition(':')[0]}:...@{tail}" if at else url


def optuna(*, needed_for: str) -> Any:
    """Return the library.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import optuna as library
    except ImportError as error:
        raise DependencyError("optuna", extra="tune", needed_for=needed_for) from error
    return library
