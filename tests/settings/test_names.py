"""The parts of each setting that callers rely on: its name, default and the values that its error allows."""

from __future__ import annotations

import pickle
from pathlib import Path

from embedshare.errors import InvalidSetting
from embedshare.settings import ServerSettings, Settings, WebSettings
from embedshare.settings.settings import PLACES

NOWHERE = Path("/nonexistent/.env")
HERE = Path(__file__).parent
#: Invalid texts: each setting that refuses any text refuses one of these.
WRONG = ("", "://", ",", "\ud800")


def refusal(name: str) -> str:
    """Return the allowed values that the error of the first refused text names; empty if none is refused."""
    for text in WRONG:
        try:
            Settings.load({name: text}, NOWHERE)
        except InvalidSetting as error:
            return error.message.partition("; allowed: ")[2]
    return ""


def test_names_defaults_and_refusals_are_those_that_callers_rely_on() -> None:
    defaults = Settings().environment()
    found = [f"{name} | {defaults.get(name, '(none)')} | {refusal(name)}".rstrip() for name in sorted(PLACES)]
    assert found == (HERE / "names.txt").read_text(encoding="utf8").splitlines()


def test_a_pickle_from_before_there_were_sections_is_read() -> None:
    # pickle.dumps(Settings(server_port=6001, web_host="0.0.0.0", use_ipc=False, drain_s=3.0)), shortened
    written = (
        b"cembedshare.settings\n_from_pickle\n((dVserver_port\nI6001\nsVweb_host\nV0.0.0.0\nsVuse_ipc\nI00\n"
        b"sVdrain_s\nF3.0\nsVof_a_later_version\nI1\nstR."
    )
    read = pickle.loads(written)  # noqa: S301
    assert (read.server, read.web) == (ServerSettings(port=6001, drain_s=3.0), WebSettings(host="0.0.0.0"))
    assert read.client.use_ipc is False
