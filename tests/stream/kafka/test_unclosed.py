"""Nothing that asks for a broker again and again leaves anything open, however long none answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRIES = """
import logging, socket, sys, threading, time, psutil
from contextlib import suppress
from kafka.errors import KafkaError
from driftline.configs.errors import BrokerError
from driftline.configs.settings import Broker
from driftline.serving import asking
from driftline.serving.ends import Ends, EndsFollower
from driftline.serving.forget import Forgetter
from driftline.stream.kafka.broker import check_reachable
from driftline.stream.kafka.identity import Identities

def followed(settings, bootstrap):
    asking.RETRY_S, asking._BOOTSTRAP_MS = 0.01, 100
    follower = EndsFollower(Ends(), settings, bootstrap)
    time.sleep(0.5)
    follower.close()

asks = {
    "worker": lambda *at: Identities(*at).of([("items", 0)], [None]),
    "command": check_reachable,
    "forgetter": lambda *at: Forgetter(*at)._connect(100),
    "follower": followed,
}
logging.disable(logging.CRITICAL)
with socket.socket() as deaf:
    deaf.bind(("127.0.0.1", 0))
    deaf.listen(64)
    settings, bootstrap = Broker(connect_timeout_s=0.1), "127.0.0.1:%d" % deaf.getsockname()[1]
    before = psutil.Process().num_fds(), threading.active_count()
    for _ in range(2):
        with suppress(BrokerError, KafkaError):
            asks[sys.argv[1]](settings, bootstrap)
    after = psutil.Process().num_fds(), threading.active_count()
print("as before" if after == before else f"{before} files and threads became {after}")
"""


@pytest.mark.parametrize("who", ["worker", "command", "forgetter", "follower"])
def test_who_asks_for_a_broker_that_does_not_answer_leaves_neither_file_nor_thread(who: str) -> None:
    """In a process of its own: where one of them has let kafka-python close what it leaves open, all gain."""
    found = subprocess.run([sys.executable, "-c", TRIES, who], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout == "as before\n"
