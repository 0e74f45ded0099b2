"""What runs a batch: one file for each runtime, all behind one small interface."""

import sys

# OpenVINO's converter reports each use to its maker where this package can be imported, and else does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
