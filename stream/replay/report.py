"""`report.html`: one self-contained page from `metrics.json`, for a person who judges arms and data."""

from __future__ import annotations

import html
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

import plotly.offline

from driftline.model.standing import sentence
from driftline.stream.replay.audit import AUDITS
from driftline.stream.replay.charts import LISTS, METRIC, cost, drift, forest, freshness, plot, windows
from driftline.stream.replay.named import about
from driftline.stream.replay.protocol import WHOLE

FAMILIES = {
    "headline": "The engine against the best simple arm",
    "backbones": "The engine against its lone parts and its frozen self",
    "parts": "What single parts add",
    "rare": "What single parts add on items that came in fewer than five events",
    "simple": "The best simple arm against the others",
}
DETAILS = {
    "with follow-ups": ("overall", METRIC),
    "without follow-ups": ("overall", "without_follow_ups", METRIC),
    "cold users": ("cold_users", METRIC),
    "cold items": ("cold_items", METRIC),
    "rare items": ("rare_items", METRIC),
    "held-out items": ("held_out_items", METRIC),
    "weighted": ("overall", f"{METRIC}_weighted"),
    "weighted, new": ("novel", f"{METRIC}_weighted"),
    "weighted, before": ("repeat", f"{METRIC}_weighted"),
    "pool recall": ("overall", "pool_recall"),
    "pool recall, new": ("novel", "pool_recall"),
    "pool recall, before": ("repeat", "pool_recall"),
}
"""Where the columns of the second table stand in an arm's entry."""
FEWEST = 30
"""Groups without which a column of it says nothing."""
IN_SESSION = {"within a session, HR@20": "hr@20", "within a session, NDCG@20": "ndcg@20"}
"""First columns of the first table where sessions are asked for."""
PROFILES = {"file": "had a profile of the file", "template": "one of the template", "none": "none"}
STYLE = """
body{margin:0;background:#f7f6f2;color:#22262b;font:16px/1.55 Georgia,'Times New Roman',serif}
main{max-width:1080px;margin:0 auto;padding:44px 24px 80px}
h1{font-size:36px;font-weight:400;margin:0} h2{font-size:23px;font-weight:400;margin:52px 0 4px}
p{max-width:46em;margin:4px 0 14px} .quiet{color:#6b7280} code{font-size:13px;overflow-wrap:anywhere}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:26px 0}
.card{background:#fff;padding:12px 18px;min-width:120px;border:1px solid #e7e4dc}
.card b{display:block;font-size:23px;font-weight:400} .card span{color:#6b7280;font-size:13px}
table{border-collapse:collapse;width:100%;background:#fff;border:1px solid #e7e4dc;
 font:14px/1.45 -apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid #efece5} th{font-weight:600;color:#4b5563}
th small{font-weight:400;color:#8b9099}
th:first-child,td:first-child{text-align:left} td small{color:#8b9099;margin-left:6px}
td.best{background:#eaf3ec} .pass{color:#2f7d4f} .fail{color:#b3261e}
.verdict{font-size:20px;margin:14px 0 8px} td .about{margin:0;max-width:22em;color:#8b9099;font-size:12px}
.plot{background:#fff;border:1px solid #e7e4dc;margin:12px 0}
"""


