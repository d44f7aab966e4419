"""The real command line in processes of its own: one clear message and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests.stream.cli.outcome import Run, refused

from driftline.stream.cli import app
from driftline.stream.ops.revision import ROOT


def test_every_command_has_help_with_an_example(driftline: Run) -> None:
    import typer.main

    def walk(command: Any, path: list[str]) -> None:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                walk(inner, [*path, name])
        else:
            assert "Example: `" in (command.help or ""), path

    walk(typer.main.get_command(app), [])
    assert driftline("--help").returncode == 0


def test_the_version_is_that_of_the_package(driftline: Run) -> None:
    result = driftline("--version")
    assert (result.returncode, result.stdout) == (0, f"driftline {version('driftline')}\n")


def test_an_unknown_setting_names_the_nearest_key(driftline: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("broker:\n  bootstrp: localhost:9092\n")
    result = driftline("produce", "--events", "x.csv", "--config", str(tmp_path / "mine.yaml"))
    refused(result, 64, "did you mean 'broker.bootstrap'?")


def test_a_missing_preset_is_one_message(driftline: Run) -> None:
    refused(driftline("worker", "--config", "ecomerce"), 64, "did you mean 'ecommerce'?")


def test_a_wrong_broker_address_is_one_message_from_the_supervised_worker_too(driftline: Run) -> None:
    environment = {"DRIFTLINE__BROKER__BOOTSTRAP": "127.0.0.1:9", "DRIFTLINE__BROKER__CONNECT_TIMEOUT_S": "0.5"}
    refused(driftline("worker", **environment), 69, "no Kafka broker answers at 127.0.0.1:9")


def test_a_taken_broker_port_is_one_message(driftline: Run, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        environment = {
            "DRIFTLINE__BROKER__EMBEDDED_PORT": str(other.getsockname()[1]),
            "DRIFTLINE__BROKER__EMBEDDED_DIR": str(tmp_path),
        }
        refused(driftline("dlq", "list", **environment), 64, "is taken, so the embedded broker of ")


def test_a_broker_address_without_a_port_is_one_message(driftline: Run) -> None:
    refused(driftline("dlq", "list", DRIFTLINE__BROKER__BOOTSTRAP="127.0.0.1"), 64, "expected host:port")


def test_ctrl_c_while_a_command_is_still_loading_is_quiet() -> None:
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may have it ignored
import driftline.stream.cli.command
print(flush=True)
sys.argv[1:] = ["dlq", "list"]
driftline.stream.cli.command.main()
"""
    waits = {"DRIFTLINE__BROKER__BOOTSTRAP": "127.0.0.1:9", "DRIFTLINE__BROKER__CONNECT_TIMEOUT_S": "60"}
    for pause_s in (0.02, 0.1, 0.3, 1.5):
        command = [sys.executable, "-c", code]
        with subprocess.Popen(
            command, env=os.environ | waits, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        ) as process:
            process.stdout.readline()  # type: ignore[union-attr]
            time.sleep(pause_s)
            process.send_signal(signal.SIGINT)
            _, words = process.communicate(timeout=100)
        assert (process.returncode, b"Traceback" in words) == (130, False), words.decode()


def test_a_taken_port_of_the_service_ends_serve_and_up_at_once_with_one_message(world: Any, driftline: Run) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        environment = {"DRIFTLINE__SERVING__PORT": str(other.getsockname()[1])}
        for command in ("serve", "up"):
            begun = time.monotonic()
            refused(driftline(command, "-c", str(world.config), **environment), 64, "is in use by another process")
            assert time.monotonic() - begun < 20, command


def test_a_service_that_does_not_run_is_one_message(driftline: Run) -> None:
    refused(
        driftline("recommend", "u1", "--address", "127.0.0.1:9"),
        76,
        "start it with 'driftline up' or 'driftline serve'",
    )


def test_an_argument_that_is_no_text_is_one_message(driftline: Run) -> None:
    refused(driftline("query", "user", "\udcff\udcfe"), 65, "is not UTF-8; expected text")


@pytest.mark.parametrize("text", ["2010-11-25", "2010-11-25T00:00:00+00:00", "1290643200000"])
def test_times_may_be_dates_or_milliseconds(text: str) -> None:
    from driftline.stream.cli.common import parse_time

    assert parse_time(text) == 1_290_643_200_000


@pytest.mark.parametrize(
    "call", [("recommend", "u", "--at"), ("query", "user", "u", "--at"), ("produce", "--events", "x.csv", "--since")]
)
def test_a_time_that_is_none_is_refused_by_the_name_of_its_option(driftline: Run, call: tuple[str, ...]) -> None:
    result = driftline(*call, "yesterday")
    assert result.returncode == 2, result.stderr
    assert f"Invalid value for '{call[-1]}': got 'yesterday'" in result.stderr
    assert "2010-11-25T08:00" in result.stderr


def test_a_price_with_a_comma_is_refused_with_the_value_and_a_point(driftline: Run) -> None:
    result = driftline("recommend", "u", "--max-price", "15,50")
    assert result.returncode == 2, result.stderr
    assert "Invalid value for '--max-price': got '15,50'; expected a number with a decimal" in result.stderr


@pytest.mark.parametrize(("total", "count"), [(None, "events: 7 in "), (9, "events: 7 of 9 in ")])
def test_progress_shows_the_total_only_if_it_is_known(
    total: int | None, count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from driftline.stream.cli.common import progress

    with progress(total, "events") as update:
        update(7)
    assert count in capsys.readouterr().err


def test_a_bench_prints_its_figures_as_json(driftline: Run) -> None:
    figures = json.loads(driftline("bench", "graph", "--events", "1000", "--json").stdout)
    assert figures["events"] == 1000
    assert figures["in_rocksdb"]["per_s"] > 0
