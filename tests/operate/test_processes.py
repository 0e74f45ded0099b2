"""A server that crashes repeatedly: the operator learns which model it serves."""

from __future__ import annotations

from pathlib import Path

from embedshare.ipc import authkey
from embedshare.models.sources.swap import SwapNote
from embedshare.operate.processes import model_advice
from embedshare.settings import Settings


def settings_with(folder: Path) -> Settings:
    values = {"EMBEDDING_MODEL_NAME": "org/one", "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey")}
    return Settings().with_values(values)


def test_the_advice_names_the_model_that_serves_and_what_helps(tmp_path: Path) -> None:
    settings = settings_with(tmp_path)
    assert model_advice(settings) == (
        "it loads or serves org/one. If that model is the cause, EMBEDDING_DTYPE=float32 or "
        "EMBEDDING_RUNTIME=torch avoids the fault"
    )
    note = authkey.key_file(settings).with_name(f"model-{settings.server.port}.json")
    SwapNote(note, "org/one").write("org/another")
    assert model_advice(settings).startswith("it loads or serves org/another. ")


def test_the_advice_names_the_model_of_the_database(tmp_path: Path) -> None:
    from embedshare.settings_store.last_known import LastKnown

    settings = settings_with(tmp_path).with_values({"EMBEDDING_USE_DB_SETTINGS": True})
    assert model_advice(settings).startswith("it loads or serves org/one. ")
    known = authkey.key_file(settings).with_name(f"settings-{settings.server.port}.json")
    LastKnown(known).write({"model_name": "org/third"}, 3)
    assert model_advice(settings).startswith("it loads or serves org/third. ")
