"""How clients of Kafka find a broker and make themselves known: TLS and SASL, in one place for every client."""

from __future__ import annotations

import ssl
from typing import Any

from configs.errors import ConfigError
from configs.settings import Broker


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
