"""Peers as arms: refitted every `peers.refit_days` from the past of that moment, asked in between with the live past.

    request at or after a refit moment -> fit: the wanted rows that have arrived, stamped strictly before it
    every request                      -> score: the user's wanted rows until now; nothing of others since the fit
    arrival                            -> kept on this side until the next fit

The process is told nothing else, so it can't know the future; that it is a function of what it is told, the leak audit
shows. Items that came after a fit rank behind those that it knows, tied.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from driftline.stream.replay.arms import Arrival, Ranking, Request, Slate
from driftline.stream.replay.peers.environment import python_of_peers
from driftline.stream.replay.peers.process import SERVE, Peer
from driftline.stream.replay.peers.side.serve import Array

if TYPE_CHECKING:
    from driftline.stream.replay.arms import Arm, Cost, Setup

DAY_MS = 86_400_000
MODELS = {
    "peer:implicit_als": ("implicit_peers.py", "als"),
    "peer:implicit_bm25": ("implicit_peers.py", "bm25"),
    "peer:lightgbm": ("lightgbm_peers.py", "ranker"),
    "peer:rectools_sasrec": ("rectools_peers.py", "sasrec"),
    "peer:rectools_hstu": ("rectools_peers.py", "hstu"),
}
"""By arm, the file of its models beside serve.py and the name in it."""
COLUMNS = {"user": np.int32, "item": np.int32, "t_ms": np.int64, "weight": np.float32, "group": np.int64}
NOTHING: dict[str, Array] = {name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()}
"""No rows, as they are handed over."""


class PeerArm:
    """A process of another maker as an arm.

    Args:
        name: of the arm.
        setup: see Setup; processes are kept in `shared["peers"]`, one a model, and are fitted anew by each pass.
        python, file, model: what the process runs.
    """

    refresh_cpu_s = 0.0
    trained_share = 1.0

    def __init__(self, name: str, setup: Setup, python: Path, file: Path, model: str) -> None:
        self.name, self._setup = name, setup
        self._made_by = python, file, model
        self._every_ms = round(setup.settings.peers.refit_days * DAY_MS)
        self._running: dict[str, Peer] = setup.shared.setdefault("peers", {})
        self._moment_ms = 0
        self._known = self._fits = 0
        self._users: dict[str, int] = {}
        self._past: list[dict[str, Array]] = []
        self._fit_s = self._score_s = self._own_train_s = self._own_score_s = 0.0

    @property
    def cost(self) -> Cost:
        """CPU seconds of the process, and of what hands rows and questions to it."""
        return {"peer": (self._fit_s, self._score_s), "handing over": (self._own_train_s, self._own_score_s)}

    @property
    def note(self) -> str:
        """When it was fitted."""
        days = self._setup.settings.peers.refit_days
        return f"fitted anew every {days:g} days on the rows before, {self._fits} times; users' own past is live"

    def start(self, split_ms: int) -> None:
        """The first fit is at the split."""
        self._moment_ms = split_ms

    def score(self, request: Request) -> Slate:
        """Fits when a moment for it has come, then asks."""
        before, peer = time.process_time(), self._peer()
        spent = peer.cpu_s
        if request.t_ms >= self._moment_ms:
            self._fit(peer, request)
            self._fit_s += peer.cpu_s - spent
        spent, rows, log = peer.cpu_s, request.history, request.log
        rows = rows[log.positive[rows] & (log.item[rows] < self._known)]
        asked: dict[str, Array] = {"items": log.item[rows], "times": log.t_ms[rows], "groups": log.group_of[rows]}
        scores = peer.ask({"do": "score", "t_ms": request.t_ms}, asked)["scores"]
        self._score_s += peer.cpu_s - spent
        self._own_score_s += time.process_time() - before
        items = np.flatnonzero(~np.isnan(scores)).astype(np.int32)
        return Slate(Ranking(scores[items], items))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Keeps the wanted rows for the next fit."""
        before = time.process_time()
        rows = arrival.rows[arrival.log.positive[arrival.rows]]
        if len(rows):
            user = self._users.setdefault(request.user_id, len(self._users))
            self._past.append(
                {
                    "user": np.full(len(rows), user, np.int32),
                    "item": arrival.log.item[rows],
                    "t_ms": arrival.log.t_ms[rows],
                    "weight": arrival.log.weight[rows],
                    "group": np.full(len(rows), arrival.number, np.int64),
                }
            )
        self._own_train_s += time.process_time() - before

    def _peer(self) -> Peer:
        """The process, which passes share one after another."""
        if self.name not in self._running:
            self._running[self.name] = Peer(*self._made_by)
        return self._running[self.name]

    def _fit(self, peer: Peer, request: Request) -> None:
        """Fits at the last moment that has come, on what arrived and is of before."""
        self._moment_ms += (request.t_ms - self._moment_ms) // self._every_ms * self._every_ms
        self._fits, self._known = self._fits + 1, request.pool
        fits = self._fits + max(0, int(request.log.t_ms.max()) - self._moment_ms) // self._every_ms
        what = f"{self.name}: fit {self._fits} of {fits}"
        self._setup.say(what, 0, 1)
        rows = {name: np.concatenate([part[name] for part in (NOTHING, *self._past)]) for name in NOTHING}
        before = rows["t_ms"] < self._moment_ms
        message = {"do": "fit", "items": request.pool, "now_ms": self._moment_ms, "seed": self._setup.seed}
        peer.ask(message, {name: column[before] for name, column in rows.items()}, partial(self._setup.say, what))
        self._setup.say(what, 1, 1)
        self._moment_ms += self._every_ms


def build(name: str, setup: Setup) -> Arm | None:
    """The arm of a name; None if it is no peer's.

    Raises:
        InputError: there is no environment for peers.
    """
    if name not in MODELS:
        return None
    file, model = MODELS[name]
    return PeerArm(name, setup, python_of_peers(name), SERVE.with_name(file), model)
