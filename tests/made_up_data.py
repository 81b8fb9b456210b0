"""Made-up data for the tasks, in place of what would be fetched or takes long to draw."""

import csv
import io
import pathlib
import sys

import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))

from measure import data_cache, learned
from tasks import image, mlm, pairs, pathfinder, pieces, reviews, text


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, so that a test neither reads nor changes that of the user."""
    for module in (data_cache, learned):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


WORDS = "good bad film plot actor scene long short dark light story music"


def fake_member(requirement, wheel, member, sha256):
    """Tables like those in the wheels, of made-up texts."""
    rng, out = np.random.default_rng(0), io.StringIO(newline="")
    texts = [" ".join(rng.choice(WORDS.split(), 40)) for _ in range(240)]
    if member == reviews.MEMBER:
        table = csv.writer(out)
        table.writerow(["text", "label", "source"])
        table.writerows([one, i % 2, ("imdb", "rotten_tomatoes")[i // 120]]
                        for i, one in enumerate(texts))  # fmt: skip
    else:
        lines = ["Category\tText", "d\tstring", "class\t"]
        out.write("\n".join(lines + [f"group {i % 4}\t{one}" for i, one in enumerate(texts)]))
    return out.getvalue().encode()


@pytest.fixture
def made_up(monkeypatch):
    """Small made-up data in place of what would be fetched or takes long to draw."""
    for module in (reviews, sys.modules[pairs.mails.__module__]):
        monkeypatch.setattr(module, "read_member", fake_member)
    for module in (reviews, pairs):
        monkeypatch.setattr(module, "VALIDATION", 8, raising=False)
        monkeypatch.setattr(module, "TEST", 8, raising=False)
    for module in (text, pieces):
        monkeypatch.setattr(module, "VALIDATION", 8)
        monkeypatch.setattr(module, "TEST", 8)
    monkeypatch.setattr(mlm, "VALIDATED", 1)
    monkeypatch.setattr(mlm, "TESTED", 1)
    monkeypatch.setattr(pathfinder, "TRAIN", 8)
    monkeypatch.setattr(pathfinder, "VALIDATION", 4)
    monkeypatch.setattr(pathfinder, "TEST", 4)

    def kinds():
        drawn = np.random.default_rng(0)
        return [(drawn.integers(0, 256, (n, 28, 28), "uint8"), drawn.integers(0, 10, n))
                for n in (image.VALIDATION + 8, image.TEST)]  # fmt: skip

    monkeypatch.setattr(image, "images", kinds)
