"""A TFLite model in the form that its target takes."""

from __future__ import annotations

from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.export.targets import LiteRT
from keras_cosattn.export.tflite_graph import TFLiteGraph


def rewrite_for_target(content: bytes, plan: ExportPlan, target: LiteRT) -> bytes:
    """Return the bytes of a model with the ops of its target, and its tensors in order.

    Args:
        content: bytes. The model.
        plan: What it holds.
        target: Where it is to run.

    Raises:
        ValueError: If the target cannot run it.
    """
    graph = TFLiteGraph(content)
    target.rewrite(graph)
    target.refuse(graph)
    graph.share_constants()
    graph.number_tensors()
    for name, ends in plan.describe().items():
        graph.sort_ends(name, ends["inputs"], ends["outputs"])
    # Interpreters use XNNPACK in no graph at all where the first has no ops, as `init`.
    graph.put_first(next(iter(plan.functions)))
    return graph.pack()
