"""Every number that an operator may change, with its unit, its bound and its default.

One YAML file (`extends: NAME` starts from a preset), then `DRIFTLINE__SECTION__KEY` from the environment, then
the defaults below. Unknown keys are errors that name the nearest known one. Constants of an algorithm stay
beside their equation; what a business sets is here.
"""

from __future__ import annotations

import codecs
import difflib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from driftline.configs.addresses import addresses, host_of

Positive = Annotated[float, Field(gt=0)]


def _no_blank(token: str) -> str:
    if not token.strip():
        raise ValueError("got a blank token; expected text in each, or [] to let everybody call")
    return token


def _bootstrap(text: str) -> str:
    return ",".join(map(str, addresses(text))) if text.strip() else ""


Bootstrap = Annotated[str, AfterValidator(_bootstrap)]
Host = Annotated[str, AfterValidator(host_of)]
Token = Annotated[str, AfterValidator(_no_blank)]
Scope = Literal["read_state", "recommend", "admin"]


class Section(BaseModel):
    """A frozen group of settings that forbids unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def whole_pair(certificate: Path | None, key: Path | None) -> None:
    """Raises ValueError if only one of the two files is given."""
    if (certificate is None) != (key is None):
        raise ValueError("got one half of a TLS pair; expected tls_certificate and tls_key together, or neither")


class Broker(Section):
    """Where Kafka is. Without `bootstrap` an embedded broker is started and stopped by driftline."""

    bootstrap: Bootstrap = Field("", description="host:port[,host:port], [IPv6]:port; empty = embedded broker")
    partitions: int = Field(1, ge=1, le=1024, description="partitions of a topic that driftline creates")
    replication: int = Field(1, ge=1, le=9, description="replicas of a topic that driftline creates")
    prefix: str = Field("", description="put before every topic name and consumer group")
    embedded_port: int = Field(19292, ge=1, le=65535, description="port of the embedded broker")
    embedded_dir: Path = Field(Path(".driftline/broker"), description="where the embedded broker keeps its data")
    connect_timeout_s: float = Field(10.0, gt=0, description="give up on a broker that does not answer after this")
    retention_days: float = Field(0.0, ge=0, description="of the event topics; 0 = keep all, as rebuilding needs")
    session_timeout_s: float = Field(
        10.0, ge=6, le=1800, description="a killed worker's partitions move after this; Kafka takes 6 s to 30 min"
    )
    heartbeat_s: float = Field(3.0, gt=0, description="a third of session_timeout_s at most")
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "lz4", description="of what driftline writes; all of them are read"
    )
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="protocol of the listener at `bootstrap`"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="how a SASL listener wants the password"
    )
    sasl_username: str = Field("", description="user at a SASL listener")
    sasl_password: str = Field(
        "", description="its password; better in the environment: DRIFTLINE__BROKER__SASL_PASSWORD"
    )
    tls_ca: Path | None = Field(None, description="PEM file of authorities for SSL; null = those of the system")
    tls_certificate: Path | None = Field(None, description="PEM file of the client's certificate, where wanted")
    tls_key: Path | None = Field(None, description="PEM file of its key")

    @model_validator(mode="after")
    def _heartbeats_fit(self) -> Self:
        if 3 * self.heartbeat_s > self.session_timeout_s:
            raise ValueError(
                f"got heartbeat_s {self.heartbeat_s:g} with session_timeout_s {self.session_timeout_s:g}; "
                "expected a third of it at most"
            )
        return self

    @model_validator(mode="after")
    def _security_is_whole(self) -> Self:
        if self.security != "PLAINTEXT" and not self.bootstrap:
            raise ValueError(f"got security {self.security} without bootstrap; the embedded broker speaks PLAINTEXT")
        if self.security.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"got security {self.security}; expected sasl_username and sasl_password with it")
        whole_pair(self.tls_certificate, self.tls_key)
        if (self.tls_ca or self.tls_certificate) and not self.security.endswith("SSL"):
            raise ValueError(f"got tls_* with security {self.security}; expected SSL or SASL_SSL with them")
        if self.sasl_username and not self.security.startswith("SASL"):
            raise ValueError(f"got sasl_username with security {self.security}; expected SASL_SSL or SASL_PLAINTEXT")
        return self


class State(Section):
    """The state store: one RocksDB directory a partition."""

    root: Path = Field(Path(".driftline/state"), description="directory that workers on one host share")
    history: int = Field(1024, ge=8, le=65536, description="events kept for a user")
    cache_users: int = Field(
        100_000, ge=1, description="rows of users that a partition keeps in memory between two commits"
    )
    sync: bool = Field(True, description="fsync each commit")
    epoch_events: int = Field(4096, ge=1, le=8192, description="events in one commit of a worker at most")
    epoch_ms: int = Field(50, ge=1, description="milliseconds that an epoch waits for more events")
    dedupe_ids: int = Field(100_000, ge=0, description="event_ids remembered a partition")
    late_ms: int = Field(3_600_000, ge=0, description="an event that is later than this is only counted")
    late_events: int = Field(16_384, ge=0, description="applied events that one late event may roll back")
    future_ms: int = Field(
        300_000, ge=0, description="an event further ahead of the broker's time is refused; under late_ms"
    )
    ttl_days: float = Field(
        0.0, ge=0, le=36500, description="days after its last event that the row of a user or an item ends; 0 = never"
    )
    groups: Literal["baskets", "sessions"] = Field(
        "baskets",
        description="rows of one user and time: baskets = one moment; sessions = one by one, in the log's order",
    )
    lock_wait_s: float = Field(
        10.0, ge=0, description="how long a lock may be held before a worker says so, or a second trainer gives up"
    )

    @property
    def ordered(self) -> bool:
        """Whether every row is a moment of its own."""
        return self.groups == "sessions"

    @property
    def ttl_ms(self) -> int:
        """`ttl_days` in milliseconds."""
        return round(self.ttl_days * 86_400_000)

    @model_validator(mode="after")
    def _no_row_ends_within_the_late_window(self) -> Self:
        if self.ttl_days and self.ttl_ms <= self.late_ms:
            raise ValueError(
                f"got ttl_days {self.ttl_days:g}, {self.ttl_ms} ms, with late_ms {self.late_ms}; expected more: rows "
                "would end before all their events are in. Set state.ttl_days to days or months, or to 0 for never"
            )
        return self

    @model_validator(mode="after")
    def _one_clock_makes_none_too_late(self) -> Self:
        if self.late_ms and self.future_ms >= self.late_ms:
            raise ValueError(
                f"got future_ms {self.future_ms} with late_ms {self.late_ms}; expected less: an event that far ahead "
                "would make all that come after it too late. Set state.future_ms to a sixth of state.late_ms or so"
            )
        return self


class Graph(Section):
    """Continuous-time dynamic graph: node memory, temporal neighbours, message function."""

    memory_dim: int = Field(32, ge=4, le=512, description="width of a node's memory")
    time_dim: int = Field(16, ge=2, le=256, description="width of the time encoding")
    shortest_period_h: float = Field(
        1.0, ge=1 / 3600, description="of the time encoding at the start, in hours; the others rise by equal factors"
    )
    longest_period_days: float = Field(1095.0, gt=0, description="of the time encoding at the start")
    message_dim: int = Field(32, ge=4, le=512, description="width of a message between two nodes")
    neighbors: int = Field(20, ge=1, le=512, description="last-K temporal neighbours of a node")
    embed_dim: int = Field(32, ge=4, le=512, description="width of what attention over neighbours reads out")
    weights: Literal["trained", "random", "off"] = Field("trained", description="arm of the ablation")
    learning_rate: float = Field(1e-3, gt=0, description="of the next-link loss")
    batch_groups: int = Field(8, ge=1, description="new groups of one training step")
    batch_rows: int = Field(1, ge=1, description="and wanted items in them at least; 64 = single ones cost less")
    rehearsed: int = Field(24, ge=0, description="earlier groups of one training step")
    rehearsal_groups: int = Field(4096, ge=1, description="newest groups that may be rehearsed")
    full_softmax: int = Field(8192, ge=0, description="with at most this many seen items all are negatives")
    negatives: int = Field(1024, ge=1, description="else so many are drawn, shared by the batch")
    publish_groups: int = Field(2000, ge=1, description="groups learnt between two graph versions")
    link_ring: int = Field(64, ge=1, le=4096, description="last touches of an item that its links are counted from")
    link_hidden: int = Field(32, ge=4, le=512, description="units that join what is counted with what memories say")
    link_members: int = Field(1, ge=1, le=16, description="such networks with seeds of their own, averaged")
    link_rate: float = Field(2e-3, gt=0, description="of their learning, a step for each group")
    link_habit: float = Field(0.05, ge=0, description="of what a user's own weights learn of it")
    link_rehearsed: int = Field(3, ge=0, le=64, description="earlier groups of each step")
    link_sampled: int = Field(96, ge=1, description="items that a step draws beside those near the user")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the initial weights and of the sampled links")

    @model_validator(mode="after")
    def _periods_rise(self) -> Self:
        if self.shortest_period_h >= 24 * self.longest_period_days:
            raise ValueError(
                f"got shortest_period_h {self.shortest_period_h:g} with longest_period_days "
                f"{self.longest_period_days:g}; expected less: the shortest period is told in hours"
            )
        return self


class Action(Section):
    """What one kind of event means to the business."""

    weight: float = Field(1.0, description="share of an interaction; negative undoes")
    positive: bool = Field(True, description="counts as something the user wanted: a training target")
    positive_from: float | None = Field(None, description="if the event has a value: positive only from this value")

    def wanted(self, value: float | None) -> bool:
        """Whether an event with this value (None or NaN = none) is a training target."""
        return self.positive and (self.positive_from is None or value is None or not value < self.positive_from)


ACTIONS = {
    "interact": Action(),
    "view": Action(),
    "click": Action(),
    "cart": Action(),
    "purchase": Action(),
    "play": Action(),
    "rate": Action(),
    "return": Action(weight=-1.0, positive=False),
}
"""What actions mean until a configuration says more: each counts as one, a return undoes one."""


class Goal(Section):
    """How a business weighs outcomes when metrics are also printed weighted."""

    action_weights: dict[str, float] = Field(
        default_factory=dict, description="weight of each action in the weighted metrics; empty = they are not printed"
    )
    by: Literal["", "value", "margin", "price"] = Field(
        "", description="what a hit is worth beside its action: a column of the event, or nothing"
    )


class Ranker(Section):
    """The small network that joins every signal and learns on the stream."""

    hidden: int = Field(48, ge=4, le=1024, description="units of the hidden layer")
    members: int = Field(3, ge=1, le=16, description="networks with seeds of their own, averaged")
    learning_rate: float = Field(2e-3, gt=0, description="of Adam")
    averaging: float = Field(0.99, ge=0, lt=1, description="share that scoring weights keep of themselves at a step")
    rehearsal_groups: int = Field(1500, ge=0, description="logged groups that may be rehearsed")
    rehearsal_steps: int = Field(3, ge=0, description="rehearsed groups for each new one")
    sampled: int = Field(100, ge=2, description="negatives of each list of a group, weighted by inverse inclusion")
    hard: float = Field(0.25, ge=0, le=0.9, description="share of the sampled negatives that are the hardest ones")
    recall: int = Field(150, ge=1, description="candidates of each recaller")
    plug_recall: int = Field(30, ge=0, description="candidates that HSTU, the graph and profiles each add at most")
    newest: int = Field(50, ge=0, description="items that entered last")
    pool: int = Field(
        1000, ge=10, description="candidates of the base recallers at most; replay and Recommend share it"
    )
    personal: int = Field(300, ge=0, description="the user's own past items in the pool at most")
    text_dim: int = Field(384, ge=0, description="width of the items' text vectors; 0 = none is made or read")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the initial weights and of the sampled rows")


EVENT_FIELDS = (
    "user_id", "item_id", "timestamp_ms", "action", "event_id", "value", "price", "group_id", "domain"
)  # fmt: skip
"""Fields of an event that the schema knows."""


class Signals(Section):
    """Counters over the stream that need no gradient."""

    half_lives_days: tuple[Positive, ...] = Field(
        (1.0, 3.0, 7.0, 14.0, 30.0, 90.0),
        min_length=1,
        description="of the decayed popularity counters, shortest first",
    )
    personal_half_lives_days: tuple[Positive, ...] = Field(
        (3.0, 10.0, 30.0, 100.0), min_length=1, description="of a user's own touches of an item, shortest first"
    )
    age_unit_days: float = Field(
        1.0, ge=1e-6, le=365, description="ages are log1p(age / this): 1 tells days apart, 0.0007 minutes, too"
    )
    neighbors: int = Field(128, ge=4, le=4096, description="partners kept for an item in each table")
    partner_items: int = Field(
        262_144, ge=64, description="items with partners in each table, the more frequent ones; 1 KB each with 128"
    )
    partner_ttl_days: float = Field(
        0.0,
        ge=0,
        description="without a new pair for so long an item makes room in a full table; 0 = by frequency alone",
    )
    pair_half_life_days: float = Field(120.0, gt=0, description="of within-basket pairs and transitions")
    fresh_half_life_days: float = Field(
        15.0, gt=0, description="of what is fresh: newer pairs, neighbours' newer touches"
    )
    one_id_space: bool = Field(False, description="users and items are the same people: who wrote to whom is one graph")
    user_half_life_days: float = Field(60.0, gt=0, description="of a touch in a user's history")
    users: int = Field(20_000, ge=10, description="most recent users that user-kNN searches")
    user_items: int = Field(400, ge=1, description="most recent distinct items of a user in user-kNN")
    nearest: int = Field(100, ge=1, description="users that user-kNN sums")
    refresh_ms: int = Field(86_400_000, ge=1, description="event time between two refreshes of user-kNN at least")
    recent: int = Field(100, ge=1, description="distinct items of a history that recallers start from")
    top: int = Field(400, ge=1, description="most popular items kept by half-life")
    domains: int = Field(64, ge=0, description="domains with a popularity of their own; further ones share none")
    domain_half_life_days: float = Field(30.0, gt=0, description="of the popularity within a domain")
    context: tuple[str, ...] = Field(
        (),
        description="fields of an event that say how its request was made (device, region): what is taken under each",
    )
    context_half_lives_days: tuple[Positive, ...] = Field(
        (0.04, 1.0, 14.0), min_length=1, description="of what is taken under a value of `context`, shortest first"
    )
    context_values: int = Field(64, ge=1, description="values of a field with counts of their own; the first ones")

    @model_validator(mode="after")
    def _half_lives_rise(self) -> Self:
        for name in ("half_lives_days", "personal_half_lives_days", "context_half_lives_days"):
            if (lives := list(getattr(self, name))) != sorted(set(lives)):
                raise ValueError(f"got {name} {lives}; expected each once, shortest first")
        return self

    @model_validator(mode="after")
    def _context_is_of_unknown_fields(self) -> Self:
        wrong = [name for name in self.context if not name.strip() or name in EVENT_FIELDS]
        if wrong or len(set(self.context)) < len(self.context):
            raise ValueError(
                f"got context {list(self.context)}; expected names, each once, of fields that events have beside "
                f"{', '.join(EVENT_FIELDS)}: leave out {wrong[0] if wrong else 'what is named twice'!r}"
            )
        return self


class LLM(Section):
    """Which language model writes profiles, and how it is reached."""

    client: Literal["smollm", "openai", "template"] = Field(
        "smollm", description="in process, an OpenAI-compatible endpoint, or no model"
    )
    threads: int = Field(1, ge=1, le=256, description="torch threads of the model in process")
    dtype: Literal["auto", "bfloat16", "float32"] = Field("auto", description="auto = bfloat16 where the CPU has it")
    evidence_weight: float = Field(
        0.5, ge=0, description="nats that one e-fold of evidence in the history adds to an answer's score"
    )
    base_url: str = Field("http://127.0.0.1:11434/v1", description="of the endpoint, without /chat/completions")
    model: str = Field("llama3.2", description="the endpoint's name of the model")
    api_key: str = Field("", description="bearer key; better in the environment: DRIFTLINE__LLM__API_KEY")
    timeout_s: float = Field(30.0, gt=0, description="for one call of the endpoint")
    retries: int = Field(3, ge=0, le=20, description="further tries after a 429, a 5xx or a broken connection")
    backoff_s: float = Field(0.5, ge=0, description="wait before the first retry; doubles each time")
    concurrency: int = Field(4, ge=1, le=256, description="calls of the endpoint under way at once")
    max_tokens: int = Field(160, ge=16, le=4096, description="of one answer of the endpoint")


class Profiles(Section):
    """LLM-written user profiles: when one is due, what it may rest on and what it may cost."""

    prompts: str = Field("ecommerce", description="a file in configs/prompts by name, or a path to a YAML file")
    first_events: int = Field(10, ge=1, description="events of a user before the first profile is asked for")
    refresh_events: int = Field(50, ge=1, description="events between two profiles")
    min_interval_ms: int = Field(86_400_000, ge=0, description="event time between two profiles of a user")
    max_per_minute: int = Field(120, ge=1, description="profiles written in a minute at most")
    queue: int = Field(1000, ge=1, description="requests that wait at most; past it the oldest is dropped")
    delay_ms: int = Field(60_000, ge=0, description="in replay a profile is valid this long after its request")
    titles: int = Field(40, ge=1, le=1000, description="distinct titles that a request carries")
    prompt_titles: int = Field(14, ge=1, le=200, description="titles that a prompt shows")
    candidates: int = Field(8, ge=1, le=64, description="answers of a facet among which the model chooses")
    support_share: float = Field(
        0.35, ge=0, le=1, description="an answer needs this share of the events behind the facet's best supported one"
    )
    picks: int = Field(3, ge=1, le=10, description="interests, categories and brands of a profile at most, each")
    batch: int = Field(16, ge=1, le=1024, description="requests that the profiler hands to the model at once")


class Encoder(Section):
    """The sentence encoder of titles and profile facets."""

    model: str = Field("minilm-l6", description="a fetched model, or a folder with a sentence-transformers BERT")
    threads: int = Field(1, ge=1, le=256, description="torch threads of the encoder")
    max_tokens: int = Field(128, ge=8, le=512, description="longer texts are cut")
    cache: Path | None = Field(Path(".driftline/encodings.sqlite"), description="vectors by text; null = none kept")


class Gate(Section):
    """Whether each part of the engine earns its place on this stream: compared with the engine without it, live."""

    mode: Literal["off", "observe", "act"] = Field(
        "observe", description="observe = compare and say so; act = and leave out what is not worth it; off = neither"
    )
    share: float = Field(
        0.125, gt=0, le=1, description="of the learnt groups that are compared; a part that is off learns from these"
    )
    min_groups: int = Field(1000, ge=1, description="compared groups before a part may be switched")
    window: int = Field(20_000, ge=1, description="compared groups after which a comparison begins anew")
    worth: float = Field(
        0.005, ge=0, lt=0.5, description="relative gain in NDCG@10 that a part must bring for its processor time"
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="of the interval that a comparison gives")

    @model_validator(mode="after")
    def _windows_decide(self) -> Self:
        if self.window < self.min_groups:
            raise ValueError(f"got window {self.window} with min_groups {self.min_groups}; expected as many at least")
        return self


class Model(Section):
    """The sequence backbone and how it learns on the stream."""

    backbone: Literal["hstu", "sasrec", "off"] = Field(
        "hstu", description="sequence model; off = the engine goes without"
    )
    dim: int = Field(64, ge=4, le=1024, description="width of an item vector")
    blocks: int = Field(2, ge=1, le=32, description="layers")
    heads: int = Field(1, ge=1, le=32, description="a divisor of dim")
    max_len: int = Field(100, ge=2, le=8192, description="events of a user that are read")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of a layer's output that a training step leaves out")
    temperature: float = Field(0.05, gt=0, description="divides the cosine of user and item")
    learning_rate: float = Field(3e-3, gt=0, description="of AdamW")
    negatives: int = Field(1024, ge=1, description="seen items that a step draws, shared by its batch")
    full_softmax: int = Field(8192, ge=0, description="with at most this many seen items all are negatives")
    log_q: bool = Field(True, description="correct for the chance of a negative to be drawn")
    repeat_weight: float = Field(1.0, ge=0, description="weight of a target that the user had before")
    untied: bool = Field(
        False, description="an item that is read has a part of its own beside what it is compared as: sharp transitions"
    )
    gaps: bool = Field(False, description="each event is read with the time to the next one, so a new session shows")
    aware: bool = Field(
        False,
        description="the ranker sees the whole logit, and how near a candidate lies to what the user did last",
    )
    text: bool = Field(
        True, description="item vectors hold a projection of the item's text vector, so new items start there"
    )
    batch: int = Field(32, ge=1, description="windows of one optimiser step")
    rehearsal_share: float = Field(0.75, ge=0, le=1, description="windows of a step that come from the rehearsal log")
    step_groups: int = Field(8, ge=1, description="groups between two optimiser steps")
    step_rows: int = Field(1, ge=1, description="and events between them at least; 64 = single ones cost less")
    rehearsal_groups: int = Field(100_000, ge=1, description="newest groups that the rehearsal log holds")
    rehearsal_age: float = Field(0.2, gt=0, description="mean age of a rehearsed group, as a share of the log")
    average: float = Field(0.99, ge=0, lt=1, description="share of the averaged weights that stays at a step; 0 = off")
    prior_half_life_days: float = Field(30.0, ge=0, description="of the popularity in the softmax; 0 = no prior")
    copying: bool = Field(
        False,
        description="items had lately have terms of their own in the logit, which the ranker sees by `aware`",
    )
    asked_rows: int = Field(
        0, ge=0, description="rows of a window that a step learns from, the newest one always; 0 = all"
    )
    inside_share: float = Field(0.05, ge=0, le=1, description="rows inside a group that are asked for the rest of it")
    inside_weight: float = Field(0.5, ge=0, description="weight of such a row beside one that asks for the next group")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of initial weights, dropout and negatives")
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads is {self.heads} and dim is {self.dim}; expected heads that divide dim")
        return self


class Trainer(Section):
    """The process that scores, learns and publishes."""

    publish_s: float = Field(2.0, gt=0, description="seconds between two snapshots")
    publish_events: int = Field(5000, ge=1, description="or this many events, whichever is first")
    checkpoint_s: float = Field(
        60.0, gt=0, description="seconds between two checkpoints of weights, optimiser and offsets"
    )
    catch_up_events: int = Field(5000, ge=1, description="with more lag than this, only `catch_up_share` is learnt")
    catch_up_share: float = Field(0.1, gt=0, le=1, description="of the groups, at least while it lags; 1 = all")
    gate_drop: float = Field(0.5, ge=0, le=1, description="refuse a snapshot whose NDCG@10 fell by this share")
    gate_patience: int = Field(20, ge=1, description="after so many refusals in a row their level is the new one")
    threads: int = Field(1, ge=1, description="of torch")
    root: Path = Field(Path(".driftline/trainer"), description="directory of the checkpoints and their rows")


class Serving(Section):
    """The gRPC service and its snapshots."""

    host: Host = Field("127.0.0.1", description="address to listen on; 0.0.0.0 or :: = every interface")
    port: int = Field(50551, ge=0, le=65535, description="gRPC; 0 = any free port")
    processes: int = Field(
        1, ge=1, le=64, description="that `driftline serve` starts on the port, one BLAS thread each"
    )
    reuse_port: bool = Field(False, description="share the port with a `driftline serve` that was started by itself")
    threads: int = Field(4, ge=1, le=256, description="requests that are computed at once")
    max_in_flight: int = Field(64, ge=1, description="requests past this are shed with RESOURCE_EXHAUSTED")
    snapshots: Path = Field(
        Path(".driftline/snapshots"), description="directory of the snapshots that the trainer publishes"
    )
    keep: int = Field(5, ge=1, description="snapshots kept for a rollback")
    deltas: int = Field(30, ge=0, description="snapshots in a row that hold only what changed; 0 = all are whole")
    delta_share: float = Field(
        0.5, ge=0, description="bytes of those in a row, as a share of the whole one that they build on"
    )
    poll_s: float = Field(0.5, gt=0, description="how often CURRENT is looked at")
    tls_certificate: Path | None = Field(None, description="PEM file; with tls_key calls are encrypted")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key")
    tls_client_ca: Path | None = Field(
        None, description="PEM file; callers must bring a certificate that one in it has signed"
    )
    tokens: tuple[Token, ...] = Field(
        (), description="bearer tokens that may call everything but ForgetUser; empty = open"
    )
    token_file: Path | None = Field(
        None, description="tokens with scopes (docs/operations.md), read again when it changes"
    )
    history: int = Field(50, ge=1, le=65536, description="events that GetUserState returns by default")
    max_watchers: int = Field(
        64, ge=1, le=4096, description="open WatchUserState streams, each holds a thread; as many may watch health"
    )
    state_poll_ms: int = Field(50, ge=1, description="how often the reader looks for commits of the state's writer")
    cache_users: int = Field(2048, ge=0, description="users whose last slate is kept")
    cache_ms: int = Field(1000, ge=0, description="request times this close may share a slate; 0 = only equal ones")
    sequence_cache_mb: int = Field(
        64, ge=0, description="keys and values of users' last events, so that HSTU reads only new ones; 0 = none kept"
    )
    sequence_warm_ms: float = Field(
        100.0, ge=0, description="before a new model answers, HSTU reads again those who ask most, for so long at most"
    )
    diversity: float = Field(
        0.0, ge=0, le=1, description="how far apart items of a list are, unless a request says; 0 = by score alone"
    )
    follow_ends: bool = Field(
        True, description="ask the broker where `interactions` ends: answers say how many events they are behind"
    )
    follow_profiles: bool = Field(True, description="read the topic `profiles`; off = answers without profiles")
    follow_items: bool = Field(
        True,
        description="read the topic `items`: withdrawn items leave the answers at once; off = with a snapshot",
    )
    items_wait_s: float = Field(
        5.0, ge=0, description="at the start, wait so long at most until the topic `items` is read"
    )
    profile_users: int = Field(1_000_000, ge=1, description="users whose profile is kept in memory")
    grace_s: float = Field(5.0, ge=0, description="what requests in flight get when the server stops")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        whole_pair(self.tls_certificate, self.tls_key)
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("got tls_client_ca without tls_certificate and tls_key; expected them with it")
        return self

    @model_validator(mode="after")
    def _processes_have_a_port(self) -> Self:
        if self.processes > 1 and not self.port:
            raise ValueError(f"got processes {self.processes} with port 0; expected a port that all of them can share")
        return self


class Metrics(Section):
    """Prometheus end points: `port` 0 switches them off; where one is taken another is used, and the log says which."""

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address of all of them, which ask nobody who they are; 0.0.0.0 = all",
    )
    worker_port: int = Field(9101, ge=0, le=65535, description="/metrics of the worker")
    trainer_port: int = Field(9102, ge=0, le=65535, description="/metrics of the trainer")
    profiler_port: int = Field(9103, ge=0, le=65535, description="/metrics of the profiler")
    serving_port: int = Field(9104, ge=0, le=65535, description="/metrics of the gRPC service")


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        near = difflib.get_close_matches(name, available_timezones(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"got zone {name!r}; expected a name such as UTC or Europe/Berlin{hint}") from None
    return name


def _encoding(name: str) -> str:
    if name:
        try:
            codecs.lookup(name)
        except LookupError:
            raise ValueError(f"got encoding {name!r}; expected a name such as cp1252, latin-1 or utf-16") from None
    return name


def _bounds(bounds: dict[str, float]) -> dict[str, float]:
    if "" in bounds:
        raise ValueError(f"got no name for the action from {bounds['']:g} on; expected one")
    if twice := [least for least, n in Counter(bounds.values()).items() if n > 1]:
        names = " and ".join(name for name, least in bounds.items() if least == twice[0])
        raise ValueError(f"got {twice[0]:g} for {names}; expected a least value for each of them")
    return bounds


class ItemFiles(Section):
    """How files of items are read that have columns of their own; `driftline import` guesses and writes it."""

    FIELDS: ClassVar[tuple[str, ...]] = (
        *("item_id", "title", "text", "categories", "brand", "price", "domain", "available", "valid_from_ms"),
    )
    REQUIRED: ClassVar[tuple[str, ...]] = ("item_id",)

    map: dict[str, str] = Field({}, description="column of a file by field of the schema; others are guessed")
    header: tuple[str, ...] = Field((), description="names of the columns of CSV files whose first line is a row")
    time: str = Field(
        "",
        description="s, ms, us, ns, s since 2018-02-01, iso, dmy (31.12.2026), mdy (12/31/2026) or as strptime has it; "
        "empty = guessed",
    )
    zone: Annotated[str, AfterValidator(_zone)] = Field("UTC", description="of times that name none")
    decimal: Literal["", ".", ","] = Field("", description="point or comma of numbers in text; empty = guessed")
    encoding: Annotated[str, AfterValidator(_encoding)] = Field("", description="of CSV files; empty = UTF-8")
    _typed: frozenset[str] | None = PrivateAttr(None)

    def typed(self, fields: Iterable[str]) -> Self:
        """The same where only these fields of `map` were named for the file at hand, and others for files like it."""
        made = self.model_copy()
        made._typed = frozenset(fields)
        return made

    def may_lack(self, field: str) -> bool:
        """Whether a file may be without the column that `map` names for a field."""
        return self._typed is not None and field not in self._typed


class EventFiles(ItemFiles):
    """How files of events are read that have columns of their own; `driftline import` guesses and writes it."""

    FIELDS: ClassVar[tuple[str, ...]] = (
        *("user_id", "item_id", "timestamp_ms", "action", "event_id", "value", "price", "group_id", "domain"),
    )
    REQUIRED: ClassVar[tuple[str, ...]] = ("user_id", "item_id", "timestamp_ms")

    action: str = Field("", description="of all events of files that have no column for it; empty = interact")
    action_from: Annotated[dict[str, float], AfterValidator(_bounds)] = Field(
        {}, description="least value of each action, like: 4, in such files; what is below all of them is `action`"
    )
    action_below_zero: str = Field(
        "",
        description="of those of these events whose value is below 0; empty = return where it is a number of pieces",
    )


class Peers(Section):
    """Recommenders of other makers as arms of a replay."""

    refit_days: float = Field(7.0, ge=0.01, le=3650, description="days between two fits, the first at the split")


class Settings(Section):
    """The whole configuration."""

    name: str = Field("default", description="name of the business; shown in reports and metrics")
    systems: dict[str, str] = Field(
        {},
        description="off, on, placebo or template by name: dynllm, graph, hstu, labels, noise, profiles, text, or that "
        "of a part of an installed package",
    )
    broker: Broker = Broker()
    state: State = State()
    actions: dict[str, Action] = Field(ACTIONS, description="what each action means; others weigh 1 and are counted")
    goals: Goal = Goal()
    graph: Graph = Graph()
    signals: Signals = Signals()
    model: Model = Model()
    ranker: Ranker = Ranker()
    llm: LLM = LLM()
    profiles: Profiles = Profiles()
    encoder: Encoder = Encoder()
    trainer: Trainer = Trainer()
    serving: Serving = Serving()
    metrics: Metrics = Metrics()
    peers: Peers = Peers()
    event_files: EventFiles = EventFiles()
    item_files: ItemFiles = ItemFiles()

    def action(self, name: str) -> Action:
        """The configured meaning of an action; unknown ones weigh 1 and are wanted."""
        return self.actions.get(name, UNKNOWN_ACTION)


UNKNOWN_ACTION = Action(weight=1.0, positive=True)
