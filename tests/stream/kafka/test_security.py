"""A Kafka that speaks TLS and wants a password: every client of driftline gets in, and says why when it does not."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.serving.test_profiles import record
from tests.serving.test_server import certificate
from tests.stream.conftest import World, answers, wait_for

from driftline.configs.addresses import free_port
from driftline.graph.rows import Event
from driftline.serving.profiles import ProfileFollower, ProfileStore
from driftline.stream.events.records import Outgoing
from driftline.stream.events.schema import encode_event

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
PASSWORD = "not in any log"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The section `broker` of an Apache Kafka with one listener for SASL_SSL; its certificate is its own authority."""
    script = os.environ.get("DRIFTLINE_TEST_KAFKA")
    if script is None:
        pytest.skip("no Apache Kafka that takes lines of server.properties: DRIFTLINE_TEST_KAFKA is not set")
    folder = tmp_path_factory.mktemp("secured")
    inner, outer = free_port(), free_port()
    process = _start(script, folder, inner, outer)
    try:
        wait_for(lambda: answers(outer) or process.poll() is not None, 90, "Kafka listens")
        assert process.poll() is None, (folder / "broker.out").read_text(errors="replace")[-2000:]
        yield {
            "bootstrap": f"127.0.0.1:{outer}", "security": "SASL_SSL", "tls_ca": str(folder / "certificate.pem"),
            "sasl_username": "shop", "sasl_password": PASSWORD,
        }  # fmt: skip
    finally:
        process.kill()
        process.wait()


def _start(script: str, folder: Path, inner: int, outer: int) -> subprocess.Popen[bytes]:
    chain, key = certificate(folder)
    (folder / "broker.pem").write_text(key.read_text() + chain.read_text())
    plain = f"PLAINTEXT://127.0.0.1:{inner}"
    lines = {
        "listeners": f"{plain},CONTROLLER://127.0.0.1:{inner + 1},SASL_SSL://127.0.0.1:{outer}",
        "advertised.listeners": f"{plain},SASL_SSL://127.0.0.1:{outer}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain.PlainLoginModule "
        f'required user_shop="{PASSWORD}";',
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
    }
    extra = {"KAFKA_EXTRA": "\n".join(f"{name}={value}" for name, value in lines.items())}
    with (folder / "broker.out").open("wb") as log:
        return subprocess.Popen([script, str(folder), str(inner)], stdout=log, stderr=log, env=os.environ | extra)


@pytest.fixture
def behind_tls(secured: dict[str, Any], tmp_path: Path) -> World:
    return World(tmp_path, secured["bootstrap"], f"t{time.time_ns()}.", broker=secured)


def test_topics_producers_worker_and_profile_reader_get_in_with_certificate_and_password(behind_tls: World) -> None:
    log = [(b"u", encode_event(Event("u", f"i{n}", 1_600_000_000_000 + n, "view"))) for n in range(50)]
    behind_tls.produce([*log, (b"u", b"{broken")])
    with behind_tls.worker() as worker:
        wait_for(lambda: worker.applied() == 51, what="everything is applied")
        worker.stop()
    assert behind_tls.stored_rows() == behind_tls.expected_rows()
    assert PASSWORD not in worker.log.read_text()
    store, broker = ProfileStore(), behind_tls.settings.broker
    behind_tls.send([Outgoing("profiles", b"u", record("u"))])
    follower = ProfileFollower(store, broker, behind_tls.bootstrap)
    try:
        wait_for(lambda: len(store) == 1, what="the profile is read")
    finally:
        follower.close()


PLAIN = {"security": "PLAINTEXT", "tls_ca": None, "sasl_username": ""}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sasl_password": "wrong"}, "speaks broker.security SASL_SSL and lets broker.sasl_username 'shop' in"),
        (PLAIN, "does not answer as a Kafka broker that speaks broker.security PLAINTEXT"),
        ({"tls_ca": None}, "does not answer as a Kafka broker that speaks broker.security SASL_SSL"),
    ],
)
def test_who_is_not_let_in_is_told_which_setting_to_correct(
    secured: dict[str, Any], tmp_path: Path, driftline: Any, changes: dict[str, Any], words: str
) -> None:
    config = tmp_path / "secured.yaml"
    config.write_text(yaml.safe_dump({"broker": secured | {"connect_timeout_s": 3.0} | changes}))
    ended = driftline("dlq", "list", "-c", str(config))
    assert ended.returncode == 69
    assert words in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    assert PASSWORD not in ended.stderr
