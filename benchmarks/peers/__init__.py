"""The peers of embedshare in the benchmark: a file here each, its name in `ALL`, and its app in `apps`."""

from collections.abc import Iterable

from benchmarks.peers import fastapi_uvicorn, gunicorn_dirty, infinity_emb, litserve, mosec
from benchmarks.peers.environment import Environment
from benchmarks.peers.peer import Peer

ALL: list[Peer] = [gunicorn_dirty.PEER, fastapi_uvicorn.PEER, infinity_emb.PEER, litserve.PEER, mosec.PEER]


def environments(peers: Iterable[Peer]) -> dict[Environment, list[str]]:
    """The environments that `peers` need, each with the packages of all its peers. A run with a few of
    them does not rebuild it."""
    used = {peer.environment for peer in peers}
    needs: dict[Environment, set[str]] = {}
    for peer in ALL:
        if peer.supported and peer.environment in used:
            needs.setdefault(peer.environment, set()).update(peer.requirements)
    return {environment: sorted(requirements) for environment, requirements in needs.items()}
