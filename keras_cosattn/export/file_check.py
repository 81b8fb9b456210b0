"""The check of a TFLite file, and the report on it."""

from __future__ import annotations

import pathlib

from keras_cosattn.export import checks, file_runners
from keras_cosattn.export.check_inputs import checked_shapes
from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.export.memory_plan import plan_memory
from keras_cosattn.export.quantization import QuantizationScheme
from keras_cosattn.export.report import Report, make_report
from keras_cosattn.export.targets import LiteRT
from keras_cosattn.export.tflite_graph import TFLiteGraph


def check_file(
    path: pathlib.Path, plan: ExportPlan, target: LiteRT, scheme: QuantizationScheme | None
) -> Report:
    """Run a file on LiteRT and on its target, and report on it.

    Args:
        path: The file, without a description yet.
        plan: What it holds.
        target: Where it is to run.
        scheme: How it is quantised; `None` is float32.

    Raises:
        ValueError: If it computes something else than the model, or the target does not run it.
    """
    least = None if scheme is None else scheme.least_sqnr
    comparison = checks.compare(plan, file_runners.tflite_runner(path))
    checks.accept(plan, comparison, least)
    graph = TFLiteGraph(path.read_bytes())
    measured = target.check(plan, graph)
    if "comparison" in measured:
        comparison = measured.pop("comparison")
        checks.accept(plan, comparison, least)
    memory = {name: plan_memory(graph, name, checked_shapes(plan, name)) for name in plan.functions}
    return make_report(
        plan,
        path,
        comparison,
        target=target.name,
        quantize=None if scheme is None else scheme.name,
        ops=graph.ops(),
        partitions={name: found.partitions for name, found in memory.items()},
        peak_bytes={name: found.peak_bytes for name, found in memory.items()},
        **measured,
    )
