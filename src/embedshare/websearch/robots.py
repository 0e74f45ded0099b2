"""What a site's robots.txt forbids, remembered for an hour, as RFC 9309 says."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.robotparser import RobotFileParser

from embedshare.errors import FetchFailed
from embedshare.websearch.addresses import Target
from embedshare.websearch.connecting import AGENT

KEPT_S = 3600.0
MAX_SITES = 1024
#: The text of a site's rules, empty where it has none, by a moment of `time.monotonic()`. Raises FetchFailed
#: where the site cannot say.
FetchRules = Callable[[Target, float], bytes]


class Robots:
    """Thread-safe."""

    def __init__(self, fetch: FetchRules) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._sites: OrderedDict[str, tuple[float, RobotFileParser]] = OrderedDict()

    def check(self, target: Target, deadline: float) -> None:
        """Raises FetchFailed where the site forbids the page, or cannot say what it forbids."""
        if not self._rules(target, deadline).can_fetch(AGENT, target.url):
            raise FetchFailed(f"{target.host} asks in its robots.txt not to fetch this page")

    def _rules(self, target: Target, deadline: float) -> RobotFileParser:
        with self._lock:
            until, rules = self._sites.get(target.origin, (0.0, None))
        if rules is not None and time.monotonic() < until:
            return rules
        text = self._fetch(target, deadline).decode(
            "utf-8", "replace"
        )  # unlocked: sites do not wait for another
        rules = RobotFileParser()
        rules.parse(text.removeprefix("\ufeff").splitlines())
        with self._lock:
            self._sites[target.origin] = time.monotonic() + KEPT_S, rules
            self._sites.move_to_end(target.origin)
            while len(self._sites) > MAX_SITES:
                self._sites.popitem(last=False)
        return rules
