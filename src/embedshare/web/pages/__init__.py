"""Pages for people, from the worker's own files alone."""

from __future__ import annotations

from pathlib import Path

from flask import Response, request, send_file
from jinja2 import Environment, FileSystemLoader

_STATIC = Path(__file__).with_name("static")
#: Media types by a file's ending. The machine's table may call JavaScript plain text on Windows.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
#: What pages load, by name.
FILES = {path.name: path for path in _STATIC.iterdir() if path.suffix in MEDIA_TYPES}
_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True)
#: Revalidated at each visit, and sent only if changed, so that an upgrade shows at once.
_CACHED = "no-cache"
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{style}; img-src 'self'{image}; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(name: str, *, writes_styles: bool = False) -> Response:
    """The page of that name, which may load from and call this worker alone.

    `writes_styles`: it sets styles, and pictures as data, as Swagger UI does.
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
