"""Where a file is to run: what that runtime asks of it, checked before the file is kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from keras_cosattn.export import checks
from keras_cosattn.export.export_options import ExportOptions, TargetName
from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.export.file_runners import interpreter_class, micro_runner
from keras_cosattn.export.fill_rewrite import fill_constants
from keras_cosattn.export.float16_range import leaving_float16
from keras_cosattn.export.gpu_rewrite import rewrite_for_gpu
from keras_cosattn.export.gpu_rules import gpu_problems
from keras_cosattn.export.micro_arena import micro_arena
from keras_cosattn.export.micro_rewrite import rewrite_for_micro
from keras_cosattn.export.runtime_ops import TFLITE_MICRO, TFLITE_RUNTIME_2_14
from keras_cosattn.export.sample_inputs import Sizes
from keras_cosattn.export.tflite_graph import TFLiteGraph


class SizedSignatures(Protocol):
    """What `check_shapes` reads of a plan, or of a file that exists."""

    options: ExportOptions

    @property
    def functions(self) -> Any:
        """The signatures, by name."""

    def input_sizes(self, name: str) -> Sizes:
        """Names and sizes of the inputs of a signature."""


class LiteRT:
    """Today's runtime: PyPI `ai-edge-litert`, LiteRT in C++, Kotlin and Swift.

    Attributes:
        name: The name, for `to_tflite(target=...)`.
        one_signature: Whether a file has one signature only.
        fixed_shapes: Whether all sizes must be fixed.
        means: As in `Streaming`.
        quantizations: The names of the quantisations that it runs; `None` is float32.
    """

    name: ClassVar[TargetName] = "litert"
    one_signature: ClassVar[bool] = False
    fixed_shapes: ClassVar[bool] = False
    means: ClassVar[bool] = False
    quantizations: ClassVar[Sequence[str | None]] = (
        None, "float16", "weight_int8", "dynamic_int8", "int8",
    )  # fmt: skip

    def check_installed(self) -> None:
        """Raise ImportError if a package is missing that the checks of a file need."""
        interpreter_class()

    def check_shapes(self, plan: SizedSignatures, quantize: str | None) -> None:
        """Raise ValueError if the sizes that are asked for cannot run."""
        missing = _open_sizes(plan)
        if self.fixed_shapes and missing:
            options = plan.options
            raise ValueError(
                f"Target '{self.name}' needs fixed shapes. {_how_to_fix(missing)} Received: "
                f"batch_size={options.batch_size}, length={options.length}, "
                f"prefill_chunk={options.prefill_chunk}"
            )

    def rewrite(self, graph: TFLiteGraph) -> None:
        """Write the graph smaller, and with ops that the runtime has."""
        fill_constants(graph)

    def refuse(self, graph: TFLiteGraph) -> None:
        """Raise ValueError if the runtime cannot load the graph, or computes it wrongly."""
        custom = {name for name, *_ in graph.operators() if name.startswith("CUSTOM")}
        if custom:
            raise ValueError(
                f"The model needs ops that are none of TFLite's own: {sorted(custom)}. Use layers "
                "whose ops are builtin."
            )

    def check(self, plan: ExportPlan, graph: TFLiteGraph) -> dict[str, Any]:
        """Measure more on the target itself: fields of the report."""
        return {}


class TFLiteRuntime(LiteRT):
    """PyPI `tflite-runtime` 2.14, its last release: older op versions, int8 weights per tensor."""

    name = "tflite-runtime"

    def check_shapes(self, plan: SizedSignatures, quantize: str | None) -> None:
        super().check_shapes(plan, quantize)
        missing = _open_sizes(plan)
        if quantize == "float16" and missing:
            raise ValueError(
                "tflite-runtime 2.14 computes float16 files wrongly once their length changes. "
                f"{_how_to_fix(missing)} Or use another `quantize`."
            )

    def refuse(self, graph: TFLiteGraph) -> None:
        super().refuse(graph)
        late = {
            f"{name} version {version} (it has {TFLITE_RUNTIME_2_14.get(name, 'none')})"
            for name, version, *_ in graph.operators()
            if version > TFLITE_RUNTIME_2_14.get(name, 0)
        }
        if late:
            raise ValueError(
                f"tflite-runtime 2.14 cannot load the model: it needs {', '.join(sorted(late))}. "
                "Use layers or a `quantize` with older ops, or the target 'litert'."
            )


class GPU(LiteRT):
    """GPU delegates: fixed shapes, computed in float16, the whole graph on the GPU or refused.

    No tensor has more than four axes, no mask is added to a batch product, sums without end are
    kept as means (`Streaming`), and on the inputs of the checks no number leaves the range of
    float16. Float16 keeps three digits: with cosFormer and other maps that give zeros, a row whose
    weights sum to about nothing may be zero there, or not, where float32 says otherwise.
    """

    name = "gpu"
    fixed_shapes = True
    means = True
    quantizations = (None, "float16")

    def rewrite(self, graph: TFLiteGraph) -> None:
        rewrite_for_gpu(graph)

    def refuse(self, graph: TFLiteGraph) -> None:
        super().refuse(graph)
        found = gpu_problems(graph)
        if found:
            raise ValueError(
                f"GPU delegates do not run the model whole: {'; '.join(sorted(found))}. Use other "
                "layers, or the target 'litert', which runs it on the CPU."
            )

    def check(self, plan: ExportPlan, graph: TFLiteGraph) -> dict[str, Any]:
        """Raise ValueError if numbers leave the range of float16."""
        found = leaving_float16(plan, graph)
        if found:
            first = sorted(found, key=lambda name: -found[name])[:3]
            seen = ", ".join(f"{name} up to {found[name]:.3g}" for name in first)
            raise ValueError(
                f"GPU delegates compute in float16, which ends at 65,504. The model leaves it: "
                f"{seen}. Smaller inputs, norms, a smaller `max_length` or `horizon`, or for "
                "PerformerAttention `TrigonometricFeatures` keep numbers small; or use the target "
                "'litert'."
            )
        return {}


class Micro(LiteRT):
    """tflite-micro: one signature, fixed shapes, fewer ops, weights in float32 or int8."""

    name = "micro"
    one_signature = True
    fixed_shapes = True
    quantizations = (None, "weight_int8", "int8")

    def check_installed(self) -> None:
        super().check_installed()
        if importlib.util.find_spec("tflite_micro") is None:
            raise ImportError(
                "A file for tflite-micro is run there before it is kept: pip install tflite-micro"
            )

    def rewrite(self, graph: TFLiteGraph) -> None:
        rewrite_for_micro(graph)

    def refuse(self, graph: TFLiteGraph) -> None:
        super().refuse(graph)
        missing = {name for name, *_ in graph.operators()} - TFLITE_MICRO
        if missing:
            advice = {"GELU": "relu or silu for GELU", "RANGE": "fixed shapes for RANGE"}
            hints = [advice[name] for name in sorted(missing) if name in advice]
            raise ValueError(
                f"tflite-micro lacks ops of the model: {sorted(missing)}. Use other layers"
                + (f", such as {', '.join(hints)}." if hints else ".")
            )

    def check(self, plan: ExportPlan, graph: TFLiteGraph) -> dict[str, Any]:
        """Run it there. Raise ValueError if it cannot run it."""
        (ends,) = plan.describe().values()
        names = list(ends["inputs"]), list(ends["outputs"])
        arena = micro_arena(graph.content)
        comparison = checks.compare(plan, micro_runner(graph.content, names, arena))
        return {"arena_bytes": arena, "comparison": comparison}


TARGETS: dict[str, type[LiteRT]] = {
    target.name: target for target in (LiteRT, TFLiteRuntime, GPU, Micro)
}


def get_target(target: TargetName | LiteRT) -> LiteRT:
    """Return the target for a name or an object. Raise ValueError if there is none."""
    if isinstance(target, LiteRT):
        return target
    if not isinstance(target, str) or target not in TARGETS:
        raise ValueError(f"`target` must be one of {sorted(TARGETS)}. Received: {target!r}")
    return TARGETS[target]()


def _open_sizes(plan: SizedSignatures) -> list[str]:
    """The arguments that would fix the sizes that a plan leaves open."""
    found: list[str] = []
    lengths = {"serve": "length", "prefill": "prefill_chunk"}
    for name in plan.functions:
        for shape, _ in plan.input_sizes(name).values():
            if shape[:1] == (None,):
                found.append("batch_size")
            if shape[1:2] == (None,) and name in lengths:
                found.append(lengths[name])
            if None in shape[2:]:
                found.append("keras.Input with fixed features")
    return list(dict.fromkeys(found))


def _how_to_fix(missing: Sequence[str]) -> str:
    return f"Give {' and '.join(f'`{name}`' for name in missing)}."
