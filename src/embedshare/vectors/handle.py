"""The place where pickles of a VectorIndex, of every version, find the function that restores one."""

from embedshare.vectors.client.handle import _copied

__all__ = ["_copied"]
