#!/usr/bin/env bash
# openai 3.57.0 (Python): a client for a server without keys cannot be told once to send no Authorization.
# `default_headers={"Authorization": Omit()}` makes every call raise, with a message that asks for just that:
# "Or for the `Authorization` header to be explicitly omitted". The same value in a call's own
# `extra_headers` works.
#
# Expected: default headers are those of every call, so both leave the header out.
# Seen: TypeError from the first form, a request without the header from the second.
#
# Ends with 0 where that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "openai==3.57.0" 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai

ANSWER = json.dumps({"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}],
                     "usage": {"prompt_tokens": 1, "total_tokens": 1}}).encode()
sent = []


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        sent.append(self.headers.get("Authorization"))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url, omitted = f"http://127.0.0.1:{server.server_port}/v1", {"Authorization": openai.Omit()}
call = {"model": "m", "input": ["a text"], "encoding_format": "float"}
try:
    openai.OpenAI(api_key="none", base_url=url, max_retries=0, default_headers=omitted).embeddings.create(**call)
    raised = None
except Exception as error:
    raised = error
print(f"default_headers: {type(raised).__name__}: {raised}")
openai.OpenAI(api_key="none", base_url=url, max_retries=0).embeddings.create(**call, extra_headers=omitted)
print(f"extra_headers: Authorization {sent[-1]}")
sys.exit(not (isinstance(raised, TypeError) and "explicitly omitted" in str(raised) and sent == [None]))
PYTHON
