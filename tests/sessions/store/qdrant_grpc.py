"""The gRPC calls of a Qdrant server that a store uses, answered by qdrant-client's local mode. No Qdrant."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from qdrant_client import grpc as api
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from tests.processes import free_port
from tests.sessions.store.qdrant_server import LockedClient


def _filter(request: Any) -> models.Filter | None:
    return GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None


def _done(request: Any) -> Any:
    assert request.wait
    return api.PointsOperationResponse(
        result=api.UpdateResult(operation_id=1, status=api.UpdateStatus.Completed)
    )


class Points(api.PointsServicer):
    """Points of collections."""

    def __init__(self, client: LockedClient) -> None:
        self.client = client
        self.keys: set[str | None] = set()

    def Upsert(self, request: Any, context: Any) -> Any:
        self.keys.add(dict(context.invocation_metadata()).get("api-key"))
        points = [GrpcToRest.convert_point_struct(each) for each in request.points]
        self.client.upsert(request.collection_name, points)
        return _done(request)

    def Delete(self, request: Any, _: Any) -> Any:
        chosen = models.FilterSelector(filter=GrpcToRest.convert_filter(request.points.filter))
        self.client.delete(request.collection_name, chosen)
        return _done(request)

    def CreateFieldIndex(self, request: Any, _: Any) -> Any:
        return _done(request)

    def Query(self, request: Any, _: Any) -> Any:
        assert request.params.exact
        found = self.client.query_points(
            request.collection_name,
            GrpcToRest.convert_query(request.query).nearest,
            using=request.using or None,
            limit=request.limit,
            query_filter=_filter(request),
        )
        return api.QueryResponse(result=[RestToGrpc.convert_scored_point(each) for each in found.points])

    def Count(self, request: Any, _: Any) -> Any:
        counted = self.client.count(request.collection_name, count_filter=_filter(request)).count
        return api.CountResponse(result=api.CountResult(count=counted))

    def Scroll(self, request: Any, _: Any) -> Any:
        offset = GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None
        records, after = self.client.scroll(
            request.collection_name, scroll_filter=_filter(request), limit=request.limit, offset=offset
        )
        return api.ScrollResponse(
            result=[RestToGrpc.convert_record(each) for each in records],
            next_page_offset=None if after is None else RestToGrpc.convert_extended_point_id(after),
        )

    def Get(self, request: Any, _: Any) -> Any:
        ids = [GrpcToRest.convert_point_id(each) for each in request.ids]
        records = self.client.retrieve(request.collection_name, ids)
        return api.GetResponse(result=[RestToGrpc.convert_record(each) for each in records])

    def Facet(self, request: Any, _: Any) -> Any:
        found = self.client.facet(
            request.collection_name, request.key, facet_filter=_filter(request), limit=request.limit
        )
        return api.FacetResponse(hits=[RestToGrpc.convert_facet_value_hit(each) for each in found.hits])


class Collections(api.CollectionsServicer):
    """The collections."""

    def __init__(self, client: LockedClient) -> None:
        self.client = client

    def CollectionExists(self, request: Any, _: Any) -> Any:
        exists = self.client.collection_exists(request.collection_name)
        return api.CollectionExistsResponse(result=api.CollectionExists(exists=exists))

    def Get(self, request: Any, _: Any) -> Any:
        found = self.client.get_collection(request.collection_name)
        return api.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(found))

    def Create(self, request: Any, _: Any) -> Any:
        vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
        sparse = GrpcToRest.convert_sparse_vector_config(request.sparse_vectors_config)
        self.client.create_collection(
            request.collection_name, vectors_config=vectors, sparse_vectors_config=sparse
        )
        return api.CollectionOperationResponse(result=True)


@contextmanager
def running() -> Iterator[tuple[str, Points, grpc.Server]]:
    """A server's address, its points and itself. gRPC is on the port behind the address's."""
    port, client = free_port(in_a_row=2), LockedClient()
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    points = Points(client)
    api.add_PointsServicer_to_server(points, server)
    api.add_CollectionsServicer_to_server(Collections(client), server)
    assert server.add_insecure_port(f"127.0.0.1:{port + 1}") == port + 1
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", points, server
    finally:
        server.stop(None).wait(10)
