"""Whether a TFLite file's numbers stay in the range of float16, on the inputs of its checks."""

import numpy as np

from keras_cosattn.export import checks
from keras_cosattn.export.gpu import LARGEST
from keras_cosattn.export.runners import every_tensor

SUMS = ("sums", "previous", "totals")
"""How the names of states end that are sums over the steps."""


def leaving(plan, graph):
    """Op or state -> its largest magnitude, for those that leave the range of float16.

    A stream is checked over n steps only, so sums over at most M steps (`max_length`, `horizon`)
    that are kept for longer, and the batch products that read them, are expected to reach M / n
    times as much.
    """
    largest = {}
    operators = {
        name: [(op, i) for op, _, operator, _ in graph.operators(name) for i in operator.outputs]
        for name in plan.functions
    }

    def run(signature, inputs):
        outputs, tensors = runner(signature, inputs)
        more = _still_to_come(plan) if signature in plan.streamed else 1.0
        named = [(op, tensors(i), more if op == "BATCH_MATMUL" else 1.0)
                 for op, i in operators[signature]]  # fmt: skip
        named += [(name, outputs[name], more) for name in outputs if name.endswith(SUMS)]
        for name, x, factor in named:
            if x.dtype == np.float32 and x.size and not np.isnan(x).all():
                seen = float(np.nanmax(np.abs(x))) * factor
                largest[name] = max(seen, largest.get(name, 0.0))
        return outputs

    runner = every_tensor(graph)
    checks.compare(plan, run)
    return {name: seen for name, seen in largest.items() if seen > LARGEST}


def _still_to_come(plan):
    """How many times the steps of the check a bounded sum runs over, at least 1."""
    layers = plan.model._flatten_layers()
    spans = [getattr(x, name, None) or 0 for x in layers for name in ("horizon", "max_length")]
    steps = max(end for _, _, end in plan.streams()[0])
    return max(1.0, max(spans, default=0) / steps)
