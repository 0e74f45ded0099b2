"""A stock multiprocessing.managers server with one tiny method: `python -m benchmarks.stock_manager PORT`."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.managers import BaseManager


class Service:
    """A service that returns a small number, as our server does for its calls in flight."""

    def active_operations(self) -> int:
        return 0


class Manager(BaseManager):
    pass


def main() -> None:
    service = Service()
    Manager.register("service", callable=lambda: service, exposed=["active_operations"])
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    key = os.environ["STOCK_MANAGER_KEY"].encode()
    Manager(address=("localhost", int(sys.argv[1])), authkey=key).get_server().serve_forever()


if __name__ == "__main__":
    main()
