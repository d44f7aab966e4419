"""Models for the process of a peer whose answers can be told by hand."""

import os
import sys
import time

import numpy as np


class Counted:
    """How often an item was in the rows of the fit, and 100 for each time that this user took it until now.

    An item that nobody took in those rows is not known. With `blind` it says nothing of any user.
    """

    def __init__(self, blind=False):
        self.blind = blind

    def fit(self, rows, seed, tell):
        print("libraries print")
        tell(1, 2)
        self.counts = np.bincount(rows.item, minlength=rows.items).astype(np.float32)
        assert (rows.t_ms < rows.now_ms).all()

    def score(self, query):
        if self.blind:
            return None
        scores = self.counts + 100 * np.bincount(query.items, minlength=len(self.counts))
        return np.where(self.counts > 0, scores, np.nan)


class Remembering(Counted):
    """Keeps what it learnt in fits before."""

    def __init__(self):
        super().__init__()
        self.fits = 0

    def fit(self, rows, seed, tell):
        super().fit(rows, seed, tell)
        self.fits += 1
        self.counts = np.roll(self.counts, self.fits)


class Broken(Counted):
    def fit(self, rows, seed, tell):
        raise ValueError("no such luck")


class Endless(Counted):
    def fit(self, rows, seed, tell):
        tell(os.getpid(), 0)
        time.sleep(300)


class Gone(Counted):
    def fit(self, rows, seed, tell):
        sys.stdout.flush()
        os._exit(3)


MODELS = {
    "counted": Counted,
    "blind": lambda: Counted(blind=True),
    "remembering": Remembering,
    "broken": Broken,
    "endless": Endless,
    "gone": Gone,
}
