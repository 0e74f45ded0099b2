"""The product sends no reports: it needs no network, and sends nothing where there is one."""

from __future__ import annotations

from tests.processes import MODEL, environment, run_python

CONVERT = f"""
import socket
asked = []
connect, resolve = socket.socket.connect, socket.getaddrinfo
socket.socket.connect = lambda self, address: asked.append(address) or connect(self, address)
socket.getaddrinfo = lambda host, *rest, **more: asked.append(host) or resolve(host, *rest, **more)
from embedshare.calls import EmbedRequest
from embedshare.providers.local import Local
from embedshare.settings import ModelSettings, Settings
import tempfile
with tempfile.TemporaryDirectory() as cache:
    engine = Local.load(Settings(model=ModelSettings(name={MODEL!r}, converted_dir=cache)), "cpu")
    print(len(engine.embed(EmbedRequest(["a text"], "")).rows))
    engine.close()
import openvino.tools.ovc.main as converter
print(converter.tm.__name__)
print(asked)
"""


def test_converting_a_model_asks_for_no_address_and_reports_nothing() -> None:
    said = run_python(CONVERT, environment()).splitlines()
    assert said[-3:] == ["1", "openvino.tools.ovc.telemetry_stub", "[]"]
