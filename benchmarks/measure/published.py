"""Results that others have published, to stand beside ours. None of them was measured here."""

ARENA_TASKS = {
    "listops_200": "ListOps",
    "text": "Text",
    "pairs": "Retrieval",
    "image": "Image",
    "pathfinder32": "Pathfinder",
}
"""Our tasks, and those of the Long-Range Arena that they are like. Ours are shorter or smaller."""
ARENA_SOURCE = "Qin et al., cosFormer, ICLR 2022, table of the Long-Range Arena"
ARENA = {
    "softmax": (36.37, 64.27, 57.46, 42.44, 71.40),
    "cosformer": (37.9, 63.41, 61.36, 43.17, 70.33),
}
"""Accuracies in percent, in the order of `ARENA_TASKS`."""
ARENA_MEANS = {"performer": 51.41, "low_rank": 51.36, "lsh": 50.67, "linear": 50.55,
               "segmented": 46.06}  # fmt: skip
"""The mean accuracies in percent of the attentions of which the mean is known here."""
ABLATION = (
    "Published order (Qin et al., cosFormer, ICLR 2022, ablation): identity is worst, then "
    "LeakyReLU, ReLU and softmax, and the cosine improves ReLU."
)
