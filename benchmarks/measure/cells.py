"""What is measured: cells, and the rows and columns that they form."""

import dataclasses

SIDES = {
    "tensorflow": "TensorFlow",
    "tensorflow-xla": "TensorFlow + XLA",
    "jax": "JAX",
    "torch": "PyTorch",
    "tf_models": "Keras 2",
    "tf_models-xla": "Keras 2 + XLA",
    "keras_hub": "KerasHub",
    "keras_hub-xla": "KerasHub + XLA",
}
"""Name of a side -> how a table calls it. What comes before the hyphen is the worker."""

BOTH = (True, False)
KERAS = ("tensorflow", "tensorflow-xla")
OURS = (*KERAS, "jax")
OTHER_BUCKET, RELU = 0.1, 1e-3
"""Values of `Cell.rms`: what a rounding may change."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a table: one side, one length, one direction, with or without gradient.

    `same` names what is computed: cells of one group with the same word have equal values. `rms` is
    for layers in which a rounding may choose another bucket or the other side of a relu: how large
    the root mean square of the differences may be, relative to that of the values. If it is `None`,
    the largest difference counts.
    """

    level: str
    what: str
    side: str
    n: int
    causal: bool
    gradient: bool
    batch: int
    heads: int
    size: int
    seed: int
    dtype: str = "float32"
    same: str = ""
    rms: float | None = None
    options: tuple = ()

    @property
    def worker(self):
        return self.side.split("-")[0]

    @property
    def row(self):
        return self.what, self.side

    @property
    def group(self):
        """Cells with the same group are timed in turns."""
        return (self.level, self.causal, self.gradient, self.n, self.batch, self.heads, self.size,
                self.dtype)  # fmt: skip

    @property
    def key(self):
        more = "".join(f" {name}={value}" for name, value in self.options)
        way = f"{'causal' if self.causal else 'both ways'}, {passes(self.gradient)}"
        sizes = f"n={self.n} {self.batch}x{self.heads}x{self.size} {self.dtype} seed={self.seed}"
        return f"{self.level}: {self.what}, {self.side}, {way}, {sizes}{more}"

    def request(self):
        """What a worker is told."""
        told = {**dataclasses.asdict(self), "options": dict(self.options)}
        return {**told, "xla": self.side.endswith("-xla"), "key": self.key}


