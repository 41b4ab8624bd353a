"""Options, marker rules and the toy fixtures every test may use."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import seedbed  # noqa: F401 - switches telemetry off before any other library is imported


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data",
        default=None,
        metavar="DIR",
        help="folder with the development corpora; tests marked `data` need it",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    chosen = config.option.markexpr
    for item in items:
        if item.get_closest_marker("data") and config.getoption("--data") is None:
            item.add_marker(pytest.mark.skip(reason="needs --data DIR"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        for tier in ("slow", "fault"):
            if item.get_closest_marker(tier) and tier not in chosen:
                item.add_marker(pytest.mark.skip(reason=f"runs with -m {tier}"))


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The development corpora (`--data DIR`)."""
    return Path(request.config.getoption("--data"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid every connection beyond loopback: no test, and nothing a test runs in this process, may need a network."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"connection beyond loopback: {address!r}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: toys gain nothing from two, and wait for each other where cores are shared.

    Set back behind each test too: fixtures of a module are made before this one of a function.
    """
    import torch

    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
