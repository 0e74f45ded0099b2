"""A model of texts and images is loaded with what it can do, and without what it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedshare.calls import EmbedRequest
from embedshare.errors import NotServed
from embedshare.providers.local import Local
from tests.engine.test_loading import settings_for
from tests.images.small_clip import LONGEST, clip, file_of, picture


def test_texts_are_cut_at_the_positions_of_the_text_side(tmp_path: Path) -> None:
    local = Local.load(settings_for(tmp_path, str(clip(tmp_path, named=128))), "cpu")
    assert local.description.max_seq_length == LONGEST
    assert local.description.modalities == ("text", "image")
    found = local.embed(EmbedRequest(["one word more " * 60], ""))
    assert found.token_counts == [LONGEST]
    assert np.isfinite(found.rows).all()
    local.close()


def test_texts_are_served_if_the_image_side_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedshare.engine.runtimes import vision

    def fails(*_: object) -> None:
        raise IndexError("no image")

    monkeypatch.setattr(vision.VisionRuntime, "read", fails)
    local = Local.load(settings_for(tmp_path, str(clip(tmp_path))), "cpu")
    assert local.description.modalities == ("text",)
    assert local.embed(EmbedRequest(["a cat"], "")).rows.shape == (1, 32)
    with pytest.raises(NotServed):
        local.embed_images([file_of(picture())], EmbedRequest([], ""))
    local.close()
