"""The supervisor: starts a crashed child again, passes signals on, gives up in the end, and takes its child along."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import driftline.stream.ops.supervisor as module
from driftline.stream.ops.supervisor import Child, Supervisor, cli, worker

COUNT = """
import os, sys
path, codes = sys.argv[1], [int(code) for code in sys.argv[2].split(",")]
runs = len(open(path).read()) if os.path.exists(path) else 0
open(path, "a").write(".")
code = codes[min(runs, len(codes) - 1)]
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""

SUPERVISED = """
import sys, time
from driftline.stream.ops.supervisor import Child, Supervisor
command = [sys.executable, "-m", "driftline.stream.ops.child", sys.argv[1]]
sys.exit(Supervisor([Child("part", command, {})]).run())
"""
CHILD = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
BUSY = """
import ctypes, os
print(os.getpid(), flush=True)
ctypes.PyDLL(None).sleep(60)  # as an import may, it lets no other thread of Python run
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[int, int]]:
    """(exit code of the supervisor, starts of the child) for children that end with these codes, one after another."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(codes: str) -> tuple[int, int]:
        path = tmp_path / codes
        code = Supervisor([Child("part", [sys.executable, "-c", COUNT, str(path), codes], {})]).run()
        for number, handler in kept.items():
            signal.signal(number, handler)
        return code, len(path.read_text())

    return run


def test_a_child_that_crashed_or_was_killed_is_started_again(runs: Callable[[str], tuple[int, int]]) -> None:
    assert runs("70,-9,0") == (0, 3)


def test_a_child_with_an_error_that_a_user_can_mend_is_not(runs: Callable[[str], tuple[int, int]]) -> None:
    assert runs("75") == (75, 1)
    assert runs("69") == (69, 1)


def test_a_broker_that_went_away_after_the_first_start_is_waited_for(runs: Callable[[str], tuple[int, int]]) -> None:
    assert runs("70,69,69,0") == (0, 4)


def test_a_child_that_keeps_crashing_is_given_up(runs: Callable[[str], tuple[int, int]]) -> None:
    assert runs("70") == (70, module.FAILURES + 1)


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """The command of a supervisor over a child with this code, in a module of its own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(":")]))

    def made(code: str) -> list[str]:
        (tmp_path / "a_child.py").write_text(code)
        return [sys.executable, "-c", SUPERVISED, "a_child"]

    return made


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, CHILD), (signal.SIGKILL, CHILD), (signal.SIGKILL, BUSY)])
def test_no_child_outlives_its_supervisor(
    number: signal.Signals, code: str, supervised: Callable[[str], list[str]], wait: Any
) -> None:
    with subprocess.Popen(supervised(code), stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        supervisor.send_signal(number)
        supervisor.wait(30)
    wait(lambda: not _runs(child), 5, "the child ends")


def test_what_a_supervisor_starts_is_tied_to_it_before_its_own_imports() -> None:
    for command in (worker(None), cli("trainer", None), cli("serve", "media")):
        assert command[:5] == [sys.executable, "-P", "-m", "driftline.stream.ops.child", command[4]]
    code = "import driftline.stream.ops.child, sys; print([n for n in sys.modules if n.startswith('driftline.')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(ast.literal_eval(found)) <= {
        "driftline.stream",
        "driftline.stream.ops",
        "driftline.stream.ops.child",
        "driftline.configs",
        "driftline.configs.errors",
    }


def test_ctrl_c_while_the_child_starts_ends_both_without_a_traceback(
    supervised: Callable[[str], list[str]], wait: Any
) -> None:
    command = supervised(CHILD)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        os.killpg(supervisor.pid, signal.SIGINT)  # as a terminal does: to both
        said = supervisor.communicate(timeout=30)[1].splitlines()
        assert [line for line in said if "stopping" not in line] == []
    assert supervisor.returncode == 0
    wait(lambda: not _runs(child), 30, "the child ends")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
