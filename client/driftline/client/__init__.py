"""driftline's client: user state and recommendations over gRPC. Needs grpcio and protobuf, nothing of the engine."""

from driftline.client.client import Client, Which, as_dict
from driftline.client.errors import CertificateError, ClientError, InvalidRequest
from driftline.client.steering import Steering

__all__ = ["CertificateError", "Client", "ClientError", "InvalidRequest", "Steering", "Which", "as_dict"]
