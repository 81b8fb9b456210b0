"""How much `convert_sentence_encoder.py` tries, learns and measures."""

import dataclasses

from encoder_students import STUDENTS


@dataclasses.dataclass(frozen=True)
class Settings:
    """Those of the whole run.

    Attributes:
        students: names of `STUDENTS` that are tried.
        new: batches for the weights that only the new attention layers have.
        attention: batches for these and their projections.
        whole, epochs, rate: batches for all weights of the best student, the parts in which they
            are read, and the largest learning rate.
        compared, by: lengths and number of the held-out texts by which the best of `GLOBAL` is
            chosen.
        lengths, held: lengths and number of the texts on which it is tested.
        long: lengths of texts whose time and memory are measured.
        to_choose: long mails to choose a layout by.
        to_test: other long mails.
        repeats: calls of which the median time is taken.
    """

    students: tuple = tuple(STUDENTS)
    new: int = 20
    attention: int = 40
    whole: int = 240
    epochs: int = 4
    rate: float = 1e-4
    compared: tuple = (128, 512)
    by: int = 16
    lengths: tuple = (32, 128, 256, 512)
    held: int = 32
    long: tuple = (512, 4096, 16_384)
    to_choose: int = 24
    to_test: int = 100
    repeats: int = 5


QUICK = Settings(
    students=("segments", "segments, then Hedgehog"),
    new=0,
    attention=2,
    whole=2,
    epochs=1,
    by=2,
    lengths=(32, 512),
    held=4,
    long=(512, 4096),
    to_choose=4,
    to_test=8,
    repeats=2,
)
