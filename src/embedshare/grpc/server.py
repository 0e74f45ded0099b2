"""The gRPC server of sessions: its port, its health, and its end.

Health and reflection need no key and no thread, so that full pools starve neither.
"""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from embedshare.errors import PortUnavailable
from embedshare.grpc import fastembed_pb2, tei_pb2, tei_pb2_grpc
from embedshare.grpc.fastembed_pb2_grpc import add_FastEmbedServiceServicer_to_server
from embedshare.grpc.interceptors import Entrance
from embedshare.grpc.servicer import SessionServicer
from embedshare.grpc.tei_calls import TeiCalls
from embedshare.grpc.tei_scores import ScoreServicer
from embedshare.grpc.tei_servicer import TeiServicer
from embedshare.settings import Settings

#: The full names of the services.
SERVICES = tuple(
    service.full_name
    for file in (fastembed_pb2.DESCRIPTOR, tei_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class SessionServer:
    """Listens from `start` to `stop`, in one event loop."""

    def __init__(
        self, servicer: SessionServicer, tei: TeiCalls, entrance: Entrance, settings: Settings
    ) -> None:
        self._servicer = servicer
        self._entrance = entrance
        self._settings = settings.sessions
        self._server = grpc.aio.server(
            interceptors=[entrance],
            options=[
                ("grpc.so_reuseport", 0),  # else a second server would share the port without a word
                ("grpc.max_receive_message_length", settings.server.max_message_bytes),
                ("grpc.max_send_message_length", settings.server.max_message_bytes),
                ("grpc.max_concurrent_streams", settings.server.max_connections),
            ],
        )
        self._health = health.aio.HealthServicer()
        add_FastEmbedServiceServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        self._add_tei(tei, settings)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def _add_tei(self, calls: TeiCalls, settings: Settings) -> None:
        embeds, scores = TeiServicer(calls, settings), ScoreServicer(calls, settings)
        for add in (
            tei_pb2_grpc.add_InfoServicer_to_server,
            tei_pb2_grpc.add_EmbedServicer_to_server,
            tei_pb2_grpc.add_TokenizeServicer_to_server,
        ):
            add(embeds, self._server)  # type: ignore[no-untyped-call]
        for add in (tei_pb2_grpc.add_PredictServicer_to_server, tei_pb2_grpc.add_RerankServicer_to_server):
            add(scores, self._server)  # type: ignore[no-untyped-call]

    async def start(self) -> None:
        """Listen. Raises PortUnavailable."""
        address = self._settings.address
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise PortUnavailable(
                f"the session server cannot listen at {address}: another process does, or the address is not "
                "this machine's",
                host=self._settings.host,
                port=self._settings.port,
            )
        await self._server.start()
        await self._tell(_SERVING)

    async def stop(self, drain_s: float) -> bool:
        """Refuse new calls, let those in flight end within `drain_s` seconds; whether they did.

        Meanwhile the health says NOT_SERVING.
        """
        await self._tell(_NOT_SERVING)
        self._entrance.is_draining = True
        drained = await self._servicer.drain(drain_s)
        await self._server.stop(0)
        await self._servicer.drain(0.0)  # uploads that were cut off
        return drained

    async def _tell(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *SERVICES):
            await self._health.set(name, status)
