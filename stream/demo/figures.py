"""The figures that the demo ends with: how they are drawn from what was measured, and what they must say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from driftline.stream.demo.parts import DemoError
from driftline.stream.ops.scrape import scraped


def percentiles(values: list[float]) -> dict[str, float]:
    """The median and the 99th percentile."""
    if not values:
        return {"p50": float("nan"), "p99": float("nan")}
    return {f"p{q}": round(float(np.percentile(values, q)), 2) for q in (50, 99)}


def counter(port: int, name: str) -> int:
    """A counter of a part's `/metrics`."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", scraped(port), re.MULTILINE)
    return int(float(found[1])) if found else 0


def check_figures(figures: Mapping[str, Any], events: int) -> None:
    """Raises DemoError if something did not happen that must."""
    facts = {
        f"all {events:,} events were applied": figures["events_applied"] == events,
        "no event went to the dead-letter topic": figures["dlq"] == 0,
        "serving adopted several snapshots": figures["snapshots"] >= 2,
        "a language model wrote profiles": figures["llm_profiles"] >= 1,
        "the purchase changed the recommendations": figures["recommendations_before"]
        != figures["recommendations_after"],
        "ten items were recommended": len(figures["recommendations_after"]) == 10,
        "latencies were measured": all(
            np.isfinite(figures[name]["p99"]) for name in ("event_to_state_ms", "event_to_snapshot_s", "recommend_ms")
        ),
    }
    check_facts(facts, figures)


def check_facts(facts: Mapping[str, bool], figures: Mapping[str, Any]) -> None:
    """Raises DemoError if one does not hold."""
    failed = [fact for fact, holds in facts.items() if not holds]
    if failed:
        raise DemoError(f"expected that {'; that '.join(failed)}; the figures are {dict(figures)}")
