"""The handle of a vector index."""

from __future__ import annotations

import pickle

from embedshare.vectors.client.handle import _copied


def test_a_pickle_names_the_function_that_earlier_versions_have() -> None:
    assert pickle.dumps(_copied, 0).startswith(b"cembedshare.vectors.handle\n_copied\n")
