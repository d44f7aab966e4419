"""The README's bold figures are those that hold when all of its claims are corrected together."""

from __future__ import annotations

import math
import re
from pathlib import Path

import orjson
import pytest

from driftline.configs.errors import InputError
from driftline.stream.replay.claims import Claim, corrected, readme

ROOT = Path(__file__).parents[3]
CELL = re.compile(r"(\*\*)?([+-]\d+\.\d)% \[(-?\d+\.\d), (-?\d+\.\d)\](\*\*)?")


def test_every_lift_of_the_readme_is_a_claim_and_bold_only_where_it_holds_among_all_of_them() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    written = [CELL.fullmatch(cell.strip()) for row in rows for cell in row.split("|")]
    cells = sorted((m[2], m[3], m[4], m[1] is not None) for m in written if m is not None)

    def tenth(x: float) -> str:
        return f"{100 * x:.1f}"

    found = corrected(ROOT / "docs" / "results", readme())
    claims = sorted((f"{100 * one.lift:+.1f}", *map(tenth, one.ci), one.holds) for one in found)
    assert len(cells) == len(claims) == len(set(readme())) == 93
    assert cells == claims


def test_a_p_at_the_floor_of_its_draws_is_that_of_the_interval_and_others_stay(tmp_path: Path) -> None:
    wide = {"a": "x", "b": "y", "list": "novel", "lift": 0.1, "ci": [0.0, 0.21], "p": 0.04}
    sure = {"a": "x", "b": "z", "list": "novel", "lift": 0.1, "ci": [0.05, 0.152], "p": 2 / 2001}
    (tmp_path / "r.json").write_bytes(orjson.dumps({"protocol": {}, "comparisons": [wide, sure]}))
    first, second = corrected(tmp_path, [Claim("r", "x", "y", "novel"), Claim("r", "x", "z", "novel")])
    assert (first.p, first.p_holm) == (0.04, 0.04)
    z = math.log(1.1) / ((math.log(1.152) - math.log(1.05)) / (2 * 1.959964))
    assert second.p == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert second.p_holm == pytest.approx(2 * second.p)
    with pytest.raises(InputError, match=r"r\.json has no comparison of 'x' with 'q' on 'novel'; run the"):
        corrected(tmp_path, [Claim("r", "x", "q", "novel")])
