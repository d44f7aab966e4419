"""How clients of Kafka find a broker and make themselves known: TLS and SASL, in one place for every client."""

from __future__ import annotations

import ssl
from typing import Any

from driftline.configs.errors import ConfigError
from driftline.configs.settings import Broker

READ_COMMITTED = "read_committed"
"""What every consumer reads: no record of a transaction that was aborted, or that is not decided yet."""
METADATA_MS = 5000
"""How old at most what a consumer knows of its topics is: partitions may be added while they are read."""


def client_options(broker: Broker, bootstrap: str) -> dict[str, Any]:
    """Keyword arguments of a kafka-python or aiokafka client, which share their names.

    Args:
        broker: how to make oneself known.
        bootstrap: host:port[,host:port]: the embedded broker's, or `broker.bootstrap`.

    Raises:
        ConfigError: a certificate or key can't be read.
    """
    options: dict[str, Any] = {"bootstrap_servers": bootstrap.split(","), "security_protocol": broker.security}
    if broker.security.endswith("SSL"):
        options["ssl_context"] = ssl_context(broker)
    if broker.security.startswith("SASL"):
        options |= {
            "sasl_mechanism": broker.sasl_mechanism,
            "sasl_plain_username": broker.sasl_username,
            "sasl_plain_password": broker.sasl_password,
        }
    return options


def producer_options(broker: Broker, bootstrap: str) -> dict[str, Any]:
    """Keyword arguments of a kafka-python producer that is acknowledged by all replicas."""
    compression = None if broker.compression == "none" else broker.compression
    return {
        **client_options(broker, bootstrap),
        "bootstrap_timeout_ms": bootstrap_ms(broker),
        "acks": "all",
        "compression_type": compression,
    }


def consumer_options(broker: Broker, bootstrap: str) -> dict[str, Any]:
    """Keyword arguments of a kafka-python or aiokafka consumer without a group; aborted transactions stay out."""
    return {
        **client_options(broker, bootstrap),
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "isolation_level": READ_COMMITTED,
        "metadata_max_age_ms": METADATA_MS,
    }


def bootstrap_ms(broker: Broker) -> int:
    """How long a kafka-python client may look for a broker before it gives up; its own default is half a minute."""
    return int(broker.connect_timeout_s * 1000)


def ssl_context(broker: Broker) -> ssl.SSLContext:
    """Checks the broker's certificate and host name; brings the client's own certificate where one is set."""
    try:
        context = ssl.create_default_context(cafile=broker.tls_ca)
        if broker.tls_certificate is not None:
            context.load_cert_chain(broker.tls_certificate, broker.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        files = f"broker.tls_ca {broker.tls_ca}, tls_certificate {broker.tls_certificate}, tls_key {broker.tls_key}"
        raise ConfigError(f"{files} can't be used: {error}. Expected PEM files, and no pass phrase.") from None
    return context
