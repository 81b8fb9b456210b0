"""The experiments: which runs there are, how long each is, and which come first."""

import dataclasses
from collections.abc import Iterator

from measure import learning_runs

OVERHEAD, VALIDATIONS = 0.7, 0.2
"""Minutes of a command for start, compilation and test, and the part of the time of its updates
that validations take."""

LANGUAGE_MODELS = ("softmax", "cosformer", "gated_delta_rule", "linear", "decayed_cosformer",
                   "gated_linear", "retention", "performer", "hybrid")  # fmt: skip
FEATURE_MAPS = "softmax", "cosformer", "relu", "identity", "leaky_relu", "linear"
GATED = "gated_linear", "decayed_cosformer", "retention"
ARENA = ("softmax", "cosformer", "linear", "gated_linear", "nystrom", "segmented", "performer",
         "low_rank", "lsh")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A task with some attentions.

    Attributes:
        name: of the experiment that it belongs to.
        task: name of the task.
        attentions: the most informative first.
        updates: of a run.
        minutes: about, that they take on two cores.
        seeds: how many.
        convs: without a convolution before each block, with one, or both.
    """

    name: str
    task: str
    attentions: tuple[str, ...]
    updates: int
    minutes: float
    seeds: int = 2
    convs: tuple[bool, ...] = (False,)


EXPERIMENTS = [
    Experiment("language model", "lm", LANGUAGE_MODELS, 400, 2.0, convs=(False, True)),
    Experiment("ablation", "mlm", FEATURE_MAPS, 1000, 2.0),
    Experiment("bidirectional", "mlm", GATED, 1000, 2.0),
    Experiment("arena", "listops_200", ARENA, 800, 1.5),
    Experiment("ablation", "text", FEATURE_MAPS, 1200, 3.0, seeds=1),
    Experiment("arena", "text", ARENA, 1200, 3.0, seeds=1),
    Experiment("arena", "pairs", ARENA, 500, 1.0, seeds=1),
    Experiment("arena", "image", ARENA, 600, 1.2, seeds=1),
    Experiment("arena", "pathfinder32", ARENA, 600, 1.2, seeds=1),
    Experiment("bidirectional", "mlm_imdb", (*FEATURE_MAPS, *GATED), 200, 0.3, seeds=1),
    Experiment("bidirectional", "mlm_rotten_tomatoes", (*FEATURE_MAPS, *GATED), 200, 0.3, seeds=1),
    Experiment(
        "longer text", "text_4k", ("softmax", "cosformer", "gated_linear"), 300, 2.5, seeds=1
    ),
]


@dataclasses.dataclass(frozen=True)
class Command:
    """One call of `benchmarks.learn`: the search for the rate, if it was not done, and a run."""

    task: str
    attention: str
    conv: bool
    seed: int
    updates: int
    minutes: float

    def arguments(self):
        """The command line after `python -m benchmarks.learn`."""
        options = [f"--task={self.task}", f"--attention={self.attention}", f"--seed={self.seed}",
                   f"--updates={self.updates}"]  # fmt: skip
        return options + ["--conv"] * self.conv

    def missing(self, folder, task):
        """What the runs are given that are not finished. Without a rate they wait for the search.

        Args:
            folder: `RunFolder` of the finished runs.
            task: the `Task`.
        """
        wanted = {"attention": self.attention, "conv": self.conv, "minutes": None,
                  "updates": self.updates}  # fmt: skip
        searches = learning_runs.searches(task, task.rates, **wanted)
        missing = [given for given in searches if not folder.done(given)]
        rate = None if missing else learning_runs.best_rate(task, task.rates, folder, **wanted)
        given = learning_runs.given_of(task, rate=rate, seed=self.seed, **wanted)
        done = rate is not None and folder.done(given)
        return [] if done else [*missing, given]

    def minutes_of(self, runs):
        """The minutes that the command will take for runs, a list of what they are given."""
        updates = sum(given["updates"] for given in runs)
        return OVERHEAD + (1 + VALIDATIONS) * self.minutes * updates / self.updates


def sides(task):
    """Pairs of an attention and whether it has a convolution, of all runs of a task."""
    pairs = ((attention, conv) for each in EXPERIMENTS if each.task == task
             for attention in each.attentions for conv in each.convs)  # fmt: skip
    return list(dict.fromkeys(pairs))


def commands(experiments=EXPERIMENTS) -> Iterator[Command]:
    """All commands, none twice: the first seed of every experiment, then the next one."""
    found = {}
    for seed in range(max(each.seeds for each in experiments)):
        for each in experiments:
            for attention in each.attentions:
                for conv in each.convs:
                    if seed < each.seeds:
                        command = Command(
                            each.task, attention, conv, seed, each.updates, each.minutes
                        )
                        found.setdefault(command, None)
    return iter(found)
