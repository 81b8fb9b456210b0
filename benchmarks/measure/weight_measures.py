"""What the weights of a trained encoder look like: signs, locality and dilution."""

import keras
import numpy as np

from keras_cosattn import analysis

EXAMPLES, SHORTEST, LONGEST, NEAR = 4, 32, 256, 8


def weight_measures(task, built, data, given):
    """Means over the heads, rows and blocks, for the first steps of some test examples.

    The examples are those with the most valid steps, so that no step that is read is padding.

    Args:
        task: a `Task` of an encoder that reads tokens.
        built: what `models.build` returned for it, trained.
        data: `Data` of the task.
        given: of the run.
    """
    tokens = data.test.inputs["tokens"] if isinstance(data.test.inputs, dict) else data.test.inputs
    longest = min(LONGEST, task.length)
    order = np.argsort(-(tokens != 0).sum(axis=1), kind="stable")[:EXAMPLES]
    x = tokens[order, :longest]
    lengths = [n for n in (SHORTEST << i for i in range(20)) if n <= longest]
    weights = analysis.attention_weights(built.body, x)
    found = {
        "negative_share": mean(analysis.negative_share(w) for w in weights.values()),
        f"mass_within_{NEAR}": mean(analysis.mass_within(w, NEAR) for w in weights.values()),
        "largest_of_mean": {str(n): dilution(built.body, x[:, :n]) for n in lengths},
    }
    return {"weights": found}


def dilution(body, x):
    """How many times the mean of its row the largest weight is, a mean over all rows."""
    weights = analysis.attention_weights(body, x)
    n = x.shape[1]
    return mean(analysis.dilution(lambda _, w=w: w, x, [n])[0].times_mean for w in weights.values())


def mean(values):
    return round(float(np.mean([keras.ops.convert_to_numpy(x) for x in values])), 4)
