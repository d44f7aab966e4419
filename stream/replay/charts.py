"""The charts of `report.html`: each from the content of `metrics.json`, None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go
import plotly.io

LISTS = {"overall": "everything", "novel": "new to the user", "repeat": "taken before"}
METRIC = "ndcg@10"
COMPARED = {(which, METRIC): title for which, title in LISTS.items()} | {
    ("rare_items", METRIC): "rare items",
    ("session", "ndcg@20"): "not in its session yet, NDCG@20",
    ("session", "hr@20"): "not in its session yet, HR@20",
}
"""What a lift is of, by list and metric."""
COLORS = ("#2f5d8c", "#c8553d", "#3f8f6b", "#8a6bb1", "#c79a2b", "#4aa3b5", "#a34b78", "#6b7280", "#1f2937", "#93a84a")


def _color(metrics: Mapping[str, Any], arm: str) -> str:
    return COLORS[list(metrics["arms"]).index(arm) % len(COLORS)]


def windows(metrics: Mapping[str, Any], which: str, title: str) -> go.Figure | None:
    """An arm's level by week, a line each."""
    figure = go.Figure()
    for name, arm in metrics["arms"].items():
        weeks = [window if which == "overall" else window | window[which] for window in arm["windows"]]
        figure.add_scatter(
            x=[_stamp(window["from_ms"]) for window in weeks],
            y=[window[METRIC] for window in weeks],
            customdata=[window["n"] for window in weeks],
            hovertemplate="%{y:.4f} over %{customdata} groups",
            name=name,
            mode="lines+markers",
            line={"color": _color(metrics, name), "width": 2},
            marker={"size": 5},
        )
    return _styled(figure, f"NDCG@10, {title}", 330)


def _stamp(t_ms: int) -> str:
    return datetime.fromtimestamp(t_ms / 1000, UTC).isoformat()


def forest(found: Sequence[Mapping[str, Any]]) -> go.Figure | None:
    """Lifts with their intervals."""
    figure = go.Figure()
    for n, (what, title) in enumerate(COMPARED.items()):
        rows = [one for one in found if (one["list"], one["metric"]) == what]
        if not rows:
            continue
        figure.add_scatter(
            x=[100 * one["lift"] for one in rows],
            y=[f"{one['a']} over {one['b']}, {title}" for one in rows],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (one["ci"][1] - one["lift"]) for one in rows],
                "arrayminus": [100 * (one["lift"] - one["ci"][0]) for one in rows],
                "thickness": 1.4,
                "width": 0,
            },
            customdata=[one["p_holm"] for one in rows],
            hovertemplate="%{x:+.1f}%, p %{customdata:.3g}",
            name=title,
            mode="markers",
            marker={"size": 9, "color": COLORS[n]},
        )
    figure.add_vline(x=0, line={"color": "#9ca3af", "width": 1})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(ticksuffix="%")
    return _styled(figure, "", 120 + 24 * len(found))


def freshness(metrics: Mapping[str, Any]) -> go.Figure | None:
    """By the time since the user was last seen."""
    figure = go.Figure()
    for name, bins in metrics["freshness"].items():
        figure.add_scatter(
            x=[f"{one['since']}<br>{one['n']} groups" for one in bins],
            y=[one[METRIC] for one in bins],
            name=name,
            mode="lines+markers",
            line={"color": _color(metrics, name), "width": 2},
        )
    return _styled(figure, "", 340)


def drift(metrics: Mapping[str, Any]) -> go.Figure | None:
    """How the stream itself moves."""
    weeks = metrics["drift"]
    x = [_stamp(week["from_ms"]) for week in weeks]
    figure = go.Figure()
    figure.add_bar(x=x, y=[week["new_item_share"] for week in weeks], name="new items", marker={"color": "#d8cfae"})
    figure.add_scatter(
        x=x,
        y=[week["divergence"] for week in weeks],
        name="divergence",
        mode="lines+markers",
        line={"color": COLORS[1], "width": 2},
    )
    return _styled(figure, "", 300)


def cost(metrics: Mapping[str, Any]) -> go.Figure | None:
    """What an arm costs against how good it is."""
    figure = go.Figure()
    for name, arm in metrics["arms"].items():
        figure.add_scatter(
            x=[max(0.01, arm["train_cpu_s"])],
            y=[arm["overall"][METRIC]],
            text=[name],
            textposition="top center",
            mode="markers+text",
            name=name,
            marker={"size": 11, "color": _color(metrics, name)},
            showlegend=False,
        )
    figure.update_xaxes(type="log", title="training, CPU seconds")
    figure.update_yaxes(title="NDCG@10, everything", rangemode="tozero")
    return _styled(figure, "", 380)


def _styled(figure: go.Figure, title: str, height: int) -> go.Figure | None:
    """None if no trace has a value."""
    if not any(value is not None for trace in figure.data for value in trace.y):
        return None
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 15}},
        height=height,
        margin={"l": 60, "r": 20, "t": 48 if title else 20, "b": 50},
        font={"family": "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif", "size": 13, "color": "#374151"},
        hovermode="closest",
    )
    figure.update_yaxes(automargin=True)
    return figure


def plot(figure: go.Figure | None) -> str:
    """The figure as a block of the page; "" for none."""
    if figure is None:
        return ""
    inner = plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config={"displayModeBar": False})
    return f"<div class='plot'>{inner}</div>"
