"""What embedshare is measured beside. A peer is one file here, its name in `ALL`, and its app in `apps`."""

from benchmarks.peers import fastapi_uvicorn, gunicorn_dirty
from benchmarks.peers.peer import Peer

ALL: list[Peer] = [gunicorn_dirty.PEER, fastapi_uvicorn.PEER]
