"""Settings of the client: the source of its vectors, and its behaviour while the server is down."""

from __future__ import annotations

import dataclasses

from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting


@dataclasses.dataclass(frozen=True)
class ClientSettings(Section):
    TITLE = "Client"

    # fmt: off
    use_ipc: bool = setting("USE_IPC_EMBEDDING", parsing.boolean, True,
        "Use of the shared model server. With false each process loads a local model behind the same object")
    timeout_s: float = setting("EMBEDDING_TIMEOUT_S", parsing.seconds(0.01, 86_400), 60.0,
        "Seconds that one call to the server may take, retries included. A long list is sent as several "
        "calls")
    fallback: str = setting("EMBEDDING_FALLBACK", parsing.choice("local", "none"), "local",
        "Fallback while the server is away: local (a model in the client's process) or none (calls wait, "
        "then fail)")
    fallback_device: str = setting("EMBEDDING_FALLBACK_DEVICE", parsing.device, "cpu",
        "Device that runs the local model: auto, cpu, cuda, cuda:1, …, or mps")
    local_release_s: float = setting("EMBEDDING_LOCAL_RELEASE_S", parsing.seconds(0, 86_400), 60.0,
        "Seconds after the server's return until a client unloads its local model")
    on_model_change: str = setting("EMBEDDING_ON_MODEL_CHANGE", parsing.choice("refuse", "follow"), "refuse",
        "Reaction of a client to a server that returns with another model: refuse (calls fail with "
        "`ModelMismatch`) or follow (new calls use it, and no call mixes two models). With "
        "`EMBEDDING_USE_DB_SETTINGS` the default is follow")
    async_threads: int = setting("EMBEDDING_ASYNC_THREADS", parsing.integer(1, 1024), 16,
        "Maximum calls of `aencode` in flight in one client. Further calls are queued")
    image_hosts: str = setting("EMBEDDING_IMAGE_HOSTS", parsing.hosts_with_ports, "",
        "Hosts that images are fetched from where a caller gives their URL, as "
        "`images.example,10.0.0.5:8080`. All other hosts are refused")
    autostart: bool = setting("EMBEDDING_AUTOSTART", parsing.boolean, False,
        "Automatic start of a model server. With true the first process that finds none starts one in the "
        "background, for all processes")
