"""Markdown tables of results."""

import math
import re

from measure.cells import SIDES, passes

SLOPE_FROM = 1024
"""Lengths from here on count for the slope; shorter calls are mostly overhead."""


class Notes:
    """Reasons that are too long for a table, numbered."""

    def __init__(self):
        self.texts = []

    def short(self, status):
        """A status as it stands in a table."""
        if status.startswith("out of"):
            return status
        if status not in self.texts:
            self.texts.append(status)
        word = "not measured" if status.startswith("not measured") else "fails"
        return f"{word} [{self.texts.index(status) + 1}]"

    def lines(self):
        clean = (re.sub(r"\s+", " ", text).strip()[:300] for text in self.texts)
        return [f"[{i}] {text}\n" for i, text in enumerate(clean, 1)]


class Results:
    """What a store holds of some cells, by row and length."""

    def __init__(self, cells, store, rows):
        self.cells, self.store, self.notes = cells, store, Notes()
        self.labels = {(row.level, row.what): row.label for row in rows}

    def found(self, cell):
        return self.store.cells.get(cell.key, {}) if cell is not None else {}

    def of(self, **wanted):
        """Cells with these values, by row and then by length."""
        rows = {}
        for cell in self.cells:
            if all(getattr(cell, name) == value for name, value in wanted.items()):
                rows.setdefault(cell.row, {})[cell.n] = cell
        return rows

    def label(self, cell):
        return f"{self.labels[cell.level, cell.what]}, {SIDES[cell.side]}"

    def number(self, cell, name):
        """A number of a cell that was timed, else None."""
        found = self.found(cell)
        return found.get(name) if found.get("status") == "ok" else None

    def text(self, cell, value, form):
        """A number, or why there is none."""
        found = self.found(cell)
        if found.get("status") == "ok":
            return "-" if value is None else form.format(value)
        return self.notes.short(found["status"]) if "status" in found else "not measured"


def table(head, rows):
    """Markdown lines; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |\n" for line in lines] + ["\n"]


def slope(times):
    """The power of n that a time grows with: least squares of logarithms, or None."""
    points = [(math.log(n), math.log(time)) for n, time in times.items() if n >= SLOPE_FROM]
    if len(points) < 2:
        return None
    x, y = ([point[i] for point in points] for i in (0, 1))
    middle = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle[0]) * (b - middle[1]) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle[0]) ** 2 for a in x)


def ratio(one, other):
    return None if one is None or not other else one / other


def section(results, baseline, **wanted):
    """The tables of one level, direction and pass; `baseline(cell)` is what a cell is held to."""
    rows = results.of(**wanted)
    if not rows:
        return []
    lengths = sorted({n for cells in rows.values() for n in cells})
    way = "causal" if wanted["causal"] else "both ways"
    lines = [f"## {wanted['level']}, {way}, {passes(wanted['gradient'])}\n\n"]

    def columns(name, form, value, last=None):
        """A column for each length and perhaps a last one. Rows and tables that say nothing go."""
        body = []
        for cells in rows.values():
            texts = [
                results.text(cells[n], value(cells[n]), form) if n in cells else "" for n in lengths
            ]
            if not set(texts) <= {"-", ""}:
                label = results.label(next(iter(cells.values())))
                body.append([label, *texts, *([last[1](cells)] if last else [])])
        head = [name, *(f"{n:,}" for n in lengths), *(last[:1] if last else [])]
        return table(head, body) if body else []

    def median(cell):
        return results.number(cell, "median")

    def power(cells):
        found = slope({n: median(cell) for n, cell in cells.items() if median(cell)})
        return "-" if found is None else f"{found:.2f}"

    lines += columns("time, ms", "{:,.1f}", lambda c: None if median(c) is None
                     else 1e3 * median(c), ("power of n", power))  # fmt: skip
    lines += columns("time, of the limit", "{:.1f}",
                     lambda c: ratio(median(c), results.number(c, "limit")))  # fmt: skip
    if baseline is not None:
        lines += columns(f"time, of {baseline.name}", "{:.3f}",
                         lambda c: ratio(median(c), median(baseline(c))))  # fmt: skip
    lines += columns("peak memory, MiB", "{:,.0f}", lambda c: results.number(c, "peak_mib"))
    return lines


def head(title, store, used):
    """Title, and of each run that measured something: command, machine, versions, seed."""
    lines = [f"# {title}\n\n"]
    for i in sorted({store.cells[key]["run"] for key in used if key in store.cells}):
        run = store.runs[i]
        machine = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
        versions = ", ".join(f"{name} {value}" for name, value in sorted(run["versions"].items()))
        more = {name: value for name, value in run.items() if name not in
                ("command", "date", "seed", "machine", "versions", "package")}  # fmt: skip
        extra = "".join(f"; {name.replace('_', ' ')} {value}" for name, value in more.items())
        lines.append(
            f"`{run['command']}`, {run['date']}, seed {run['seed']}{extra}\n\n"
            f"{machine}; {versions or 'no versions'}; sources of the package {run['package']}\n\n"
        )
    return lines
