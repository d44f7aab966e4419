"""The serving process: state reader, feature store, model slot and gRPC server, started and stopped in order.

start: metrics port -> state reader -> profiles, items -> snapshot -> items read -> gRPC port -> health SERVING
stop:  health NOT_SERVING -> no new requests -> those in flight get `grace_s` -> threads end
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from driftline.configs.addresses import joined
from driftline.configs.errors import ConfigError
from driftline.configs.logs import log_to_stderr
from driftline.configs.settings import Serving, Settings
from driftline.configs.signals import stop_on_signals
from driftline.graph.rows import action_code
from driftline.serving.access import Access, exposure
from driftline.serving.answers import StateMessages
from driftline.serving.availability import Availability
from driftline.serving.ends import Ends, EndsFollower
from driftline.serving.engine_scorer import engine_builder
from driftline.serving.follower import Follower
from driftline.serving.forget import Forgetter
from driftline.serving.guard import CountingPool, Guard
from driftline.serving.health import NOT_SERVING, SERVING, Health
from driftline.serving.metrics import ServingMetrics
from driftline.serving.models import BuildScorer, ModelSlot
from driftline.serving.ports import check_free, open_metrics
from driftline.serving.profiles import ProfileFollower, ProfileStore
from driftline.serving.recommender import Recommender
from driftline.serving.service import RecommendationService
from driftline.serving.state_reader import MS_PER_DAY, StateReader
from driftline.serving.transport import server_options
from driftline.serving.withdrawn import NAME as WITHDRAWN_FILE
from driftline.serving.withdrawn import WithdrawnFile
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

LOG = logging.getLogger(__name__)
STOP_POLL_S = 0.1
SERVICE = pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name
ACTIONS = ("interact", "view", "click", "cart", "purchase", "rate", "return", "play", "like", "share", "skip")
"""Names of actions that are told even if the configuration does not set them."""
_SPARE_STREAMS = 4
"""Streams besides the watchers: those that are told that there are too many."""


class Server:
    """One serving process. Use as a context manager, or call `close`.

    Args:
        settings: the whole configuration.
        build: makes a scorer from a snapshot; default is the engine.
        profiles: a store that is filled by the caller; default follows the topic.

    Raises:
        ConfigError: a port is taken, or the TLS files can't be read.
    """

    def __init__(
        self, settings: Settings, build: BuildScorer | None = None, profiles: ProfileStore | None = None
    ) -> None:
        serving = settings.serving
        self.settings = serving
        check_free(serving)
        self.metrics = ServingMetrics()
        self._access = Access(serving, self.metrics)
        self._close_metrics = open_metrics(self.metrics.registry, settings.metrics, "serving_port")
        self.state = StateReader(
            settings.state.root,
            settings.broker.partitions,
            "interactions",
            serving.state_poll_ms,
            settings.signals.half_lives_days[0] * MS_PER_DAY,
        )
        self.profiles = profiles or ProfileStore(serving.profile_users, settings.ranker.text_dim)
        self._follower = _follow(settings, self.profiles) if profiles is None and serving.follow_profiles else None
        follows, topic = serving.follow_items, settings.broker.prefix + "items"
        self.availability = Availability(topic, WithdrawnFile(serving.snapshots) if follows else None)
        self._items = Follower(self.availability, settings.broker, _bootstrap(settings), "items") if follows else None
        self._ends = Ends()
        self._asks = EndsFollower(self._ends, settings.broker, _bootstrap(settings)) if serving.follow_ends else None
        self.models = ModelSlot(
            serving.snapshots,
            build or engine_builder(settings, self.profiles.on_forget),
            self.metrics,
            serving.poll_s,
            settings.trainer.gate_drop,
        )
        self._requests = CountingPool(serving.max_in_flight, "request")
        self.metrics.withdrawn.set_function(lambda: len(self.availability.withdrawn))
        self.metrics.follows_items.set_function(lambda: self._items is not None and self._items.follows)
        self.metrics.watch(lambda: len(self.profiles), lambda: self._requests.in_flight, self.state.age_ms)
        self._guard = Guard(
            self._access,
            self._requests,
            serving.threads,
            serving.max_in_flight,
            serving.max_watchers + _SPARE_STREAMS,
            self.metrics,
        )
        names = {action_code(name): name for name in (*ACTIONS, *settings.actions)}
        recommender = Recommender(
            serving,
            self.state,
            self.profiles,
            self.models,
            StateMessages(names, self.state.item_id, self.availability.title),
            self.availability,
            settings.state.ttl_ms,
            self._ends,
            settings.signals.one_id_space,
        )
        self._forgetter = Forgetter(settings.broker, _bootstrap(settings))
        self._service = RecommendationService(serving, recommender, self.state, self.metrics, self._forgetter.forget)
        self._health = Health(self._statuses(), serving.max_watchers)
        self._stop = threading.Event()
        self._wait_for_items(serving.items_wait_s)
        try:
            self._server = self._new_grpc_server()
            self.port = _bind(self._server, serving)
        except BaseException:
            self._close_parts()
            raise
        self._server.start()
        self.metrics.health.set_function(lambda: self._health.status(SERVICE))  # 0 until now: metrics answer earlier
        self._health_thread = threading.Thread(target=self._follow_health, name="health", daemon=True)
        self._health_thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stops: new requests are refused, those in flight get `grace_s`."""
        self._stop.set()
        self._health.close()
        self._service.stop()
        self._server.stop(self.settings.grace_s).wait()
        self._close_parts()

    def _close_parts(self) -> None:
        self._close_metrics()
        self._guard.close()
        self._requests.shutdown(wait=False)
        self._forgetter.close()
        self.models.close()
        if self._follower is not None:
            self._follower.close()
        if self._items is not None:
            self._items.close()
        if self._asks is not None:
            self._asks.close()
        self.state.close()

    def _wait_for_items(self, most_s: float) -> None:
        """A start must not bring withdrawn items back for its first seconds."""
        if self._items is not None and not self._items.wait(most_s):
            LOG.warning(
                "the topic items is not read yet: what may be recommended is as of the snapshot and of %s for now",
                WITHDRAWN_FILE,
            )

    def _new_grpc_server(self) -> grpc.Server:
        server = grpc.server(
            self._requests,
            interceptors=(self._guard,),
            options=server_options(self.settings.reuse_port),
        )
        pb_grpc.add_RecommendationServiceServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _statuses(self) -> dict[str, int]:
        """The service is SERVING once there is anything to answer from."""
        ready = self.models.served is not None or self.state.ready
        return {"": SERVING, SERVICE: SERVING if ready else NOT_SERVING}

    def _follow_health(self) -> None:
        while not self._stop.wait(self.settings.poll_s):
            self._access.follow()
            self._health.set(self._statuses())


