"""Questions to the service all the while, to count those that are not answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from driftline.client import ClientError
from driftline.configs.settings import Serving
from driftline.serving.local import client_of

EVERY_S = 0.1
FIRST_ANSWER_S = 300.0
"""How long a service may take to start: where nothing was compiled before, it compiles first, beside all the others."""
MESSAGE_CHARACTERS = 200


class Queries:
    """Asks for states and recommendations, one after another, from the first answer on.

    Attributes:
        asked: questions.
        failed: those that ended in an error, by what it said.
    """

    def __init__(self, settings: Serving, users: Sequence[str]) -> None:
        self._settings, self._users = settings, users
        self.asked, self.failed = 0, Counter[str]()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begins to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ends with the call that is under way."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        begun = time.monotonic()
        with client_of(self._settings) as client:
            while not self._stopping.wait(EVERY_S):
                user = self._users[self.asked % len(self._users)]
                try:
                    client.user_state(user)
                    client.recommend(user)
                except ClientError as error:
                    if self.asked or time.monotonic() - begun > FIRST_ANSWER_S:  # it may still be starting
                        self.failed[f"{error.code}: {error}"[:MESSAGE_CHARACTERS].replace(user, "USER")] += 1
                        self.asked += 1
                    continue
                self.asked += 1
