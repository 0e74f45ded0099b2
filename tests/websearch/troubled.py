"""A separate process for tests: its input is a word that names its action."""

from __future__ import annotations

import os
import time

from embedshare import sandbox


def work(message: bytes) -> bytes:
    match message.decode().partition(" "):
        case "say", _, said:
            return said.encode()
        case "pid", _, _:
            return str(os.getpid()).encode()
        case "print", _, said:
            os.write(1, said.encode())
            return b"printed"
        case "crash", _, _:
            os.abort()
        case "hang", _, _:
            while True:
                time.sleep(1)
        case "fill", _, _:
            return b"%d" % len(bytes(sandbox.MEMORY_BYTES + (1 << 20)))
        case "flood", _, _:
            return bytes(sandbox.LONGEST + 1)
    raise ValueError(message)


if __name__ == "__main__":
    sandbox.IDLE_S = float(os.environ.get("TROUBLED_IDLE_S", sandbox.IDLE_S))
    sandbox.serve(work)
