"""The session server's process: its parts, from the store of its folder to the port, and their end."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from loguru import logger

from embedshare.access.key_ring import KeyRing
from embedshare.access.rates import Rates
from embedshare.database.database import Database
from embedshare.errors import DatabaseUnavailable
from embedshare.grpc.callers import Door
from embedshare.grpc.interceptors import CallCounts, Entrance
from embedshare.grpc.server import SessionServer
from embedshare.grpc.servicer import Service, SessionServicer
from embedshare.grpc.tei_calls import TeiCalls
from embedshare.ipc import authkey
from embedshare.sessions.collections import Collections
from embedshare.sessions.embedding import Models
from embedshare.sessions.library import Library
from embedshare.sessions.manager import SessionManager
from embedshare.sessions.parts import Parts
from embedshare.sessions.place import SessionPlace
from embedshare.sessions.quotas import DayTokens
from embedshare.sessions.records import SessionRecords
from embedshare.sessions.search import Searches
from embedshare.sessions.uploads import Uploads
from embedshare.settings import Settings

#: Calls of models at once, of all uploads.
EMBEDDING_THREADS = 8
#: Seconds between two looks whether to stop.
LOOK_EVERY_S = 0.1


async def serve(settings: Settings, parts: Parts, place: SessionPlace, stop: threading.Event) -> None:
    """Serve the sessions of a folder until `stop`, then finish the running calls.

    Raises DatabaseUnavailable, ServerUnavailable while there is no model server's key, PortUnavailable, and
    the store's errors.
    """
    started = time.monotonic()
    door = Door(_key_ring(settings), authkey.client_key(settings), _rates(settings))
    database = Database.open(settings, authkey.key_file(settings).parent)
    records = SessionRecords(database, place.id)
    models, threads = Models(settings, parts), ThreadPoolExecutor(EMBEDDING_THREADS, "embed")
    tokens = DayTokens(settings.sessions.max_day_tokens, records.tokens, records.set_tokens)
    collections = Collections(place.path, parts)
    sessions = SessionManager(records, collections, models, settings.sessions, Uploads(), tokens)
    library = Library(sessions, models, parts, settings, threads)
    await asyncio.to_thread(library.recover)
    counts = CallCounts()
    searches, most_bytes = Searches(sessions, models), settings.server.max_message_bytes
    servicer = SessionServicer(Service(sessions, library, searches, models, counts, most_bytes))
    tei = TeiCalls(models)
    server = SessionServer(servicer, tei, Entrance(door, counts), settings)
    await server.start()
    sweeping = threading.Thread(target=library.follow, args=(stop,), name="sweep", daemon=True)
    sweeping.start()
    took_s, address = time.monotonic() - started, settings.sessions.address
    logger.info("ready: sessions of {}, at {}, after {:.1f} s", place.path, address, took_s)
    while not stop.is_set():
        await asyncio.sleep(LOOK_EVERY_S)  # a signal's handler cannot wake the loop on every system
    logger.info("Stopping (finishing accepted calls, {:g} s at most)", settings.server.drain_s)
    drained = await server.stop(settings.server.drain_s)
    models.close()
    threads.shutdown(wait=False, cancel_futures=True)
    servicer.close()
    tei.close()
    await asyncio.to_thread(_save, sessions, sweeping)
    logger.info("stopped" if drained else "stopped; some calls were not finished in time")


def _save(sessions: SessionManager, sweeping: threading.Thread) -> None:
    sweeping.join(5.0)
    try:
        sessions.save()
    except DatabaseUnavailable as error:
        logger.warning("Could not store when sessions were used ({})", error.message)
    sessions.collections.close()
    sessions.records.close()


def _key_ring(settings: Settings) -> KeyRing | None:
    """The API keys, where callers of this address are asked for them."""
    here = settings.with_values({"EMBEDDING_HOST": settings.sessions.host})
    if not here.web.asks_for_keys:
        return None
    from embedshare import wiring  # with the web's packages, which a server without keys need not load

    return wiring.key_ring(here)


def _rates(settings: Settings) -> Rates | None:
    if not settings.web.rate_limit:
        return None
    from embedshare import wiring

    return wiring.rates(settings)  # type: ignore[return-value]  # told as a protocol
