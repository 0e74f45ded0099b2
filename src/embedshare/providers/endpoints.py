"""The remote services by the name of their provider; each package is imported at its first use."""

from __future__ import annotations

from embedshare.errors import MissingDependency
from embedshare.models.spec import ModelSpec
from embedshare.providers.endpoint import Endpoint


def of(spec: ModelSpec) -> Endpoint:
    """The endpoint of a remote model. Raises MissingDependency."""
    try:
        if spec.provider == "openai":
            from embedshare.providers.openai import OpenAIEndpoint

            return OpenAIEndpoint(spec)
        if spec.provider == "ollama":
            from embedshare.providers.ollama import OllamaEndpoint

            return OllamaEndpoint(spec)
        from embedshare.providers.tei import TeiEndpoint

        return TeiEndpoint(spec)
    except ImportError as error:
        raise MissingDependency(
            f"{spec.id} needs a package for {spec.provider} that is not installed ({error}): "
            "pip install 'embedshare[providers]'"
        ) from None
