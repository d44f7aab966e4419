"""A process that frees large arrays does not keep them, even if small ones that came later stay."""

import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
import psutil
from driftline.stream.learn.allocator import return_freed_memory
large = np.ones(30 << 17); del large  # from here on glibc would take up to 30 MB from its heap
rows, kept = [], []
for _ in range(100):
    rows.append(np.ones(2 << 17))
    kept.append(np.ones(1 << 12))
before = psutil.Process().memory_info().rss
rows.clear()
if sys.argv[1] == "trimmed":
    return_freed_memory()
print((before - psutil.Process().memory_info().rss) / 100 / (2 << 20))
"""


def share_returned(how: str) -> float:
    command = [sys.executable, "-c", SCRIPT, how]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_freed_arrays_go_back_to_the_system_between_small_ones_that_stay() -> None:
    assert share_returned("as it is") < 0.5  # else this test shows nothing
    assert share_returned("trimmed") > 0.9
