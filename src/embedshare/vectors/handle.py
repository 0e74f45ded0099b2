"""Where pickles of a VectorIndex look for the function that makes one again, those of earlier versions
too."""

from embedshare.vectors.client.handle import _copied

__all__ = ["_copied"]
