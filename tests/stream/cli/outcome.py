"""What the tests of commands share: a line of an events file, and how a command refuses."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Run = Callable[..., subprocess.CompletedProcess[str]]

EVENT = '{"user_id": "u1", "item_id": "i1", "timestamp_ms": 1600000000000, "colour": "red"}\n'


def refused(result: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert result.returncode == code, result.stderr
    messages = [line for line in result.stderr.splitlines() if line.startswith("driftline: ")]
    assert len(messages) == 1, result.stderr
    assert words in messages[0]
    assert "Traceback" not in result.stderr + result.stdout
