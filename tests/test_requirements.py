"""The bounds of dependencies are the same everywhere, and none admits a version with a known advisory."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.processes import ROOT

#: For each package, the first version without an advisory published by November 2026, and one advisory.
LEAST = {
    "filelock": "3.20.3",  # CVE-2026-22701
    "flask": "3.1.3",  # CVE-2026-27205
    "idna": "3.15",  # CVE-2026-45409
    "jinja2": "3.1.6",  # CVE-2025-27516
    "lxml": "6.1.3",  # CVE-2026-49825
    "lxml-html-clean": "0.4.6",  # four expressions that took quadratic time
    "orjson": "3.11.6",  # CVE-2025-67221
    "pillow": "12.3",  # CVE-2026-59200
    "pymysql": "1.1.1",  # CVE-2024-36039
    "pytest": "9.0.3",  # CVE-2025-71176
    "python-dotenv": "1.2.2",  # CVE-2026-28684
    "requests": "2.33",  # CVE-2026-25645
    "setuptools": "78.1.1",  # CVE-2025-47273
    "torch": "2.10",  # CVE-2026-24747
    "tqdm": "4.66.3",  # CVE-2024-34062
    "transformers": "5.5",  # CVE-2026-5241
    "urllib3": "2.7",  # CVE-2026-44432
    "waitress": "3.0.1",  # CVE-2024-49768
    "werkzeug": "3.1.6",  # CVE-2026-27199
}


def _listed(name: str) -> Iterator[Requirement]:
    for line in (ROOT / name).read_text().splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if text and not text.startswith("-r"):
            yield Requirement(text)


def _of_the_package() -> Iterator[Requirement]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    read = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = read["project"]["optional-dependencies"].values()
    named = [*read["build-system"]["requires"], *read["project"]["dependencies"], *itertools.chain(*lists)]
    yield from (one for one in map(Requirement, named) if one.name != "embedshare")


def _least(requirement: Requirement) -> Version | None:
    bounds = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==", "~=")]
    return max(map(Version, bounds), default=None)


def test_no_lower_bound_admits_a_version_with_a_known_advisory() -> None:
    found = [*_of_the_package(), *_listed("requirements.txt"), *_listed("requirements-dev.txt")]
    names = {canonicalize_name(one.name) for one in found}
    assert set(LEAST) <= names
    admitted = [
        str(one)
        for one in found
        if (needed := LEAST.get(canonicalize_name(one.name))) is not None
        and ((least := _least(one)) is None or least < Version(needed))
    ]
    assert admitted == []


def test_a_package_has_one_bound_wherever_it_is_named() -> None:
    bounds: dict[str, set[str]] = {}
    for one in [*_of_the_package(), *_listed("requirements.txt"), *_listed("requirements-dev.txt")]:
        if one.name != "torch" and not one.marker:  # the tests' torch is pinned
            bounds.setdefault(canonicalize_name(one.name), set()).add(str(one.specifier))
    assert {name: given for name, given in bounds.items() if len(given) > 1} == {}
