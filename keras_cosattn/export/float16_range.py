"""Whether the numbers of a TFLite file stay in the range of float16 on the inputs of its checks."""

from __future__ import annotations

import numpy as np

from keras_cosattn.export import checks
from keras_cosattn.export.check_inputs import Arrays, stream_check
from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.export.file_runners import tensor_runner
from keras_cosattn.export.float16 import LARGEST
from keras_cosattn.export.tflite_graph import TFLiteGraph

SUMS = ("sums", "previous", "totals")
"""How the names of states end that are sums over the steps."""


def leaving_float16(plan: ExportPlan, graph: TFLiteGraph) -> dict[str, float]:
    """Op or state -> its largest magnitude, for those that leave the range of float16.

    A stream is checked over n steps only. Sums over at most M steps (`max_length`, `horizon`) that
    a state keeps, and the batch products that read them, are expected to reach M / n times as much.
    """
    largest: dict[str, float] = {}
    operators = {
        name: [(op, i) for op, _, operator, _ in graph.operators(name) for i in operator.outputs]
        for name in plan.functions
    }

    def run(signature: str, inputs: Arrays) -> Arrays:
        outputs, tensors = runner(signature, inputs)
        growth = _growth(plan) if signature in plan.streamed else 1.0
        named = [(op, tensors(i), growth if op == "BATCH_MATMUL" else 1.0)
                 for op, i in operators[signature]]  # fmt: skip
        named += [(name, outputs[name], growth) for name in outputs if name.endswith(SUMS)]
        for name, x, factor in named:
            if x.dtype == np.float32 and x.size and not np.isnan(x).all():
                seen = float(np.nanmax(np.abs(x))) * factor
                largest[name] = max(seen, largest.get(name, 0.0))
        return outputs

    runner = tensor_runner(graph)
    checks.compare(plan, run)
    return {name: seen for name, seen in largest.items() if seen > LARGEST}


def _growth(plan: ExportPlan) -> float:
    """How many times the steps of the check a bounded sum runs over, at least 1."""
    layers = plan.model._flatten_layers()
    spans = [getattr(x, name, None) or 0 for x in layers for name in ("horizon", "max_length")]
    steps = max(end for _, _, end in stream_check(plan)[0])
    return max(1.0, max(spans, default=0) / steps)
