"""What a replay knows of how requests were made: the fields that the settings name, and no other of a row."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.stream.replay.test_audit import columns

from driftline.configs.settings import Action, Graph, Model, Ranker, Settings, Signals
from driftline.stream.events.files import read_columns
from driftline.stream.replay.arms import Ranking, Slate
from driftline.stream.replay.audit import audit
from driftline.stream.replay.baselines import Popularity
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import questions
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options

DAY = 86_400_000


def with_extra(some):
    extra = [{"device": f"d{n % 3}", "margin": float(some.item_id[0][n])} for n in range(len(some))]
    return dataclasses.replace(some, extra=np.array([*extra, None], object)[:-1])


def log_of(some):
    return EventLog(some, lambda name: Action(), context=("device", "size"))


def test_a_request_has_the_context_of_the_first_row_of_its_group():
    log = log_of(with_extra(columns(300)))
    for request, arrival, _ in questions(log):
        assert request.context == (f"d{arrival.rows[0] % 3}", "") == arrival.group.context
        assert request.view().context == request.context
    assert EventLog(with_extra(columns(9)), lambda name: Action()).group(0).context == ()


class ReadsTheDevice(Popularity):
    """Goes by what a request says of itself."""

    def score(self, request):
        return Slate(Ranking(np.full(request.pool, float(len(request.context[0]) + ord(request.context[0][-1])))))


class ReadsTheMargin(Popularity):
    """Looks up an unknown field of the row that it is asked for."""

    def score(self, request):
        extra = request.log.columns.extra[request.log.rows_of(request.number)[0]] or {}
        return Slate(Ranking(np.full(request.pool, extra.get("margin", -1.0))))


def test_the_audit_lets_an_arm_read_the_context_and_no_other_unknown_field():
    def audited(arm):
        return audit(with_extra(columns()), log_of, lambda log: [arm("arm")], samples=3)

    assert audited(ReadsTheDevice).passed
    caught = audited(ReadsTheMargin)
    assert caught.permutation.startswith("fail: arm 'arm'")
    assert caught.future_deletion.startswith("fail: arm 'arm'")


SMALL = Settings(
    graph=Graph(weights="off"),
    model=Model(backbone="off"),
    ranker=Ranker(hidden=16, members=1, text_dim=0),
    signals=Signals(context=["device"], context_half_lives_days=[1.0, 14.0]),
)


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Two halves of the catalogue, one taken on phones and one at desks, by users who go from one to the other."""
    rng = np.random.default_rng(0)
    n = 900
    device = rng.integers(0, 2, n)
    table = {
        "user_id": [f"u{user}" for user in rng.integers(0, 60, n)],
        "item_id": [f"i{item}" for item in rng.zipf(1.4, n) % 20 + 20 * device],
        "timestamp_ms": np.sort(rng.integers(0, 40 * DAY, n)) + 1_600_000_000_000,
        "device": [("phone", "desk")[one] for one in device],
    }
    path = tmp_path_factory.mktemp("contexts") / "events.parquet"
    pq.write_table(pa.table(table), path)
    return path


def test_a_ranker_that_reads_the_context_is_better_where_it_matters_and_passes_the_audit(events, tmp_path):
    def run(settings, audit_rows=0):
        out = tmp_path / f"{len(settings.signals.context)}"
        return replay(Options(events, out, arms=("ranker",), split=0.6, audit_rows=audit_rows), settings)

    known, blind = run(SMALL, 100), run(SMALL.model_copy(update={"signals": Signals()}))
    assert (known["leak_audit"]["permutation"], known["leak_audit"]["future_deletion"]) == ("pass", "pass")
    with_it, without = (one["arms"]["ranker"]["overall"]["ndcg@10"] for one in (known, blind))
    assert with_it > 1.2 * without
    assert known["state_sha256"] == blind["state_sha256"]  # no state has it


def test_rows_of_equal_unknown_fields_share_one_object(events):
    extra = read_columns(events).extra
    assert len({id(row) for row in extra}) == 2
    assert {row["device"] for row in extra} == {"phone", "desk"}
