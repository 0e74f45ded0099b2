"""Pages for people, and what they ship: files of the worker's own, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from flask import Response, request, send_file
from jinja2 import Environment, FileSystemLoader

_STATIC = Path(__file__).with_name("static")
#: By a file's ending. Not the machine's own table, which on Windows may call JavaScript plain text.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
#: What pages load, by name.
FILES = {path.name: path for path in _STATIC.iterdir() if path.suffix in MEDIA_TYPES}
_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True)
#: Asked for anew at each visit, and sent only where it has changed: an upgrade is seen at once.
_CACHED = "no-cache"
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{style}; img-src 'self'{image}; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(name: str, *, writes_styles: bool = False) -> Response:
    """A page of that name, which may load and ask nothing but this worker.

    `writes_styles`: it sets styles, and pictures as data, by itself, as Swagger UI does.
    """
    text = _TEMPLATES.get_template(f"{name}.html").render(page=name)
    response = Response(text, content_type="text/html; charset=utf-8")
    own = (" 'unsafe-inline'", " data:") if writes_styles else ("", "")
    response.headers["Content-Security-Policy"] = _CONTENT_SECURITY_POLICY.format(style=own[0], image=own[1])
    response.headers["Cache-Control"] = _CACHED
    response.add_etag()
    response.make_conditional(request)
    return response


def static(name: str) -> Response:
    """One of FILES."""
    return _file(FILES[name], MEDIA_TYPES[FILES[name].suffix])


def _file(path: Path, media_type: str) -> Response:
    response = send_file(path, media_type, conditional=True, etag=True)
    response.headers["Cache-Control"] = _CACHED
    return response
