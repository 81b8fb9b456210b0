"""Multi-query associative recall, as `recall.py` draws it, for the same decoder as the others."""

from measure import recall_data
from measure.heads import at_places
from measure.model_inputs import Tokens

from tasks.task import ACCURACY, Data, Examples, Task

LENGTH, PAIRS, VOCABULARY = 128, 8, 512
VALIDATION, TEST = 256, 1_024


def draw(rng, count):
    return Examples(*recall_data.recall(rng, count, LENGTH, PAIRS, VOCABULARY))


def read(seed):
    parts = (recall_data.VALIDATION, VALIDATION), (recall_data.TEST, TEST)
    held = (draw(recall_data.generator(seed, part), count) for part, count in parts)
    return Data(draw, *held)


TASKS = [
    Task(
        name="recall",
        about=f"{PAIRS} pairs of {VOCABULARY} tokens in {LENGTH} steps; every example is new",
        length=LENGTH,
        batch=32,
        every=50,
        causal=True,
        inputs=Tokens(VOCABULARY),
        head=at_places,
        classes=VOCABULARY,
        scores=(ACCURACY,),
        read=read,
        floors=lambda: {"any value of the stream": 1 / PAIRS},
    )
]
