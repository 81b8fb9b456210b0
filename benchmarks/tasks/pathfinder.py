"""Pathfinder: do two markers lie on the same dashed curve? 32 x 32 grey pixels, 1,024 steps.

Linsley et al., 2018, in the size of the Long-Range Arena (Tay et al., 2021). Two curves of 14
dashes and 5 short distractors of 4 dashes do not touch. A marker is at one end of a curve, another
at the other end of the same (label 1) or at an end of the second curve (label 0). A dash has length
2, and the gap to the next one is 1. A curve turns by an angle with a probability proportional to
`cos^2(min(continuity x angle, pi / 2))`.
"""

import math
from typing import NamedTuple

import numpy as np
from measure.data_cache import kept_arrays
from measure.heads import mean
from measure.model_inputs import Signal

from tasks.task import ACCURACY, Task, in_three, majority, rows

SIDE = 32
DASHES, DISTRACTORS, DISTRACTOR_DASHES = 14, 5, 4
DASH, GAP, THICKNESS, MARKER = 2.0, 1.0, 0.5, 1.5
CONTINUITY = 1.0
APART = 2.5
"""The least distance of two curves. It is more than twice the gap between two dashes, so that a
flood over the gaps stays on its curve."""
BORDER = 1.0
EVERY = 0.5
"""Distance of the points of a dash at which it is compared with others."""
NEIGHBOURS = 2
"""Dashes of the same curve that follow each other so soon are not compared."""
TURNS, CURVES, SCENES = 20, 40, 400
"""How often a dash, a curve and a scene is drawn before the next larger thing is drawn anew."""
LIMITS = np.linspace(0, 1, 101)
TRAIN, VALIDATION, TEST = 10_000, 320, 1_024


class Scene(NamedTuple):
    """Attributes: `curves`, arrays `(dashes, 2, 2)` of begins and ends, the first two long;
    `markers`, `(2, 2)` points; `label`.
    """

    curves: list
    markers: np.ndarray
    label: int


def turn(rng):
    """An angle from -pi to pi, by rejection from its probability."""
    while True:
        angle = (2 * rng.random() - 1) * math.pi
        if rng.random() < math.cos(min(CONTINUITY * abs(angle), math.pi / 2)) ** 2:
            return angle


def points_of(begin, end):
    """Points of a dash, `(n, 2)`, at most `EVERY` apart."""
    return begin + np.linspace(0, 1, math.ceil(DASH / EVERY) + 1)[:, None] * (end - begin)


def near(points, others, distance):
    """Whether a point is nearer to one of the others than a distance."""
    if not len(others):
        return False
    apart = points[:, None] - others[None]
    return bool((np.einsum("ijk,ijk->ij", apart, apart) < distance**2).any())


def draw_curve(rng, dashes, taken):
    """A curve `(dashes, 2, 2)` and its points, away from those taken, or None without a way on."""
    angle = 2 * math.pi * rng.random()
    place = BORDER + (SIDE - 2 * BORDER) * rng.random(2)
    curve, own = [], []
    for _ in range(dashes):
        others = np.concatenate([taken, *own[:-NEIGHBOURS]])
        for _ in range(TURNS):
            ahead = angle + (turn(rng) if curve else 0.0)
            way = np.array([math.cos(ahead), math.sin(ahead)])
            begin = place + GAP * way if curve else place
            end = begin + DASH * way
            points = points_of(begin, end)
            inside = (points >= BORDER).all() and (points <= SIDE - BORDER).all()
            if inside and not near(points, others, APART):
                break
        else:
            return None
        curve.append((begin, end))
        own.append(points)
        place, angle = end, ahead
    return np.array(curve), np.concatenate(own)


def draw_scene(rng):
    """A `Scene`, and how many curves were drawn for it."""
    drawn = 0
    for _ in range(SCENES):
        curves, taken = [], np.zeros((0, 2))
        for dashes in [DASHES] * 2 + [DISTRACTOR_DASHES] * DISTRACTORS:
            for _ in range(CURVES):
                drawn += 1
                found = draw_curve(rng, dashes, taken)
                if found is not None:
                    break
            else:
                break
            curves.append(found[0])
            taken = np.concatenate([taken, found[1]])
        if len(curves) == 2 + DISTRACTORS:
            return with_markers(rng, curves), drawn
    raise RuntimeError(f"No scene was found in {SCENES} tries. Draw fewer or shorter curves.")


def with_markers(rng, curves):
    """A `Scene` of curves: markers at both ends of a long one, or at an end of each."""
    ends = [(curve[0, 0], curve[-1, 1]) for curve in curves[:2]]
    label, one, other = rng.integers(2, size=3)
    markers = ends[one] if label else (ends[0][one], ends[1][other])
    return Scene(curves, np.array(markers), int(label))


def render(scene, scale=1, markers=True):
    """Grey pixels `(side, side)` from 0 to 255, with `scale` pixels for a unit of length."""
    centres = (np.arange(SIDE * scale) + 0.5) / scale
    pixels = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1)  # (side, side, 2)
    ink = np.zeros(pixels.shape[:2])
    for begin, end in np.concatenate(scene.curves):
        ink = np.maximum(ink, drawn(distance(pixels, begin, end) - THICKNESS / 2, scale))
    if markers:
        for place in scene.markers:
            ink = np.maximum(ink, drawn(np.linalg.norm(pixels - place, axis=-1) - MARKER, scale))
    return np.uint8(np.round(255 * ink))


def distance(pixels, begin, end):
    """The distance of pixels to the line from one point to another."""
    along = end - begin
    part = np.clip((pixels - begin) @ along / (along @ along), 0, 1)
    return np.linalg.norm(pixels - (begin + part[..., None] * along), axis=-1)


def drawn(outside, scale):
    """The part of each pixel that is covered, by its distance to an edge: 1 inside, 0 outside."""
    return np.clip(0.5 - outside * scale, 0, 1)


def arrays(count, seed=0):
    """Images `(count, 32, 32)`, labels, and how far the markers are apart."""
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng)[0] for _ in range(count)]
    return {
        "images": np.stack([render(scene) for scene in scenes]),
        "labels": np.array([scene.label for scene in scenes], "int32"),
        "apart": np.array([np.linalg.norm(np.subtract(*scene.markers)) for scene in scenes]),
    }


def kept():
    count = TRAIN + VALIDATION + TEST
    return kept_arrays(f"pathfinder32_{count}", lambda: arrays(count))


def read(seed):
    found = kept()
    pixels = found["images"].reshape(len(found["labels"]), -1, 1)
    return in_three(rows(np.float32(pixels) / 127.5 - 1, found["labels"]), VALIDATION, TEST)


def floors():
    """Majority, and what the distance of the markers tells without looking at the curves."""
    found = kept()
    apart, labels = found["apart"], found["labels"]
    right = [((apart > limit) == side) == labels for limit in np.quantile(apart, LIMITS)
             for side in (0, 1)]  # fmt: skip
    return {
        "majority": majority(labels),
        "distance of the markers": max(float(each.mean()) for each in right),
    }


TASKS = [
    Task(
        name="pathfinder32",
        about=f"{TRAIN:,} / {VALIDATION:,} / {TEST:,} images",
        length=SIDE * SIDE,
        batch=8,
        every=50,
        causal=False,
        inputs=Signal(1),
        head=mean,
        classes=2,
        scores=(ACCURACY,),
        read=read,
        floors=floors,
    )
]