def write_report(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write the page."""
    parts = [
        _head(metrics),
        _section(
            "Arms",
            f"NDCG@10, where no other metric is named, with its 95% interval, {intervals_line(metrics['protocol'])}; "
            f"the best of each column is shaded.{session_line(metrics)} Each list is a ranking of its own, of all "
            "items, of those that are new to the user, of those taken before, and counts the groups that took some of "
            "them: so everything is no mean of the other two.",
            _arms(metrics),
        ),
        _section(
            "More figures",
            "NDCG@10, over everything where no list is named. A follow-up comes within 72 minutes of the user's group "
            "before; a hit is weighted by what it is worth (<code>goals</code>); pool recall is the share of the "
            "wanted items that are among an arm's candidates, of which an engine that ranks by a network has a bounded "
            f"number (<code>ranker</code>). {html.escape(goals_line(metrics))}",
            _details(metrics),
        ),
        _section(
            "Week by week",
            "Each list by window. An arm that learns holds its level while a frozen one sinks with the drift.",
            *(plot(windows(metrics, which, title)) for which, title in LISTS.items() if _has_weeks(metrics)),
        ),
        *_comparisons(metrics),
        _section(
            "What parts are worth",
            "Gain in NDCG@10 over the engine without the part, of each group before it was learnt, from small rankers "
            "that learn side by side; the interval holds at every moment at once (<code>model.gate</code>).",
            _gate(metrics),
        ),
        _section(
            "Freshness",
            "NDCG@10 over everything, by the time since the user was last seen.",
            plot(freshness(metrics)),
        ),
        _section(
            "Drift of the data",
            "Each week's items against the four weeks before (Jensen-Shannon divergence), and the share of rows on "
            "items at most 30 days old.",
            plot(drift(metrics)) if len(metrics["drift"]) > 1 else "",
        ),
        _section(
            "Cost",
            "CPU seconds of training over the whole log against quality; below, of training and of scores by part. A "
            "part that arms share is charged to each of them that needs it.",
            plot(cost(metrics)),
            _parts(metrics),
        ),
        _section("How it was run", "", _protocol(metrics)),
    ]
    script = plotly.offline.get_plotlyjs()
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>driftline replay</title>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<style>{STYLE}</style><script>{script}</script></head><body><main>{''.join(parts)}</main></body></html>"
    )
    path.write_text(page, "utf-8")


def _section(title: str, text: str, *blocks: str) -> str:
    """A heading, a sentence and blocks; nothing at all where no block has anything to show."""
    if not any(blocks):
        return ""
    lead = f"<p class='quiet'>{text}</p>" if text else ""
    return f"<h2>{title}</h2>{lead}{''.join(blocks)}"


def _day(t_ms: int) -> str:
    return datetime.fromtimestamp(t_ms / 1000, UTC).strftime("%-d %b %Y")


def _head(metrics: Mapping[str, Any]) -> str:
    data, protocol, audit = metrics["data"], metrics["protocol"], metrics["leak_audit"]
    passed = all(audit[name] == "pass" for name in AUDITS)
    run = not all(audit[name].startswith("not run") for name in AUDITS)
    verdict = "passed" if passed else "failed" if run else "not run"
    cards = {
        "events": f"{data['events']:,}",
        "users": f"{data['users']:,}",
        "items": f"{data['items']:,}",
        "scored groups": f"{protocol['groups']:,}",
        "events a second": f"{metrics['events_per_second']:,.0f}",
        "leak audit": f"<span class='{'pass' if passed else 'fail'}' style='font-size:23px'>{verdict}</span>",
    }
    shown = "".join(f"<div class='card'><b>{value}</b><span>{label}</span></div>" for label, value in cards.items())
    lead = metrics.get("verdict", "")
    left_out = "" if run else f" Leak audit {html.escape(audit[AUDITS[0]])}: nothing here proves that no arm knew more."
    return (
        f"<h1>driftline replay</h1><p class='verdict'>{html.escape(lead)}</p>"
        f"<p class='quiet'>{_day(data['first_ms'])} to {_day(data['last_ms'])} (UTC); predict, then learn; scored from "
        f"{_day(protocol['split_ms'])} on (split {protocol['split']:g}{choices_line(protocol)}).{left_out}</p>"
        f"<div class='cards'>{shown}</div>"
    )


def _arms(metrics: Mapping[str, Any]) -> str:
    arms = metrics["arms"]
    columns = {title: ("session", metric) for title, metric in IN_SESSION.items()} if _has_session(metrics) else {}
    columns |= {title: (which, METRIC) for which, title in LISTS.items()}
    best = {
        title: max((arm[which][metric] or 0.0 for arm in arms.values() if not arm.get("void")), default=None)
        for title, (which, metric) in columns.items()
    }
    rows = []
    for name, arm in arms.items():
        void = f"<p class='about fail'>void: {html.escape(arm['void'])}</p>" if arm.get("void") else ""
        cells = [f"<td>{html.escape(name)}<p class='about'>{html.escape(about(name))}</p>{void}</td>"]
        for title, (which, metric) in columns.items():
            value, ci = arm[which][metric], arm[which].get(f"{metric}_ci")
            mark = " class='best'" if value is not None and value == best[title] and not void else ""
            spread = f"<small>{ci[0]:.3f} to {ci[1]:.3f}</small>" if ci else ""
            cells.append(f"<td{mark}>{_number(value)}{spread}</td>")
        cells.append(f"<td>{_number(arm['overall']['recall@20'])}</td><td>{_number(arm['overall']['mrr'])}</td>")
        cells.append(f"<td>{arm['train_cpu_s']:,.1f}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{title}</th>" for title in columns)
    return (
        f"<table><tr><th>arm</th>{heads}<th>recall@20</th><th>MRR</th><th>training, CPU s</th></tr>"
        f"{''.join(rows)}</table>"
    )


def _has_session(metrics: Mapping[str, Any]) -> bool:
    """Whether sessions were asked for, and something counts in their list."""
    arms = metrics["arms"].values()
    return bool(arms) and all(arm.get("session", {}).get("n") for arm in arms)


def _details(metrics: Mapping[str, Any]) -> str:
    """One row an arm, without columns that no arm has, that are of few groups, or that repeat the first table."""
    heads, columns = "", []
    others = [arm["overall"].get("without_follow_ups") for arm in metrics["arms"].values()]
    all_follow = all(other is not None and other["n"] < FEWEST for other in others)
    plain = metrics["protocol"].get("one_item_groups")  # whatever a hit is worth
    for title, path in DETAILS.items():
        if (all_follow and title == "with follow-ups") or (plain and title.startswith("weighted")):
            continue
        entries = [reduce(lambda entry, key: entry.get(key, {}), path[:-1], arm) for arm in metrics["arms"].values()]
        column = [entry.get(path[-1]) for entry in entries]
        if any(value is not None for value in column) and entries[0]["n"] >= FEWEST:
            heads += f"<th>{title}<br><small>{entries[0]['n']:,} groups</small></th>"
            columns.append([f"<td>{_number(value)}</td>" for value in column])
    if not columns:
        return ""
    rows = zip(metrics["arms"], zip(*columns, strict=True), strict=True)
    body = "".join(f"<tr><td>{html.escape(name)}</td>{''.join(cells)}</tr>" for name, cells in rows)
    return f"<table><tr><th>arm</th>{heads}</tr>{body}</table>"


def _has_weeks(metrics: Mapping[str, Any]) -> bool:
    """Whether a line can be drawn over them."""
    return any(len(arm["windows"]) > 1 for arm in metrics["arms"].values())


def _parts(metrics: Mapping[str, Any]) -> str:
    """Training and scoring by part; nothing for older reports and where no arm has parts."""
    costs = {name: arm.get("cost", {}) for name, arm in metrics["arms"].items()}
    parts = list(dict.fromkeys(part for of in costs.values() for part in of if part != WHOLE))
    if not parts:
        return ""

    def cell(one: Mapping[str, float] | None) -> str:
        return "<td></td>" if one is None else f"<td>{one['train_cpu_s']:,.1f} + {one['score_cpu_s']:,.1f}</td>"

    rows = (
        f"<tr><td>{html.escape(name)}</td>{''.join(cell(of.get(part)) for part in parts)}</tr>"
        for name, of in costs.items()
        if set(of) - {WHOLE}
    )
    heads = "".join(f"<th>{html.escape(part)}</th>" for part in parts)
    return f"<table><tr><th>arm</th>{heads}</tr>{''.join(rows)}</table>"


def _gate(metrics: Mapping[str, Any]) -> str:
    """One row for each part of an arm; nothing where nothing was compared."""
    rows = [
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(sentence(part, told))}</td><td>{told['groups']:,}</td></tr>"
        for name, arm in metrics["arms"].items()
        for part, told in arm.get("gate", {}).items()
    ]
    return f"<table><tr><th>arm</th><th>part</th><th>groups</th></tr>{''.join(rows)}</table>" if rows else ""


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _comparisons(metrics: Mapping[str, Any]) -> list[str]:
    sections = []
    for family, title in FAMILIES.items():
        found = [one for one in metrics["comparisons"] if one["family"] == family]
        if found:
            text = (
                "Relative lift, in NDCG@10 where no other metric is named, with 95% intervals, "
                f"{intervals_line(metrics['protocol'])}; p after Holm's correction."
            )
            sections.append(_section(title, text, plot(forest(found))))
    return sections


def _protocol(metrics: Mapping[str, Any]) -> str:
    protocol = metrics["protocol"]
    told = {
        "command": protocol.get("command"),
        "configuration": protocol.get("config"),
        "commit": protocol.get("commit"),
        "rows": f"the first {protocol['limit']:,} of the file" if protocol.get("limit") else None,
        "learnt": f"{100 * protocol['learn_share']:.3g}% of the groups" if protocol.get("learn_share", 1) < 1 else None,
    }
    rows = {name: value for name, value in told.items() if value} | {
        "data sha256": metrics["data"]["sha256"],
        "candidates": metrics["protocol"]["candidates"],
        "seeds": ", ".join(str(seed) for seed in metrics["protocol"]["seeds"]),
        "profiles": profiles_line(metrics["protocol"]["profiles"]),
        "configuration sha256": metrics["protocol"]["config_sha256"],
        "state sha256": metrics["state_sha256"],
        "permutation audit": metrics["leak_audit"]["permutation"],
        "future-deletion audit": metrics["leak_audit"]["future_deletion"],
        "audited": audit_line(metrics["leak_audit"]),
        "seconds": seconds_line(metrics),
    }
    rows |= {name: arm["note"] for name, arm in metrics["arms"].items() if arm.get("note")}
    if "reachable" in metrics:
        rows["reachable"] = reachable_line(metrics)
    cells = (f"<tr><td>{name}</td><td><code>{html.escape(str(value))}</code></td></tr>" for name, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def choices_line(protocol: Mapping[str, Any]) -> str:
    """What the report has of the span on which choices were made, with a comma before it; older reports do not say."""
    if "choices" not in protocol:
        return ""
    begin, end = protocol["choices"]["span"]
    if begin == end:
        return ""
    span = f"{100 * begin:g}% to {100 * end:g}% of the rows, the span that choices were made on"
    if protocol["choices"]["left_out_ms"]:
        return f", without {span}"
    return f"; it looks into {span}: a figure to choose by, and no claim" if protocol["split"] < end else ""


def session_line(metrics: Mapping[str, Any]) -> str:
    """What the session protocol asked for, as a sentence after a space; nothing without it, nor of older reports."""
    found = metrics["protocol"].get("session")
    if not found:
        return ""
    asked = "the last event of each session" if found["asked"] == "last" else "each next event of a session"
    new = next((arm["session"]["n"] for arm in metrics["arms"].values() if arm.get("session")), 0)
    return (
        f" Asked was {asked}, {found['targets']:,} in {found['hours']:,} hours; the list within a session holds all "
        f"items but those in it, so {new:,} of these count there."
    )


def goals_line(metrics: Mapping[str, Any]) -> str:
    """A sentence where goals are set and can change nothing, else nothing; older reports do not tell."""
    weighted = any(arm["overall"].get(f"{METRIC}_weighted") is not None for arm in metrics["arms"].values())
    if not weighted or not metrics["protocol"].get("one_item_groups"):
        return ""
    return (
        "Every scored group is one item, so goals change nothing: what a hit is worth is held against the best that "
        "could be had, which is the same item; weighted figures are the plain ones of all groups that are worth "
        "something."
    )


def intervals_line(protocol: Mapping[str, Any]) -> str:
    """What intervals were drawn over, for people; older reports drew users alone."""
    seeds = protocol.get("intervals", {}).get("seeds")
    if seeds:
        return f"drawn over users and {len(seeds)} seeds"
    ran = "one seed ran" if len(protocol["seeds"]) == 1 else "no random arm ran with several"
    return f"drawn over users alone: {ran}, so seeds were not resampled"


def profiles_line(profiles: str | Mapping[str, Any]) -> str:
    """Whose profiles the scored groups had, for arms that read them; older reports name the file alone."""
    if isinstance(profiles, str):
        return profiles
    groups = profiles["groups"]
    read = ", ".join(f"{groups[source]:,} {words}" for source, words in PROFILES.items())
    return f"{profiles['file'] or 'no file'}; of {sum(groups.values()):,} scored groups {read}"


def reachable_line(metrics: Mapping[str, Any]) -> str:
    """How far the arms are from what the true probabilities of a made stream reach, for people."""
    found = metrics["reachable"]
    best, blind = found["optimum"], found["impersonal"]
    shares = (f"{name} {arm['overall'][METRIC] / best[METRIC]:.0%}" for name, arm in metrics["arms"].items())
    return (
        f"NDCG@10 {best[METRIC]:.4f} and HR@10 {best['hr@10']:.4f} by who knows all probabilities, {blind[METRIC]:.4f} "
        f"and {blind['hr@10']:.4f} without the user; of that NDCG have {', '.join(shares)}"
    )


def seconds_line(metrics: Mapping[str, Any]) -> str:
    """How long it took, for people; older reports know the last run alone."""
    line = f"{metrics['seconds']:,.1f}"
    if "compute_seconds" not in metrics:
        return line
    wall, cpu = metrics["compute_seconds"]["wall"], metrics["compute_seconds"]["cpu"]
    return f"{line}; all passes that made the arms {wall:,.1f}, of CPUs {cpu:,.1f}"


def audit_line(audit: Mapping[str, Any]) -> str:
    """What the leak audit looked at, for people; older reports do not say."""
    if "groups" not in audit:
        return "not told"
    late = f", {audit['late']:,} groups late" if "late" in audit else ""
    return (
        f"{audit['rows']:,} rows of {audit['users']:,} users{late}; changed from {audit['groups']} groups on, "
        f"{audit['from_file']} of them with a profile of the file; {audit['compared']:,} groups compared"
    )
