"""Compiled functions: kept between processes where a folder can be written, and working where none can."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numba
import numpy as np
import pytest

from driftline.graph import compiled as module
from driftline.graph.compiled import compiled
from driftline.graph.kernel import _exponential, _time_encoding, apply_events, apply_to_items


def test_a_function_that_cannot_be_cached_is_compiled_all_the_same() -> None:
    scope: dict = {}
    exec("def twice(n):\n    return 2 * n", scope)  # no file, so no place beside it
    twice = compiled("int64(int64)")(scope["twice"])
    assert twice(21) == 42
    assert twice.signatures


def thrice(n: int) -> int:
    return 3 * n


def test_a_damaged_cache_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert compiled("int64(int64)")(thrice)(5) == 15
    files = [path for path in tmp_path.rglob("*.nb*") if path.is_file()]
    assert files
    for damage in (b"", b"damaged", None):
        for path in files:
            path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
        assert compiled("int64(int64)")(thrice)(5) == 15


def test_what_one_process_compiled_the_next_one_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compiled("int64(int64)")(thrice)
    assert sum(compiled("int64(int64)")(thrice).stats.cache_hits.values()) == 1


MODULE = """
import sys, time
from driftline.graph import compiled
compiled.SAYS_S = 0.0
@compiled.compiled("float64(float64)")
def slow(x):
    return x ** 2.5 + x ** 1.5
print(len(slow.stats.cache_misses), slow(4.0), flush=True)
"""


def test_of_several_processes_one_compiles_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(MODULE)
    folder = tmp_path / "__pycache__"
    folder.mkdir()
    command = [sys.executable, str(tmp_path / "here.py")]
    with (folder / "compiling.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        processes = [subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True) for _ in range(3)]
        with pytest.raises(subprocess.TimeoutExpired):
            processes[0].communicate(timeout=10)
    found = [process.communicate(timeout=120) for process in processes]
    assert sorted(said for said, _ in found) == ["0 40.0\n", "0 40.0\n", "1 40.0\n"]
    said = "compiling machine code, once for each version of the code: 1 function so far\n"
    assert sorted(error for _, error in found) == ["", "", said]


def test_a_process_that_stands_still_as_it_compiles_holds_nobody_up_for_more_than_one_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module, "_waits_s", 0.1)
    looks: list[float] = []
    monkeypatch.setattr(module.time, "sleep", looks.append)
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.05 * len(looks))
    folder = Path(__file__).parent / "__pycache__"
    folder.mkdir(exist_ok=True)
    with (folder / "compiling.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert compiled("int64(int64)")(thrice)(5) == 15
        assert len(looks) == 2
        assert compiled("float64(float64)")(half)(5.0) == 2.5
        assert len(looks) == 2


def half(x: float) -> float:
    return x / 2


def test_kernels_are_compiled_for_their_types_before_the_first_event_and_for_no_others() -> None:
    for kernel in (apply_events, apply_to_items):
        assert len(kernel.signatures) == 1
        with pytest.raises(TypeError):
            kernel(1.0)
        assert len(kernel.signatures) == 1


def test_the_exponential_and_the_cosine_are_within_two_units_of_the_last_place() -> None:
    x = np.linspace(-86, 87, 40_001, dtype=np.float32)
    out = x.copy()
    _exponential(out, np.empty(len(x), np.int32))
    exact = np.exp(x.astype(np.float64))
    assert np.abs(out / exact - 1).max() < 2.5e-7
    days, w = np.float32(7300), np.linspace(1e-4, 150, 10_001, dtype=np.float32)
    out = np.empty_like(w)
    _time_encoding(days, w, np.zeros_like(w), out)
    np.testing.assert_allclose(out, np.cos((days * w).astype(np.float64)), atol=1.2e-7)
