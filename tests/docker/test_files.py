"""Compose file, image, Prometheus and Grafana: what can be checked without a Docker engine."""

import ast
import functools
import json
import re
from pathlib import Path

import pytest
import typer
import yaml

from driftline.configs.load import load
from driftline.stream.cli import app

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
PACKAGES = ("configs", "graph", "llm", "model", "serving", "stream")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def environment(service):
    """Of a service, with each ${NAME:-default} at its default."""
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for name, value in service["environment"].items()}


@functools.cache
def kinds():
    """Kind of every metric that the code exports, by name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    kind, name = ast.unparse(node.func).split(".")[-1], str(node.args[0].value)
                    if kind in ("Counter", "Gauge", "Histogram") and name.startswith("driftline_"):
                        found[name] = kind
    return found


def exported():
    """Every series name that Prometheus can read."""
    ends = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
    return {name + end for name, kind in kinds().items() for end in ends[kind]}


def named(text):
    return set(re.findall(r"\bdriftline_\w+", text))


def test_the_processes_are_the_four_long_running_parts():
    assert sorted(OURS) == ["profiler", "serve", "trainer", "worker"]
    commands = typer.main.get_command(app).commands
    for name, service in OURS.items():
        assert service["command"] == [name]
        assert name in commands


@pytest.mark.parametrize("name", OURS)
def test_the_environment_of_a_process_is_a_valid_configuration(name):
    given = environment(OURS[name])
    settings = load(given["DRIFTLINE_CONFIG"], given).settings
    assert settings.name == "ecommerce"
    assert settings.broker.bootstrap == "kafka:9092"
    assert not settings.serving.snapshots.is_absolute()  # below the working directory, which is the volume


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_has_a_health_check_and_comes_back(name):
    service = COMPOSE["services"][name]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"


def test_health_checks_ask_the_ports_that_the_settings_open():
    given = environment(OURS["worker"])
    settings = load(None, given).settings
    ports = {
        "worker": settings.metrics.worker_port,
        "trainer": settings.metrics.trainer_port,
        "profiler": settings.metrics.profiler_port,
        "serve": settings.serving.port,
    }
    for name, port in ports.items():
        assert OURS[name]["healthcheck"]["test"][-1] == str(port)
    assert OURS["serve"]["ports"] == [f"127.0.0.1:{settings.serving.port}:{settings.serving.port}"]


def test_what_services_wait_for_and_mount_is_declared():
    for service in COMPOSE["services"].values():
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DOCKER / source).is_dir() if source.startswith(".") else source in COMPOSE["volumes"]


WRITES = {"worker": {"state"}, "trainer": {"trainer", "snapshots"}, "profiler": set(), "serve": set()}
READS = {"worker": set(), "trainer": set(), "profiler": set(), "serve": {"state", "snapshots"}}


def test_a_process_writes_its_own_volumes_as_a_user_of_its_own_and_reads_others():
    users = {name: service["user"].split(":") for name, service in OURS.items()}
    assert len({uid for uid, _ in users.values()}) == len(users)
    assert {gid for _, gid in users.values()} == {"10000"}
    owners = dict(
        re.findall(r"--owner=(\d+) --group=10000 (.+?)(?: \\)?\n", (DOCKER / "Dockerfile").read_text("utf-8"))
    )
    folder_of = {folder: uid for uid, folders in owners.items() for folder in folders.split()}
    settings = load(None, environment(OURS["worker"])).settings
    folders = {
        "state": settings.state.root,
        "trainer": settings.trainer.root,
        "snapshots": settings.serving.snapshots,
    }
    for name, service in OURS.items():
        found = {"": set(), "ro": set()}
        for mount in service["volumes"]:
            volume, target, mode = (mount.split(":") + [""])[:3]
            assert target == f"/data/{folders[volume]}"
            found[mode].add(volume)
            if not mode:
                assert folder_of[target] == users[name][0]
        assert (found[""], found["ro"]) == (WRITES[name], READS[name])
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_metrics_are_for_the_network_of_the_containers_alone():
    assert environment(OURS["worker"])["DRIFTLINE__METRICS__HOST"] == "0.0.0.0"
    for service in OURS.values():
        assert all(port.startswith("127.0.0.1:") and not port.endswith(":910") for port in service.get("ports", ()))


def test_kafka_is_apache_kafka_4_without_zookeeper():
    kafka = COMPOSE["services"]["kafka"]
    assert re.search(r"apache/kafka:\$\{KAFKA_VERSION:-4\.", kafka["image"])
    assert kafka["environment"]["KAFKA_PROCESS_ROLES"] == "broker,controller"
    listeners = {part.split("://")[0] for part in kafka["environment"]["KAFKA_LISTENERS"].split(",")}
    protocols = {part.split(":")[0] for part in kafka["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}
    assert listeners == protocols


def test_the_image_copies_what_exists_and_every_package():
    text = (DOCKER / "Dockerfile").read_text("utf-8")
    copied = [
        source for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for source in line.split()[:-1]
    ]
    assert set(PACKAGES) < set(copied)
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source not in ignored
    assert "USER driftline" in text


def test_prometheus_scrapes_the_ports_that_the_settings_open():
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text("utf-8"))
    metrics = load(None, environment(OURS["worker"])).settings.metrics
    wanted = {
        "worker": metrics.worker_port,
        "trainer": metrics.trainer_port,
        "profiler": metrics.profiler_port,
        "serve": metrics.serving_port,
    }
    found = {}
    for job in config["scrape_configs"]:
        for entry in job.get("dns_sd_configs", ()):
            found[entry["names"][0]] = entry["port"]
        for entry in job.get("static_configs", ()):
            host, port = entry["targets"][0].split(":")
            found[host] = int(port)
    assert found == wanted
    for name in config["rule_files"]:
        assert (DOCKER / "prometheus" / name).is_file()


def test_alerts_name_metrics_that_the_code_exports():
    groups = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    for rule in rules:
        assert named(rule["expr"]) <= exported(), rule["alert"]
        assert named(rule["expr"])
        assert rule["annotations"]["summary"]


def test_the_dashboard_shows_every_metric_and_no_other():
    board = json.loads((DOCKER / "grafana" / "dashboards" / "driftline.json").read_text("utf-8"))
    shown = set()
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            shown |= named(target["expr"])
    assert shown <= exported()
    missing = {name for name in kinds() if not any(series.startswith(name) for series in shown)}
    assert missing == set()


def test_panels_of_the_dashboard_have_a_place_of_their_own():
    board = json.loads((DOCKER / "grafana" / "dashboards" / "driftline.json").read_text("utf-8"))
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        assert panel["type"] == "row" or panel["description"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_grafana_finds_its_data_source_and_its_dashboards():
    provisioning = DOCKER / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"][0]
    provider = yaml.safe_load((provisioning / "dashboards" / "driftline.yaml").read_text("utf-8"))["providers"][0]
    mounts = dict(mount.split(":")[:2] for mount in COMPOSE["services"]["grafana"]["volumes"])
    board = (DOCKER / "grafana" / "dashboards" / "driftline.json").read_text("utf-8")
    assert set(re.findall(r'"uid": "(prometheus)"', board)) == {source["uid"]}
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