def run_server(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then stops gracefully.

    Raises:
        ConfigError: a port is taken, or the TLS files can't be read.
    """
    log_to_stderr()
    logging.getLogger("kafka").setLevel(logging.ERROR)
    stopping = stop_on_signals()
    for sentence in exposure(settings.serving):
        LOG.warning(sentence)
    with Server(settings) as server:
        served = server.models.served
        LOG.info(
            "serving %s on %s, state of %s, snapshot %s of %s",
            SERVICE,
            joined(settings.serving.host, server.port),
            settings.state.root.absolute(),
            served.snapshot.version if served else "none yet",
            settings.serving.snapshots.absolute(),
        )
        while not stopping():
            time.sleep(STOP_POLL_S)
        LOG.info("stopping")


def _bind(server: grpc.Server, settings: Serving) -> int:
    address = joined(settings.host, settings.port)
    check_free(settings)
    try:
        if settings.tls_certificate or settings.tls_key:
            return int(server.add_secure_port(address, _credentials(settings)))
        return int(server.add_insecure_port(address))
    except RuntimeError:
        raise ConfigError(
            f"{address} can't be listened on: this machine has not that address, or does not let you have the port. "
            "Set serving.host and serving.port."
        ) from None


def _credentials(settings: Serving) -> grpc.ServerCredentials:
    certificate, key, authority = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        raise ConfigError("TLS needs both serving.tls_certificate and serving.tls_key; set the other one, too.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        pairs = ((key.read_bytes(), certificate.read_bytes()),)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"serving.tls_certificate {certificate} with serving.tls_key {key} can't be used: {error}. "
            "Expected PEM files of a certificate chain and its key."
        ) from None
    if authority is None:
        return grpc.ssl_server_credentials(pairs)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(authority)
        return grpc.ssl_server_credentials(pairs, authority.read_bytes(), require_client_auth=True)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"serving.tls_client_ca {authority} can't be used: {error}. Expected a PEM file of certificates that sign "
            "those of callers."
        ) from None


def _follow(settings: Settings, store: ProfileStore) -> ProfileFollower:
    return ProfileFollower(store, settings.broker, _bootstrap(settings))


def _bootstrap(settings: Settings) -> str:
    return settings.broker.bootstrap or f"127.0.0.1:{settings.broker.embedded_port}"
