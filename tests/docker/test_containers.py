"""The image and the compose file on a Docker engine; skipped where none answers."""

import subprocess
import time
from pathlib import Path

import grpc
import pytest

from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

ROOT = Path(__file__).parents[2]
CUSTOMER = "13085"


def missing():
    """What a machine lacks for these tests, in words; "" = nothing."""
    for command, part in ((["docker", "info"], "Docker engine"), (["docker", "compose", "version"], "docker compose")):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return f"no {part} answers on this machine"
    return ""


@pytest.fixture(scope="module")
def compose():
    if missing():
        pytest.skip(missing())
    from testcontainers.compose import DockerCompose

    with DockerCompose(ROOT / "docker", compose_file_name="compose.yaml", build=True, wait=True) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_events_produced_to_the_compose_stack_come_back_over_grpc(compose):
    produce = ["driftline", "produce", "--events", "stream/bundled/events.parquet", "--until", "2009-12-02"]
    environment = {"DRIFTLINE__BROKER__BOOTSTRAP": "localhost:29092"}
    subprocess.run(["env", *(f"{k}={v}" for k, v in environment.items()), *produce], cwd=ROOT, check=True, timeout=300)
    with grpc.insecure_channel("localhost:50551") as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        deadline = time.monotonic() + 120
        while not stub.GetUserState(pb.GetUserStateRequest(user_id=CUSTOMER)).user_state.known:
            assert time.monotonic() < deadline, "the first customer's events did not arrive in two minutes"
            time.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_prometheus_sees_every_process(compose):
    stdout, _, _ = compose.exec_in_container(
        ["wget", "--quiet", "--output-document=-", "http://localhost:9090/api/v1/targets"], "prometheus"
    )
    for job in ("worker", "trainer", "profiler", "serve"):
        assert f'"job":"{job}"' in stdout
