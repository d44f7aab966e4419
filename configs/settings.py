"""Every number that an operator may change, with its unit, its bound and its default.

One YAML file (`extends: NAME` starts from a preset), then `DRIFTLINE__SECTION__KEY` from the environment, then
the defaults below. Unknown keys are errors that name the nearest known one. Constants of an algorithm stay
beside their equation; what a business sets is here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of settings that forbids unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Broker(Section):
    """Where Kafka is. Without `bootstrap` an embedded broker is started and stopped by driftline."""

    bootstrap: str = Field("", description="host:port[,host:port]; empty = embedded broker")
    partitions: int = Field(1, ge=1, le=1024, description="partitions of a topic that driftline creates")
    replication: int = Field(1, ge=1, le=9, description="replicas of a topic that driftline creates")
    prefix: str = Field("", description="put before every topic name and consumer group")
    embedded_port: int = Field(19292, ge=1, le=65535, description="port of the embedded broker")
    session_timeout_s: float = Field(10.0, gt=0, description="a killed worker's partitions move after this")
    heartbeat_s: float = Field(3.0, gt=0)


class State(Section):
    """The state store: one RocksDB directory a partition."""

    root: Path = Field(Path(".driftline/state"), description="directory that workers on one host share")
    history: int = Field(1024, ge=8, le=65536, description="events kept for a user")
    sync: bool = Field(True, description="fsync each commit")
    epoch_events: int = Field(512, ge=1, le=8192, description="events in one commit at most")
    epoch_ms: int = Field(50, ge=1, description="milliseconds that an epoch waits for more events")
    dedupe_ids: int = Field(100_000, ge=0, description="event_ids remembered a partition")
    late_ms: int = Field(3_600_000, ge=0, description="an event that is later than this is only counted")
    late_events: int = Field(16_384, ge=0, description="applied events that one late event may roll back")
    lock_wait_s: float = Field(10.0, ge=0, description="how long to wait for a partition's lock")


class Graph(Section):
    """Continuous-time dynamic graph: node memory, temporal neighbours, message function."""

    memory_dim: int = Field(32, ge=4, le=512)
    time_dim: int = Field(16, ge=2, le=256)
    message_dim: int = Field(32, ge=4, le=512)
    neighbors: int = Field(20, ge=1, le=512, description="last-K temporal neighbours of a node")
    embed_dim: int = Field(32, ge=4, le=512)
    weights: Literal["trained", "random", "off"] = Field("trained", description="arm of the ablation")
    learning_rate: float = Field(1e-3, gt=0)
    batch_groups: int = Field(8, ge=1, description="groups of one training step")
    full_softmax: int = Field(8192, ge=0, description="with at most this many seen items all are negatives")
    negatives: int = Field(1024, ge=1, description="else so many are drawn, shared by the batch")
    publish_groups: int = Field(2000, ge=1, description="groups learnt between two graph versions")
    seed: int = 0


class Action(Section):
    """What one kind of event means to the business."""

    weight: float = Field(1.0, description="share of an interaction; negative undoes")
    positive: bool = Field(True, description="counts as something the user wanted: a training target")


class Goal(Section):
    """How a business weighs outcomes when metrics are also printed weighted."""

    action_weights: dict[str, float] = Field(default_factory=dict)
    by: Literal["", "value", "margin", "price"] = ""


class Ranker(Section):
    """The small network that joins every signal and learns on the stream."""

    hidden: int = Field(48, ge=4, le=1024)
    members: int = Field(3, ge=1, le=16, description="networks with seeds of their own, averaged")
    learning_rate: float = Field(1e-3, gt=0)
    replay_groups: int = Field(1500, ge=0, description="logged groups that may be replayed")
    replay_steps: int = Field(3, ge=0, description="replayed groups for each new one")
    sampled: int = Field(200, ge=2, description="negatives of each list of a group, weighted by inverse inclusion")
    hard: float = Field(0.5, ge=0, le=0.9, description="share of the sampled negatives that are the hardest ones")
    recall: int = Field(150, ge=1, description="candidates of each recaller")
    newest: int = Field(50, ge=0, description="items that entered last")
    pool: int = Field(1000, ge=10, description="candidates of the base recallers at most; replay and Recommend share it")
    personal: int = Field(300, ge=0, description="the user's own past items in the pool at most")


class Signals(Section):
    """Counters over the stream that need no gradient."""

    half_lives_days: tuple[float, ...] = (1.0, 3.0, 7.0, 14.0, 30.0, 90.0)
    neighbors: int = Field(128, ge=4, le=4096, description="partners kept for an item in each table")
    pair_half_life_days: float = Field(120.0, gt=0, description="of within-basket pairs and transitions")
    user_half_life_days: float = Field(60.0, gt=0, description="of a touch in a user's history")
    users: int = Field(20_000, ge=10, description="most recent users that user-kNN searches")
    user_items: int = Field(400, ge=1, description="most recent distinct items of a user in user-kNN")
    nearest: int = Field(100, ge=1, description="users that user-kNN sums")
    refresh_ms: int = Field(86_400_000, ge=1, description="event time between two refreshes of user-kNN")
    recent: int = Field(100, ge=1, description="distinct items of a history that recallers start from")
    top: int = Field(400, ge=1, description="most popular items kept by half-life")
    domains: int = Field(64, ge=0, description="domains with a popularity of their own; further ones share none")
    domain_half_life_days: float = Field(30.0, gt=0)


class Profiles(Section):
    """LLM-written user profiles: when one is due and what it may cost."""

    first_events: int = Field(10, ge=1, description="events of a user before the first profile is asked for")
    refresh_events: int = Field(50, ge=1, description="events between two profiles")


class Model(Section):
    """The sequence backbone and how it learns on the stream."""

    backbone: Literal["hstu", "sasrec", "off"] = "hstu"
    dim: int = Field(64, ge=4, le=1024, description="width of an item vector")
    blocks: int = Field(2, ge=1, le=32)
    heads: int = Field(1, ge=1, le=32, description="a divisor of dim")
    max_len: int = Field(100, ge=2, le=8192, description="events of a user that are read")
    dropout: float = Field(0.2, ge=0, lt=1)
    temperature: float = Field(0.05, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    negatives: int = Field(1024, ge=1, description="seen items that a step draws, shared by its batch")
    full_softmax: int = Field(8192, ge=0, description="with at most this many seen items all are negatives")
    log_q: bool = Field(True, description="correct for the chance of a negative to be drawn")
    repeat_weight: float = Field(1.0, ge=0, description="weight of a target that the user had before")
    text_dim: int = Field(0, ge=0, description="width of the frozen text vectors that start new items; 0 = none")
    batch: int = Field(32, ge=1, description="windows of one optimiser step")
    replay_share: float = Field(0.75, ge=0, le=1, description="windows of a step that come from the replay log")
    step_groups: int = Field(8, ge=1, description="groups between two optimiser steps")
    replay_groups: int = Field(100_000, ge=1, description="newest groups that the replay log holds")
    seed: int = 0


class Trainer(Section):
    """The process that scores, learns and publishes."""

    publish_s: float = Field(5.0, gt=0, description="seconds between two snapshots")
    publish_events: int = Field(5000, ge=1, description="or this many events, whichever is first")
    checkpoint_s: float = Field(60.0, gt=0)
    catch_up_events: int = Field(5000, ge=1, description="with more lag than this, only a share is learnt")
    catch_up_share: float = Field(0.1, gt=0, le=1)
    gate_drop: float = Field(0.5, ge=0, le=1, description="refuse a snapshot whose NDCG@10 fell by this share")
    threads: int = Field(1, ge=1)
    root: Path = Path(".driftline/trainer")


class Serving(Section):
    """The gRPC service and its snapshots."""

    host: str = "127.0.0.1"
    port: int = Field(50551, ge=0, le=65535)
    threads: int = Field(4, ge=1, le=256)
    max_in_flight: int = Field(64, ge=1, description="requests past this are shed with RESOURCE_EXHAUSTED")
    snapshots: Path = Path(".driftline/snapshots")
    keep: int = Field(5, ge=1)
    poll_s: float = Field(0.5, gt=0, description="how often CURRENT is looked at")
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tokens: tuple[str, ...] = Field((), description="bearer tokens that may call; empty = open")


class Metrics(Section):
    """Prometheus end points: `port` 0 switches them off."""

    worker_port: int = Field(0, ge=0, le=65535)
    trainer_port: int = Field(0, ge=0, le=65535)
    profiler_port: int = Field(0, ge=0, le=65535)
    serving_port: int = Field(0, ge=0, le=65535)


class Settings(Section):
    """The whole configuration."""

    name: str = "default"
    broker: Broker = Broker()
    state: State = State()
    actions: dict[str, Action] = Field(default_factory=dict)
    goals: Goal = Goal()
    graph: Graph = Graph()
    signals: Signals = Signals()
    model: Model = Model()
    ranker: Ranker = Ranker()
    profiles: Profiles = Profiles()
    trainer: Trainer = Trainer()
    serving: Serving = Serving()
    metrics: Metrics = Metrics()

    def action(self, name: str) -> Action:
        """The configured meaning of an action; unknown ones weigh 1 and are wanted."""
        return self.actions.get(name, UNKNOWN_ACTION)


UNKNOWN_ACTION = Action(weight=1.0, positive=True)
