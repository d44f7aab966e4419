"""The stream's way to the broker, whatever happens to the broker meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from driftline.configs.errors import BrokerError
from driftline.configs.settings import Broker
from driftline.stream.chaos.troubles import Message
from driftline.stream.events.produce import sender

LOG = logging.getLogger(__name__)
PIECE = 100
LOOK_S = 0.1
STOP_S = 10.0


class Feed:
    """How far the sending is.

    Attributes:
        sent: messages that were sent, up to `PIECE` fewer than lie in the topic.
        done: set when all of them are acknowledged.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.done, self.stopping = threading.Event(), threading.Event()
        self._failed: BaseException | None = None

    def send(self, settings: Broker, bootstrap: str, messages: Sequence[Message], up_to: Callable[[], int]) -> None:
        """Sends all messages, see `fed`; an error is kept for `check`."""
        try:
            while self.sent < len(messages) and not self.stopping.is_set():
                _send_on(self, settings, bootstrap, messages, up_to)
            if self.sent >= len(messages):
                self.done.set()
        except BaseException as error:  # noqa: BLE001 - raised where somebody looks
            self._failed = error

    def check(self) -> None:
        """Raises what the sending failed with."""
        if self._failed is not None:
            raise self._failed


@contextmanager
def fed(settings: Broker, bootstrap: str, messages: Sequence[Message], up_to: Callable[[], int]) -> Iterator[Feed]:
    """Sends messages in a thread.

    Args:
        settings, bootstrap: the broker.
        messages: in order of sending.
        up_to: how many may be sent by now.

    Raises:
        BaseException: at the end, what the thread failed with.
    """
    feed = Feed()
    thread = threading.Thread(target=feed.send, args=(settings, bootstrap, messages, up_to), daemon=True)
    thread.start()
    try:
        yield feed
        feed.check()
    finally:
        feed.stopping.set()
        thread.join(STOP_S)


def _send_on(
    feed: Feed, settings: Broker, bootstrap: str, messages: Sequence[Message], up_to: Callable[[], int]
) -> None:
    """Sends on; what a broker that went away did not acknowledge is sent again: duplicates."""
    try:
        with sender(settings, bootstrap) as to_kafka:
            while feed.sent < len(messages):
                while feed.sent > up_to():
                    if feed.stopping.wait(LOOK_S):
                        return
                to_kafka.send("interactions", messages[feed.sent : feed.sent + PIECE])
                feed.sent += PIECE
    except BrokerError as error:
        LOG.info("producer: %s", error)
        time.sleep(1.0)
