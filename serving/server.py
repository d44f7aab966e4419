"""The serving process: state reader, feature store, model slot and gRPC server, started and stopped in order.

start: metrics port -> state reader -> profiles -> snapshot -> gRPC port -> health SERVING
stop:  health NOT_SERVING -> no new requests -> those in flight get `grace_s` -> threads end
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from configs.errors import ConfigError
from configs.settings import Serving, Settings
from configs.signals import stop_on_signals
from graph.rows import action_code
from serving.answers import StateMessages
from serving.engine_scorer import engine_builder
from serving.guard import CountingPool, Guard
from serving.health import NOT_SERVING, SERVING, Health
from serving.metrics import ServingMetrics
from serving.models import BuildScorer, ModelSlot
from serving.profiles import ProfileFollower, ProfileStore
from serving.proto.driftline.v1 import recommendation_pb2 as pb
from serving.proto.driftline.v1 import recommendation_pb2_grpc as pb_grpc
from serving.recommender import Recommender
from serving.service import RecommendationService
from serving.state_reader import MS_PER_DAY, StateReader

LOG = logging.getLogger(__name__)
STOP_POLL_S = 0.1
SERVICE = pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name
ACTIONS = ("interact", "view", "click", "cart", "purchase", "rate", "return", "play", "like", "share", "skip")
"""Names of actions that are told even if the configuration does not set them."""
_SPARE_STREAMS = 4
"""Streams besides the watchers: reflection, and one that is told that there are too many."""


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
        _check_free(serving)
        self.metrics = ServingMetrics()
        _start_metrics(settings.metrics.serving_port, self.metrics)
        self.state = StateReader(
            settings.state.root,
            settings.broker.partitions,
            "interactions",
            serving.state_poll_ms,
            settings.signals.half_lives_days[0] * MS_PER_DAY,
        )
        self.profiles = profiles or ProfileStore(serving.profile_users, settings.ranker.text_dim)
        self._follower = _follow(settings, self.profiles) if profiles is None and serving.follow_profiles else None
        self.models = ModelSlot(
            serving.snapshots,
            build or engine_builder(settings),
            self.metrics,
            serving.poll_s,
            settings.trainer.gate_drop,
        )
        self._requests = CountingPool(serving.threads, "request")
        self.metrics.watch(lambda: len(self.profiles), lambda: self._requests.in_flight)
        self._guard = Guard(
            serving.tokens, self._requests, serving.max_in_flight, serving.max_watchers + _SPARE_STREAMS, self.metrics
        )
        names = {action_code(name): name for name in (*ACTIONS, *settings.actions)}
        recommender = Recommender(
            serving, self.state, self.profiles, self.models, StateMessages(names, self.state.item_id)
        )
        self._service = RecommendationService(serving, recommender, self.state, self.metrics)
        self._health = Health(self._statuses(), serving.max_watchers)
        self._stop = threading.Event()
        try:
            self._server = self._new_grpc_server()
            self.port = _bind(self._server, serving)
        except BaseException:
            self._close_parts()
            raise
        self._server.start()
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
        self._guard.close()
        self._requests.shutdown(wait=False)
        self.models.close()
        if self._follower is not None:
            self._follower.close()
        self.state.close()

    def _new_grpc_server(self) -> grpc.Server:
        server = grpc.server(
            self._requests,
            interceptors=(self._guard,),
            options=(("grpc.so_reuseport", int(self.settings.reuse_port)),),
        )
        pb_grpc.add_RecommendationServiceServicer_to_server(self._service, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _statuses(self) -> dict[str, int]:
        """The service is SERVING once there is anything to answer from."""
        ready = self.models.served is not None or self.state.ready
        return {"": SERVING, SERVICE: SERVING if ready else NOT_SERVING}

    def _follow_health(self) -> None:
        while not self._stop.wait(self.settings.poll_s):
            self._health.set(self._statuses())


def run_server(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then stops gracefully.

    Raises:
        ConfigError: a port is taken, or the TLS files can't be read.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.ERROR)
    stopping = stop_on_signals()
    with Server(settings) as server:
        served = server.models.served
        LOG.info(
            "serving %s on %s:%d, snapshot %s",
            SERVICE,
            settings.serving.host,
            server.port,
            served.snapshot.version if served else "none yet",
        )
        while not stopping():
            time.sleep(STOP_POLL_S)
        LOG.info("stopping")


def _bind(server: grpc.Server, settings: Serving) -> int:
    address = f"{settings.host}:{settings.port}"
    _check_free(settings)
    try:
        if settings.tls_certificate or settings.tls_key:
            return int(server.add_secure_port(address, _credentials(settings)))
        return int(server.add_insecure_port(address))
    except RuntimeError:
        raise ConfigError(
            f"{address} can't be listened on: this machine has not that address, or does not let you have the port. "
            "Set serving.host and serving.port."
        ) from None


def _check_free(settings: Serving) -> None:
    """That nobody listens there: gRPC gives its error no reason, so the port is bound for a moment."""
    try:
        where = socket.getaddrinfo(settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM)
        family, kind, _, _, address = where[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if settings.reuse_port:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {settings.port} of {settings.host} is in use by another process. Set serving.port to a free "
                "one, or stop the other process; several `driftline serve` share a port with serving.reuse_port: true."
            ) from None


def _credentials(settings: Serving) -> grpc.ServerCredentials:
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        raise ConfigError("TLS needs both serving.tls_certificate and serving.tls_key; set the other one, too.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        return grpc.ssl_server_credentials(((key.read_bytes(), certificate.read_bytes()),))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"serving.tls_certificate {certificate} with serving.tls_key {key} can't be used: {error}. "
            "Expected PEM files of a certificate chain and its key."
        ) from None


def _follow(settings: Settings, store: ProfileStore) -> ProfileFollower:
    bootstrap = settings.broker.bootstrap or f"127.0.0.1:{settings.broker.embedded_port}"
    return ProfileFollower(store, settings.broker, bootstrap)


def _start_metrics(port: int, metrics: ServingMetrics) -> None:
    if port:
        try:
            start_http_server(port, registry=metrics.registry)
        except OSError as error:
            raise ConfigError(
                f"metrics.serving_port {port} can't be listened on: {error.strerror}. Choose another, or 0 for none."
            ) from None
