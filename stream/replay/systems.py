"""Published systems as capabilities of the one engine: which are wired, and what committed results say of them.

    wired       an overlay in configs/systems switches it, in settings and as arms of a replay
    mechanism   `driftline systems run` found that its parts keep their contract, and its speed where speed is its claim
    works       every lift that it was built for holds, with an interval above 0, in every result that measured it

What is read are result files of `driftline replay` and `driftline systems run`. Nothing here is set by hand but the
rows and what each has to show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from driftline.configs.errors import InputError
from driftline.configs.switches import arms_of

WORDS = {"novel": "novel items", "repeat": "repeats", "overall": "all lists"}
STREAMS = {
    "engine-85": "the shop",
    "games-parts-85": "games",
    "songs-85": "songs",
    "news-36": "news",
    "edits-parts-85": "edits",
}
"""Results that say what a part is worth on a stream, one each."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A lift that a system has to show.

    Attributes:
        over: the arm that it is held against, and names that this arm has in earlier results.
        list: of the report.
        lift: at least so much, and an interval above 0.
        arm: what is held against it.
    """

    over: tuple[str, ...]
    list: str
    lift: float = 0.0
    arm: str = "incremental"


@dataclass(frozen=True, slots=True)
class Row:
    """A published system.

    Attributes:
        number: of its row; title, paper: as published.
        name: of its overlay, "" = not yet.
        parts: of the engine that it is made of.
        bars: what it has to show.
        speed: what it has to show of speed, in words; "" = nothing.
        also: what else it has to show, which no result file can hold yet: until then it doesn't `work`.
    """

    number: int
    title: str
    paper: str
    name: str = ""
    parts: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()
    speed: str = ""
    also: tuple[str, ...] = ()


ROWS = (
    Row(1, "LLM-KERec (Ant)", "arXiv 2402.13750"),
    Row(2, "LSVCR (Kuaishou)", "arXiv 2403.13574"),
    Row(3, "RecGPT (Kuaishou)", "arXiv 2404.08675"),
    Row(4, "LEARN (Kuaishou)", "arXiv 2405.03988"),
    Row(5, "SAID (Ant)", "doi 10.1145/3589335.3648307"),
    Row(
        6,
        "HSTU, Generative Recommenders (Meta)",
        "arXiv 2402.17152",
        "hstu",
        ("hstu",),
        (
            Bar(("sasrec",), "overall", 0.03, "hstu"),
            Bar(("incremental:hstu=off", "incremental-hstu"), "novel"),
            Bar(("incremental:hstu=placebo",), "novel"),
        ),
        "256 candidates scored at once, at 5 x the speed of a pass over the history for each, and alike",
        ("the lift over SASRec on public sequences without a clock, too",),
    ),
    Row(7, "BAHE (Ant)", "arXiv 2403.19347"),
    Row(8, "LLM4SBR", "arXiv 2402.13840"),
    Row(9, "DARE (Huawei)", "arXiv 2408.05676"),
    Row(10, "S&R Multi-Domain Foundation (Ant)", "arXiv 2309.08939"),
    Row(
        11,
        "DynLLM (Alibaba)",
        "arXiv 2405.07580",
        "dynllm",
        ("graph", "profiles"),
        (
            Bar(("incremental:profiles=off", "incremental-profiles"), "novel", 0.04),
            Bar(("incremental:dynllm=placebo", "incremental:profiles=placebo"), "novel"),
            Bar(("incremental:dynllm=template", "incremental:profiles=template"), "novel"),
            Bar(("ease_recent",), "novel"),
        ),
        also=("8% on novel items to users with at most three groups",),
    ),
    Row(12, "COSMO (Amazon)", "SIGMOD 2024"),
    Row(13, "SINGLE (Alibaba)", "arXiv 2311.07619"),
    Row(14, "Embeddings in ads recommendation (Tencent)", "arXiv 2403.00793"),
    Row(15, "NoteLLM (Xiaohongshu)", "arXiv 2403.01744"),
    Row(16, "Genre Spectrum (Tubi)", "arXiv 2309.08787"),
    Row(17, "TRAWL (WeChat)", "arXiv 2403.06642"),
    Row(18, "HKFR (Meituan)", "arXiv 2308.03333"),
)


def row_of(name: str) -> Row:
    """The row of a system that is wired.

    Raises:
        InputError: there is none.
    """
    for row in ROWS:
        if name and row.name == name:
            return row
    raise InputError(
        f"got {name!r}; expected a system that is wired: {', '.join(r.name for r in ROWS if r.name)}, or all"
    )


def arms_to_run(row: Row) -> list[str]:
    """The arms that show what a system adds: the engine, each arm of the system but `on`, and what its bars name."""
    switched = [f"incremental:{row.name}={arm}" for arm in arms_of(row.name) if arm != "on"]
    return list(
        dict.fromkeys(["incremental", *switched, *(bar.over[0] for bar in row.bars if bar.arm == "incremental")])
    )


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What lies in a folder of results, by name of the file.

    Raises:
        InputError: there is no such folder, or a file is not JSON.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one with results of driftline replay, as docs/results")
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = orjson.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path}: is not JSON: {error}") from error
    return {name: result for name, result in found.items() if isinstance(result, dict)}


def table(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """An entry for each row: its state, and the evidence for each of its bars."""
    return [_entry(row, found) for row in ROWS]


def _entry(row: Row, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    bars = [_measured(bar, found) for bar in row.bars]
    runs = [result for result in found.values() if row.name and result.get("system") == row.name]
    contract: dict[str, bool] = {}
    for run in runs:
        contract |= {part: held and contract.get(part, True) for part, held in run.get("contract", {}).items()}
    speeds = [run["speed"] for run in runs if run.get("speed")]
    kept = bool(contract) and all(contract.values())
    fast = not row.speed or (bool(speeds) and all(speed["holds"] for speed in speeds))
    lifts = (
        bool(bars)
        and not row.also
        and all(bar["measured"] and all(one["holds"] for one in bar["measured"]) for bar in bars)
    )
    state = "not yet" if not row.name else "wired"
    if row.name and kept and fast:
        state = "works" if lifts else "mechanism"
    return {
        "row": row.number,
        "system": row.name or None,
        "title": row.title,
        "paper": row.paper,
        "state": state,
        "arms": list(arms_of(row.name)) if row.name else [],
        "contract": contract,
        "speed": {"wanted": row.speed, "measured": speeds} if row.speed else None,
        "also": list(row.also),
        "bars": bars,
        "worth": [one for part in row.parts for one in _worth(part, found)],
    }


def _worth(part: str, found: Mapping[str, Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """What the engine with a part is over the engine without it, by stream: over all that comes next."""
    pairs = (("incremental", f"incremental-{part}"), (f"ranker+{part}", "ranker"))
    for name, stream in STREAMS.items():
        compared = {
            (one["list"], one["metric"]): one
            for one in found.get(name, {}).get("comparisons", ())
            if (one["a"], one["b"]) in pairs
        }
        if one := compared.get(("session", "ndcg@20")) or compared.get(("overall", "ndcg@10")):
            kept = {key: one[key] for key in ("a", "b", "list", "metric", "lift", "ci")}
            yield {"part": part, "stream": stream, "file": name, **kept, "verdict": _verdict(*one["ci"])}


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "works"
    return "costs" if high < 0 else "adds nothing that shows"


def _measured(bar: Bar, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    measured = []
    for name, result in found.items():
        for one in result.get("comparisons", ()):
            if one["a"] == bar.arm and one["b"] in bar.over and one["list"] == bar.list:
                holds = one["lift"] >= bar.lift and one["ci"][0] > 0
                kept = {key: one[key] for key in ("a", "b", "list", "lift", "ci")}
                measured.append({"file": name, **kept, "holds": holds})
                break
    return {"arm": bar.arm, "over": bar.over[0], "list": bar.list, "lift": bar.lift, "measured": measured}


def markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """docs/systems.md."""
    lines = [
        "# Published systems, one engine",
        "",
        "Written by `driftline systems table` from the results in [results](results); a test compares.",
        "",
        "- `wired`: an overlay in configs/systems switches it, in settings (`systems: {hstu: off}`) and as arms of a",
        "  replay (`incremental:hstu=off`);",
        "- `mechanism`: its parts keep their contract ([extending](extending.md)), and its speed where it claims one;",
        "- `works`: every lift that it was built for holds. Lifts are in NDCG@10, with 95% intervals.",
        "",
        "| row | system | state | arms |",
        "|---|---|---|---|",
    ]
    for one in entries:
        name = f"`{one['system']}`: " if one["system"] else ""
        arms = ", ".join(f"`{arm}`" for arm in one["arms"])
        lines.append(f"| {one['row']} | {name}{one['title']}, {one['paper']} | {one['state']} | {arms} |")
    for one in entries:
        if one["system"]:
            lines += ["", f"## {one['row']} `{one['system']}`: {one['state']}", "", *_evidence(one)]
    return "\n".join(lines) + "\n"


def _evidence(one: Mapping[str, Any]) -> Iterable[str]:
    broken = ", ".join(part for part, held in one["contract"].items() if not held)
    kept = "holds" if one["contract"] else "not shown in the results yet"
    yield f"- contract of its parts: {f'broken by {broken}' if broken else kept}"
    if one["speed"]:
        said = ", ".join(f"{speed['times']:,.0f} x" for speed in one["speed"]["measured"]) or "not measured yet"
        yield f"- {one['speed']['wanted']}: {said}"
    for bar in one["bars"]:
        wants = f"at least {bar['lift']:+.0%}" if bar["lift"] else "above 0"
        said = "; ".join(_lift(measured) for measured in bar["measured"]) or "not measured yet"
        yield f"- `{bar['arm']}` over `{bar['over']}`, {WORDS[bar['list']]}, {wants} wanted: {said}"
    yield from (f"- {words}: not measured yet" for words in one["also"])
    if one["worth"]:
        yield "- what comes next, by the engine with a part over the engine without it:"
    for worth in one["worth"]:
        yield f"  - `{worth['part']}` {worth['verdict']} on {worth['stream']}: {_lift(worth)}, {worth['metric']}"


def _lift(one: Mapping[str, Any]) -> str:
    low, high = one["ci"]
    return f"{one['lift']:+.1%} [{100 * low:.1f}, {100 * high:.1f}] over `{one['b']}` ({one['file']})"
