#!/usr/bin/env bash
# OpenVINO 2026.4.1, CPU plugin, INFERENCE_PRECISION_HINT=bf16, on a CPU that computes in bfloat16.
#
# Expected: a precision hint lets matrix products run in bfloat16; which layer comes last in a graph does not
# change how the layers before it are computed.
# Seen: a graph of three blocks (linear, GELU, linear, residual sum, MVN as in a layer norm) computes its sums and
# norms in float32. The same graph with one linear layer more at its end computes all of them in bfloat16, so that
# every block is rounded. Where the input of that last layer is also an output of the graph, they are in float32
# again. The plugin keeps float32 from an output back to the nearest matrix product alone.
# So whoever appends a head to an encoder loses precision in the whole encoder, and can have it back by one more
# output.
#
# Fails where this changes. Needs Python 3.10 to 3.13 and a CPU with AVX512-BF16 or AMX-BF16 (else says so and ends).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 numpy==2.2.6
"$folder/venv/bin/python" - <<'PYTHON'
from collections import Counter

import numpy as np
import openvino as ov
from openvino import opset15 as ops

SIZE, BLOCKS = 64, 3
random = np.random.default_rng(0)
core = ov.Core()
if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    raise SystemExit("not shown: this CPU does not compute in bfloat16")


def linear(rows):
    weights = (random.standard_normal((SIZE, SIZE)) / 8).astype(np.float32)
    return ops.matmul(rows, ops.constant(weights), False, True)


def graph(head, marked):
    given = ops.parameter([-1, SIZE], np.float32)
    rows = given
    for _ in range(BLOCKS):
        total = ops.add(rows, linear(ops.gelu(linear(rows), "erf")))
        rows = ops.mvn(total, ops.constant(np.array([-1])), True, 1e-6, "inside_sqrt")
    outputs = [linear(rows) if head else rows] + ([rows] if marked else [])
    return ov.Model(outputs, [given])


def norms(head, marked):
    compiled = core.compile_model(graph(head, marked), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [(one["layerType"].astype(str), one["runtimePrecision"].astype(str)) for one in told]
    return dict(Counter(precision for kind, precision in kinds if kind == "MVN"))


seen = {
    "no head": norms(False, False),
    "a linear head": norms(True, False),
    "a linear head, its input an output too": norms(True, True),
}
print(ov.__version__)
for name, precisions in seen.items():
    print(f"{name}: the norms compute in {precisions}")
assert seen["a linear head"] == {"bf16": BLOCKS}, seen
assert "bf16" not in seen["no head"] or seen["no head"]["bf16"] < BLOCKS, seen
assert seen["a linear head, its input an output too"] == seen["no head"], seen
PYTHON
