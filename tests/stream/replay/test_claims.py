"""Bold figures of docs/results.md and of the README are those that hold when all claims are corrected together."""

from __future__ import annotations

import math
import re
from pathlib import Path

import orjson
import pytest

from driftline.configs.errors import InputError
from driftline.stream.replay.claims import Claim, corrected, published

ROOT = Path(__file__).parents[3]
LEVEL = re.compile(r" \.(\d{3,4})(?= )")
LIFT = re.compile(r"(\*\*)?([+-]\d+\.\d)% \[(-?\d+\.\d), (-?\d+\.\d)\](\*\*)?")


def lifts(page: Path) -> list[tuple[str, str, str, bool]]:
    """Lift, interval and whether it is bold, of each that a page has in its tables."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [(m[2], m[3], m[4], m[1] is not None) for row in rows for m in LIFT.finditer(row)]


def test_every_lift_that_is_published_is_a_claim_and_bold_only_where_it_holds_among_all_of_them() -> None:
    def tenth(x: float) -> str:
        return f"{100 * x:.1f}"

    found = corrected(ROOT / "docs" / "results", published())
    claims = sorted((f"{100 * one.lift:+.1f}", *map(tenth, one.ci), one.holds) for one in found)
    cells = sorted(lifts(ROOT / "docs" / "results.md"))
    assert len(cells) == len(claims) == len(set(published())) == 99
    assert cells == claims
    named = lifts(ROOT / "README.md")
    assert len(named) > 10
    assert set(named) <= set(cells)


def test_the_levels_beside_a_lift_of_the_readme_are_the_means_that_it_compares() -> None:
    results, seen = ROOT / "docs" / "results", 0
    found = {f"{100 * one.lift:+.1f}": one.claim for one in corrected(results, published())}
    for row in (ROOT / "README.md").read_text().splitlines():
        levels, lift = LEVEL.findall(row), LIFT.search(row)
        if not row.startswith("|") or not levels or lift is None or "MRR" in row:
            continue  # the lift of a row with MRR is of another metric
        claim = found[lift[2]]
        compared = next(
            one
            for one in orjson.loads((results / f"{claim.file}.json").read_bytes())["comparisons"]
            if (one["a"], one["b"], one["list"]) == (claim.a, claim.b, claim.list)
            and claim.metric in ("", one.get("metric", ""))
        )
        digits = len(levels[0])
        means = [f"{compared[mean]:.{digits}f}"[2:] for mean in ("mean_b", "mean_a")]
        assert levels in (means, means[1:]), row
        seen += 1
    assert seen >= 7


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
