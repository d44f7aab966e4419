"""Several services on one port under one supervisor: they share callers, replace each other, and end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.stream.cli.outcome import Run, refused

from driftline.client import Client, ClientError
from driftline.configs.addresses import free_port


@contextmanager
def serving(folder: Path, port: int, metrics: int) -> Iterator[subprocess.Popen[str]]:
    """`driftline serve` with two processes, on the embedded broker."""
    environment = os.environ | {
        "DRIFTLINE__SERVING__PROCESSES": "2",
        "DRIFTLINE__SERVING__PORT": str(port),
        "DRIFTLINE__SERVING__ITEMS_WAIT_S": "0",
        "DRIFTLINE__METRICS__SERVING_PORT": str(metrics),
        "DRIFTLINE__BROKER__EMBEDDED_PORT": str(free_port()),
        "DRIFTLINE__BROKER__EMBEDDED_DIR": str(folder / "broker"),
    }
    command = [sys.executable, "-P", "-m", "driftline.stream.cli.command", "serve"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=folder, env=environment, stderr=log, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def services(parent: subprocess.Popen[str]) -> list[int]:
    """Processes that answer, by pid."""
    found = []
    for child in psutil.Process(parent.pid).children():
        with suppress(psutil.NoSuchProcess):  # the parent has not seen yet that it ended
            found += [child.pid] * ("serve" in child.cmdline())
    return found


def answers(port: int) -> bool:
    """Whether the process with this metrics port lives."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_two_processes_share_a_port_and_one_that_was_killed_comes_again(tmp_path: Path, wait: Any) -> None:
    port, metrics = free_port(), free_port()
    with serving(tmp_path, port, metrics) as parent:
        wait(lambda: answers(metrics) and answers(metrics + 1), 180, "both run")
        first, second = services(parent)
        os.kill(first, signal.SIGKILL)
        with Client(f"127.0.0.1:{port}") as client:
            wait(lambda: _state(client), 30, "the other one answers")
        wait(lambda: len(services(parent)) == 2 and answers(metrics) and answers(metrics + 1), 180, "both run again")
        assert second in services(parent)
        both = services(parent)
        parent.terminate()
        assert parent.wait(30) == 0, (tmp_path / "log").read_text()
    assert not any(psutil.pid_exists(pid) for pid in both)


def test_a_port_of_another_service_is_one_message(driftline: Run, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        environment = {
            "DRIFTLINE__SERVING__PROCESSES": "2",
            "DRIFTLINE__SERVING__PORT": str(other.getsockname()[1]),
            "DRIFTLINE__BROKER__EMBEDDED_PORT": str(free_port()),
            "DRIFTLINE__BROKER__EMBEDDED_DIR": str(tmp_path),
        }
        refused(driftline("serve", **environment), 64, "is in use by another process")


def _state(client: Client) -> bool:
    try:
        client.user_state("nobody")
    except ClientError:
        return False
    return True
