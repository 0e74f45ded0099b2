"""Sites' robots.txt rules, cached for an hour, as RFC 9309 says."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from protego import Protego

from embedshare.errors import FetchFailed
from embedshare.websearch.address_policy import Target
from embedshare.websearch.http_client import AGENT

KEPT_S = 3600.0
MAX_SITES = 1024
#: The most rules times programs for Protego to check: about a second.
MAX_WORK = 1_000_000
#: The text of a site's rules, empty without any, by a moment of `time.monotonic()`. Raises FetchFailed if the
#: site fails.
FetchRules = Callable[[Target, float], bytes]
_PROGRAM = re.compile(r"^\s*user[- ]?agent", re.IGNORECASE | re.MULTILINE)


class Robots:
    """Thread-safe."""

    def __init__(self, fetch: FetchRules) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._sites: OrderedDict[str, tuple[float, Protego]] = OrderedDict()

    def check(self, target: Target, deadline: float) -> None:
        """Raise FetchFailed if the site forbids the page, or cannot send its rules."""
        if not self._rules(target, deadline).can_fetch(target.url, AGENT):
            raise FetchFailed(f"{target.host} asks in its robots.txt not to fetch this page")

    def _rules(self, target: Target, deadline: float) -> Protego:
        with self._lock:
            until, rules = self._sites.get(target.origin, (0.0, None))
        if rules is not None and time.monotonic() < until:
            return rules
        rules = _parsed(
            self._fetch(target, deadline), target.host
        )  # without the lock: no site waits for another
        with self._lock:
            self._sites[target.origin] = time.monotonic() + KEPT_S, rules
            self._sites.move_to_end(target.origin)
            while len(self._sites) > MAX_SITES:
                self._sites.popitem(last=False)
        return rules


def _parsed(content: bytes, host: str) -> Protego:
    text = content.decode("utf-8", "replace").removeprefix("\ufeff")
    if len(_PROGRAM.findall(text)) * len(text.splitlines()) > MAX_WORK:
        raise FetchFailed(f"the robots.txt of {host} has too many rules")
    return Protego.parse(text)
