"""deploy/systemd: the units as systemd itself reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

FILES = ROOT / "deploy" / "systemd"
UNITS = (
    "embedshare.service",
    "embedshare-server.service",
    "embedshare-worker@.service",
    "embedshare-jobs.service",
    "embedshare-sessions.service",
)
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed")


def installed(folder: Path) -> Path:
    """Write the units as for a machine whose /opt/embedshare is this checkout."""
    for name in UNITS:
        unit = (FILES / name).read_text()
        unit = unit.replace("/opt/embedshare/.venv/bin/python", sys.executable)
        unit = unit.replace("/opt/embedshare", str(ROOT))
        (folder / name.replace("@.", "@5000.")).write_text(unit)
    return folder


@needs_systemd
def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    units = [str(path) for path in installed(tmp_path).iterdir()]
    assert ANALYZE is not None
    done = subprocess.run([ANALYZE, "verify", "--man=no", *units], capture_output=True, text=True, timeout=60)
    about_ours = [line for line in (done.stdout + done.stderr).splitlines() if "embedshare" in line]
    assert about_ours == []
    assert done.returncode == 0, done.stderr


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_the_sandbox_is_as_tight_as_a_network_service_s_can_be(tmp_path: Path, name: str) -> None:
    unit = installed(tmp_path) / name.replace("@.", "@5000.")
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, "security", "--offline=true", "--no-pager", "--threshold=20", str(unit)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout  # fails for an exposure above 2.0 of 10
    assert re.search(r"exposure level for embedshare\S*: [01]\.\d+ OK|exposure level .* 2\.0", done.stdout)


@pytest.mark.parametrize("name", UNITS)
def test_every_program_that_a_unit_runs_is_in_the_repository(name: str) -> None:
    unit = (FILES / name).read_text()
    programs = re.findall(r"/opt/embedshare/(\S+\.py)", unit)
    modules = re.findall(r"^ExecStart=.* -m (\S+)$", unit, re.MULTILINE)
    programs += [f"src/{module.replace('.', '/')}/__main__.py" for module in modules]
    assert programs
    assert all((ROOT / program).is_file() for program in programs)


def test_the_units_share_one_sandbox_and_one_key() -> None:
    def shared(name: str) -> str:
        unit = (FILES / name).read_text()
        return unit[unit.index("# The sandbox.") : unit.index("[Install]")]

    assert len({shared(name) for name in UNITS}) == 1
    keys = {re.findall(r"EMBEDDING_AUTHKEY_FILE=(\S+)", (FILES / name).read_text())[0] for name in UNITS}
    assert keys == {"/var/lib/embedshare/authkey"}
