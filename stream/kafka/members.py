"""Members of the consumer group that died on this host: told to leave, so that their partitions move at once.

Kafka notices a killed worker when its session times out; the embedded broker never does. A worker's client id says
which process on which host it is, so the next worker of that host can tell the dead from the living.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from driftline.configs.errors import BrokerError
from driftline.configs.settings import Broker
from driftline.stream.exits import still_running
from driftline.stream.kafka.broker import admin

PREFIX = "driftline"
COORDINATOR_S, PAUSE_S = 30.0, 0.5
"""A broker that has just started, or never had a group, may take so long to answer for one."""


def client_id() -> str:
    """Names this process: host and process id namespace, process id, start time."""
    return f"{PREFIX}-{_host()}-{os.getpid()}-{int(psutil.Process().create_time())}"


def is_dead(client: str) -> bool:
    """Whether a client id names a process of this host that no longer runs."""
    parts = client.split("-")
    if len(parts) != 4 or parts[:2] != [PREFIX, _host()] or not (parts[2].isdigit() and parts[3].isdigit()):
        return False
    return still_running(int(parts[2]), int(parts[3]), 2.0) is None


def remove_dead_members(settings: Broker, bootstrap: str, group: str) -> int:
    """Makes dead processes of this host leave a group; returns how many. What the broker refuses is left to it."""
    with admin(settings, bootstrap) as client:
        try:
            members = client.describe_groups([group]).get(group, {}).get("members", [])
            dead = [MemberToRemove(member["member_id"]) for member in members if is_dead(member["client_id"])]
            if dead:
                client.remove_group_members(group, dead)
        except KafkaError:
            return 0
    return len(dead)


def members_of(settings: Broker, bootstrap: str, group: str) -> int:
    """How many members a group has.

    Raises:
        BrokerError: the broker does not say.
    """
    deadline = time.monotonic() + COORDINATOR_S
    with admin(settings, bootstrap) as client:
        while True:
            try:
                return len(client.describe_groups([group]).get(group, {}).get("members", []))
            except KafkaError as error:
                if not error.retriable or time.monotonic() >= deadline:
                    raise BrokerError(
                        f"the broker at {bootstrap} does not say who is in the group {group}: {error!r:.200}; check "
                        "the broker and the right to describe groups"
                    ) from None
            time.sleep(PAUSE_S)


def _host() -> str:
    """Eight hex digits for this boot of this machine and this namespace of process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    identity = boot.read_text() if boot.exists() else str(psutil.boot_time())
    with suppress(OSError):
        identity += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