def passes(gradient):
    return "forward + gradient" if gradient else "forward"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the tables of a level, on each of its sides."""

    level: str
    what: str
    label: str
    sides: tuple
    directions: tuple = BOTH
    same: str = ""
    rms: float | None = None

    def cells(self, n, causal, gradient, **sizes):
        same, more = self.same or self.what, {"rms": self.rms, **sizes}
        place = n, causal, gradient
        return [Cell(self.level, self.what, side, *place, same=same, **more) for side in self.sides]


CORE = [
    Row("core", "cosformer", "cosFormer", OURS),
    Row("core", "cosformer_packed", "cosFormer, packed documents", KERAS, (True,)),
    Row("core", "cosformer_horizon", "cosFormer, horizon n / 4", KERAS, (True,)),
    Row("core", "linear", "linear, elu + 1", OURS),
    Row("core", "decay", "sums that fade, by head", KERAS, (True,)),
    Row("core", "channel_decay", "sums that fade, by channel", KERAS, (True,)),
    Row("core", "delta_rule", "delta rule", KERAS, (True,)),
    Row("core", "gated_delta_rule", "gated delta rule", KERAS, (True,)),
    Row("core", "softmax", "softmax, keras.ops.dot_product_attention", OURS),
    Row("core", "torch_flash", "softmax, PyTorch's kernel", ("torch",), same="softmax"),
    Row("core", "torch_cosformer", "cosFormer in chunks of 128", ("torch",), same="cosformer"),
    Row("core", "torch_linear", "linear in chunks of 128", ("torch",), same="linear"),
    Row("core", "fla_decay", "sums that fade, fla's chunks of 64", ("torch",), (True,), "decay"),
    Row("core", "fla_delta_rule", "delta rule, fla's chunks of 32", ("torch",), (True,),
        "delta_rule"),
    Row("core", "fla_gated_delta_rule", "gated delta rule, fla's chunks of 64", ("torch",), (True,),
        "gated_delta_rule"),
]  # fmt: skip

LAYERS = [
    Row("layer", "MultiHeadAttention", "keras MultiHeadAttention", OURS, same="softmax"),
    Row("layer", "GroupQueryAttention", "keras GroupQueryAttention, h / 4", KERAS, same="grouped"),
    Row("layer", "SoftmaxAttention", "SoftmaxAttention", OURS, same="softmax"),
    Row("layer", "grouped", "SoftmaxAttention, h / 4", KERAS),
    Row("layer", "CosFormerAttention", "CosFormerAttention", OURS),
    Row("layer", "endless", "CosFormerAttention, horizon n / 4", KERAS, (True,)),
    Row("layer", "LinearAttention", "LinearAttention", OURS),
    Row("layer", "kernel", "LinearAttention, relu + 0.001", KERAS, (False,), rms=RELU),
    Row("layer", "KernelAttention", "tf-models KernelAttention, relu",
        ("tf_models", "tf_models-xla"), (False,), same="kernel", rms=RELU),
    Row("layer", "GatedDeltaNet", "keras-hub Qwen3_5GatedDeltaNet",
        ("keras_hub", "keras_hub-xla"), (True,)),
    Row("layer", "PerformerAttention", "PerformerAttention", KERAS),
    Row("layer", "DecayedCosFormerAttention", "DecayedCosFormerAttention", KERAS),
    Row("layer", "RetentionAttention", "RetentionAttention", KERAS),
    Row("layer", "Mamba2Attention", "Mamba2Attention", KERAS),
    Row("layer", "GatedLinearAttention", "GatedLinearAttention", KERAS),
    Row("layer", "DeltaRuleAttention", "DeltaRuleAttention", KERAS, (True,)),
    Row("layer", "gated_delta", "DeltaRuleAttention, gated", KERAS, (True,)),
    Row("layer", "WindowedLinearAttention", "WindowedLinearAttention", KERAS, (True,)),
    Row("layer", "LSHAttention", "LSHAttention", KERAS, rms=OTHER_BUCKET),
    Row("layer", "LowRankAttention", "LowRankAttention", KERAS, (False,)),
    Row("layer", "NystromAttention", "NystromAttention", KERAS, (False,)),
    Row("layer", "SegmentedAttention", "SegmentedAttention", KERAS),
    Row("layer", "summaries", "SegmentedAttention, summaries", KERAS),
    Row("layer", "HierarchicalAttention", "HierarchicalAttention", KERAS),
    Row("layer", "RecurrentMemoryAttention", "RecurrentMemoryAttention", KERAS, (True,)),
    Row("layer", "CompressiveMemoryAttention", "CompressiveMemoryAttention", KERAS, (True,)),
    Row("layer", "ClusteredRoutingAttention", "ClusteredRoutingAttention", KERAS, rms=OTHER_BUCKET),
    Row("layer", "RoutedAttention", "RoutedAttention", KERAS),
]  # fmt: skip

FIT = [
    Row("fit", "cosformer", "CosFormerAttention", KERAS, (True,)),
    Row("fit", "linear", "LinearAttention", KERAS, (True,)),
    Row("fit", "softmax", "SoftmaxAttention", KERAS, (True,)),
]


def layer_options(what, n):
    """The class of a layer's row, and the arguments that it gets for n steps."""
    root = 2 ** round((n.bit_length() - 1) / 2)  # about sqrt(n)
    paths = [("CosFormerAttention", {"max_length": n}),
             ("SegmentedAttention", {"segment_length": 128})]  # fmt: skip
    return {
        "CosFormerAttention": ("CosFormerAttention", {"max_length": n}),
        "endless": ("CosFormerAttention", {"horizon": max(2, n // 4)}),
        "grouped": ("SoftmaxAttention", {}),
        "kernel": ("LinearAttention", {}),
        "summaries": ("SegmentedAttention", {"segment_length": root, "summaries": "mean"}),
        "PerformerAttention": (what, {"num_random_features": 64}),
        "LSHAttention": (what, {"num_hashes": 2, "num_buckets": n // 32, "bucket_size": 64}),
        "gated_delta": ("DeltaRuleAttention", {"gated": True}),
        "LowRankAttention": (what, {"max_length": n, "rank": 64}),
        "NystromAttention": (what, {"num_landmarks": 64}),
        "SegmentedAttention": (what, {"segment_length": 128, "look_back": 1}),
        "HierarchicalAttention": (what, {"unit_sizes": (max(2, root // 4), 8)}),
        "RecurrentMemoryAttention": (what, {"segment_length": 128, "memory_length": 128}),
        "CompressiveMemoryAttention": (what, {"segment_length": 128}),
        "ClusteredRoutingAttention": (what, {"num_clusters": root, "cluster_size": root}),
        "RoutedAttention": (what, {"paths": paths}),
    }.get(what, (what, {}))
