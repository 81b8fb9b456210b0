"""Where a file is to run: what that runtime asks of it, checked before the file is kept."""

from keras_cosattn.export import checks, gpu, gpu_rules, half, micro, runners
from keras_cosattn.export.runtimes import TFLITE_MICRO, TFLITE_RUNTIME_2_14
from keras_cosattn.export.zeros import fill


class LiteRT:
    """Today's runtime: PyPI `ai-edge-litert`, LiteRT in C++, Kotlin and Swift."""

    name = "litert"
    one_signature = False
    fixed_shapes = False
    means = False
    quantizations = (None, "float16", "weight_int8", "dynamic_int8", "int8")

    def check_shapes(self, plan, quantize):
        """Raises ValueError if what is asked of the sizes cannot run."""
        free = [name for name in plan.functions if _is_dynamic(plan, name)]
        if self.fixed_shapes and free:
            raise ValueError(
                f"Target '{self.name}' needs fixed shapes. {_how_to_fix(free)} Received: "
                f"batch_size={plan.batch_size}, length={plan.length}, "
                f"prefill_chunk={plan.prefill_chunk}"
            )

    def rewrite(self, graph):
        """Write the graph smaller, and with ops that the runtime has."""
        fill(graph)

    def refuse(self, graph):
        """Raises ValueError if the runtime cannot load the graph, or computes it wrongly."""
        custom = {name for name, *_ in graph.operators() if name.startswith("CUSTOM")}
        if custom:
            raise ValueError(
                f"The model needs ops that are none of TFLite's own: {sorted(custom)}. Use layers "
                "whose ops are builtin."
            )

    def check(self, plan, graph, least_sqnr):
        """What more is to be measured on the target itself: fields of the report."""
        return {}


class TFLiteRuntime(LiteRT):
    """PyPI `tflite-runtime` 2.14, its last release: older op versions, int8 weights per tensor."""

    name = "tflite-runtime"

    def check_shapes(self, plan, quantize):
        super().check_shapes(plan, quantize)
        free = [name for name in plan.functions if _is_dynamic(plan, name)]
        if quantize == "float16" and free:
            raise ValueError(
                "tflite-runtime 2.14 computes float16 files wrongly once their length changes. "
                f"{_how_to_fix(free)} Or use another `quantize`."
            )

    def refuse(self, graph):
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

    Nothing has more than four axes, no mask is added to a batch product, sums without end are kept
    as means (`Streaming`), and on the inputs of the checks no number leaves the range of float16.
    Float16 keeps three digits: with cosFormer and other maps that give zeros, a row whose weights
    sum to about nothing may be zero there, or not, where float32 says otherwise.
    """

    name = "gpu"
    fixed_shapes = True
    means = True
    quantizations = (None, "float16")

    def rewrite(self, graph):
        gpu.rewrite(graph)

    def refuse(self, graph):
        super().refuse(graph)
        found = gpu_rules.problems(graph)
        if found:
            raise ValueError(
                f"GPU delegates do not run the model whole: {'; '.join(sorted(found))}. Use other "
                "layers, or the target 'litert', which runs it on the CPU."
            )

    def check(self, plan, graph, least_sqnr):
        """Raises ValueError if numbers leave the range of float16."""
        found = half.leaving(plan, graph)
        if found:
            first = sorted(found, key=found.get, reverse=True)[:3]
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

    def rewrite(self, graph):
        micro.rewrite(graph)

    def refuse(self, graph):
        super().refuse(graph)
        missing = {name for name, *_ in graph.operators()} - TFLITE_MICRO
        if missing:
            advice = {"GELU": "relu or silu for GELU", "RANGE": "fixed shapes for RANGE"}
            hints = [advice[name] for name in sorted(missing) if name in advice]
            raise ValueError(
                f"tflite-micro lacks ops of the model: {sorted(missing)}. Use other layers"
                + (f", such as {', '.join(hints)}." if hints else ".")
            )

    def check(self, plan, graph, least_sqnr):
        """Run it there. Raises ValueError if it cannot, or gives other numbers than LiteRT."""
        try:
            import tflite_micro  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "A file for tflite-micro is run there before it is kept: "
                "pip install 'keras-cosattn[micro]'"
            ) from error
        (ends,) = plan.describe().values()
        names = list(ends["inputs"]), list(ends["outputs"])
        arena = runners.micro_arena(graph.content)
        differences, sqnr = checks.compare(plan, runners.micro(graph.content, names, arena))
        return {"arena_bytes": arena, "differences": differences, "sqnr": sqnr}


TARGETS = {target.name: target for target in (LiteRT, TFLiteRuntime, GPU, Micro)}


def get(target):
    """A target object for a name. Raises ValueError if there is none."""
    if isinstance(target, LiteRT):
        return target
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {sorted(TARGETS)}. Received: {target!r}")
    return TARGETS[target]()


def _is_dynamic(plan, name):
    return any(None in shape for shape, _ in plan.specs(name).values())


def _how_to_fix(names):
    arguments = {"serve": "length", "prefill": "prefill_chunk"}
    needed = ["batch_size", *(arguments[name] for name in names if name in arguments)]
    return f"Give {' and '.join(f'`{name}`' for name in needed)}."
