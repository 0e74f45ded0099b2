"""The runtimes that compute batches: a file each, behind one small interface."""

import sys

# OpenVINO's converter reports each use to its maker if this package can be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
