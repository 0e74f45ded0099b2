from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from embedshare.models.spec import ModelSpec, RemoteSpec
from embedshare.providers.event_loop import EventLoop
from embedshare.providers.remote import Remote, Services
from embedshare.providers.spending import Spending
from tests.providers.service import Service

Load = Callable[..., Remote]


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def services() -> Services:
    return Services(EventLoop(), Spending())


def spec(service: Service, provider: Any = "openai", name: str = "m", **fields: Any) -> ModelSpec:
    of_model = {key: fields.pop(key) for key in ("dimensions", "space", "failover") if key in fields}
    url = service.url + ("/v1" if provider == "openai" else "")
    remote = RemoteSpec(base_url=url, **fields)
    return ModelSpec(id=f"{provider}/{name}", name=name, provider=provider, remote=remote, **of_model)


@pytest.fixture
def load(service: Service, services: Services) -> Iterator[Load]:
    """Load a model of the service: `load("openai", name="m", timeout_s=1.0)`."""
    loaded = []

    def one(provider: str = "openai", name: str = "m", **fields: Any) -> Remote:
        loaded.append(Remote.load(spec(service, provider, name, **fields), services, 8192))
        service.asked.clear()
        return loaded[-1]

    yield one
    for remote in loaded:
        remote.close()
