#!/usr/bin/env bash
# openai 3.57.0 (Python): `client.embeddings.create(...)` returns a plain `str` where a server answers 200 with
# another content type than JSON, such as the HTML page of a captive portal or of a proxy's login. No error is
# raised; the annotated type is CreateEmbeddingResponse.
#
# Expected: APIResponseValidationError, or any error of openai's: the body cannot be the declared type.
# Seen: with encoding_format="base64" the call returns '<html>sign in</html>'. Without encoding_format the
# client's own decoding of vectors meets the str, and an AttributeError that names neither server nor status is
# raised.
#
# Ends with 0 where that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "openai==3.57.0" 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai

PAGE = b"<html>sign in</html>"


class Portal(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Portal)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=0)
answer = client.embeddings.create(model="m", input=["a text"], encoding_format="base64")
print(f"encoding_format='base64': {type(answer).__name__} {answer!r}")
try:
    plain = client.embeddings.create(model="m", input=["a text"])
    print(f"no encoding_format: {type(plain).__name__} {plain!r}")
    raised = None
except Exception as error:
    print(f"no encoding_format: {type(error).__name__}: {error}")
    raised = error
sys.exit(not (answer == PAGE.decode() and isinstance(raised, AttributeError)))
PYTHON
