"""The functions of a cross-encoder's scores, against torch's."""

from __future__ import annotations

import numpy as np
import pytest

from embedshare import activations
from embedshare.errors import InvalidInput


@pytest.mark.parametrize("name", list(activations.ACTIVATIONS))
def test_each_gives_the_values_of_torchs_module_of_its_name(name: str) -> None:
    import torch

    rows = np.array([[-100.0, 0.0, 100.0], [0.5, -0.25, 3.0]], np.float32)
    module = torch.nn.Softmax(dim=-1) if name == "Softmax" else getattr(torch.nn, name)()
    found = activations.named(name)(rows)
    assert found.dtype == np.float32
    assert found == pytest.approx(module(torch.from_numpy(rows)).numpy(), abs=1e-6)


def test_another_name_is_an_error_that_lists_them() -> None:
    with pytest.raises(InvalidInput, match="'Swish'; allowed: Identity, Sigmoid"):
        activations.named("Swish")
