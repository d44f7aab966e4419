"""The short matrix: a real Apache Kafka, kills at random and between the steps, and nothing lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def broker_command() -> str:
    command = os.environ.get("DRIFTLINE_TEST_KAFKA", "")
    if not command:
        pytest.skip("DRIFTLINE_TEST_KAFKA names no command that runs a broker in the foreground")
    return command


def report(driftline: Any, *arguments: str) -> dict[str, Any]:
    done = driftline("chaos", "--json", *arguments, timeout_s=400)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0, found
    return found


def test_ten_kills_and_a_broker_restart_lose_and_double_nothing(driftline: Any, broker_command: str) -> None:
    found = report(
        driftline, "--kills", "10", "--limit", "10000", "--broker-command", broker_command, "--broker-restarts", "1",
        "--queries",
    )  # fmt: skip
    assert (found["lost"], found["doubled"], found["state_equal"], found["items_equal"], found["clean_equal"]) == (
        0, 0, True, True, True,
    )  # fmt: skip
    assert found["dlq_found"] == found["dlq_expected"] == 105
    assert (found["kills"], found["broker_restarts"]) == (10, 1)
    assert len(found["kills_by_point"]) >= 3
    assert found["queries"] > 0
    assert found["failed_queries"] == 0


def test_four_partitions_one_to_three_workers_a_pause_a_full_disk_and_adoptions_lose_nothing(
    driftline: Any, broker_command: str, tmp_path: Path
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("broker: {session_timeout_s: 6, heartbeat_s: 2}\n")
    found = report(
        driftline, "--kills", "4", "--limit", "12000", "--partitions", "4", "--workers", "2", "--scaling", "1,3,1",
        "--pauses", "1", "--full-disks", "1", "--trainer", "--broker-command", broker_command, "-c", str(config),
    )  # fmt: skip
    assert (found["lost"], found["doubled"], found["state_equal"]) == (0, 0, True)
    assert found["dlq_found"] == found["dlq_expected"]
    assert found["items_equal"]
    assert found["adoptions"] > 0
    assert (found["kills"], found["pauses"], found["full_disks"]) == (4, 1, 1)


def test_damaged_state_is_refused_rebuilt_and_ends_equal(driftline: Any) -> None:
    found = report(driftline, "--kills", "1", "--limit", "6000", "--damaged", "1")
    assert found["damaged"] == 1
    assert (found["lost"], found["doubled"], found["state_equal"]) == (0, 0, True)
