"""What the examples print last: aligned columns, and what they were made with."""

import datetime
import importlib.metadata


def made_with(seed, packages):
    """The date, the seed and the versions of some packages, as one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{datetime.date.today()}, seed {seed}, {versions}"


def print_columns(columns):
    """Print `columns`, name -> row -> text. A cell that a column lacks is a hyphen."""
    rows = [("", *columns)]
    for row in next(iter(columns.values())):
        rows.append((row, *(column.get(row, "-") for column in columns.values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for label, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([label.ljust(widths[0]), *cells]))


def print_numbers(numbers):
    """Print a dict of `"row/column"` to a number as a table."""
    names = [name.rsplit("/", 1) for name in numbers]
    columns = {column: dict.fromkeys([row for row, _ in names], "-") for _, column in names}
    for (row, column), x in zip(names, numbers.values(), strict=True):
        columns[column][row] = f"{x:.3f}" if abs(x) < 10 else f"{x:,.0f}"
    print_columns(columns)
