"""Pages of docs/results whose tables are those of a CSV file beside them.

    python benchmarks/pages.py [--check] [PAGE ...]

Without ``--check`` the tables of pages are written anew from their CSV files; with it nothing is
written, and a page that differs from its rows ends it with 1. Without names: all such pages.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; what stands around it
is prose, which stays as it is. ``PAGE.csv`` has a row a cell: the table's name, the number of the
row, the column, and the cell as it is printed. The table ``measured`` says of every page by which
command, seed and machine its numbers were made, and when.

A script that measures calls ``publish`` with its page in Markdown, and ``answer_check`` before it
reads its arguments, which gives it a ``--check`` of its own. A page that its script makes whole out
of rows is no such page: its script calls ``answer_check_of_rows``.
"""

from __future__ import annotations

import argparse
import csv
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from rows import read_rows

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
COLUMNS = ("table", "row", "column", "cell")
MEASURED = "measured"
PROVENANCE = ("part", "command", "seed", "machine", "date")
TABLE = re.compile(r"^<!-- table: (.+) -->\n\n((?:\|.*\n)+)\n<!-- end of table -->$", re.MULTILINE)
BARE = re.compile(
    r"((?:^\|[^\n]*\n)+)|^(#{1,6}) ([^\n]*)\n|^```.*?^```\n", re.MULTILINE | re.DOTALL
)
MADE = re.compile(r"Torch [\d.]+, one thread of .+; [\d-]+\.$", re.MULTILINE)

Table = list[list[str]]
"""The names of the columns, then the rows."""


def publish(page: Path, text: str, measured: Sequence[Mapping[str, str]]) -> None:
    """Write a page and its CSV file.

    A page that is there keeps its prose: tables of the same name are replaced, new ones come to its
    end, and those that ``text`` has not stay.

    Args:
        page: The page.
        text: What it would be by itself: headings, prose, and tables, each named by the headings
            above it.
        measured: How the numbers were made, a row a part: ``provenance``.
    """
    rows = [[one[column] for column in PROVENANCE] for one in measured]
    if page.exists():
        kept = page.read_text()
        old = tables_of(kept)
        text = name_tables(text)
        renewed = {row[0] for row in rows}
        kept_rows = [row for row in old.get(MEASURED, [[]])[1:] if row[0] not in renewed]
        fresh = {MEASURED: [list(PROVENANCE), *kept_rows, *rows], **tables_of(text)}
        for name in fresh.keys() - old.keys():
            kept = f"{kept.rstrip()}\n\n## {name}\n\n{place(name, fresh[name])}\n"
        text = kept
    else:
        title, _, rest = text.partition("\n")
        head = place(MEASURED, [list(PROVENANCE), *rows])
        text = f"{title}\n\n{head}\n{name_tables(rest)}"
        fresh = {}
    tables = {**tables_of(text), **fresh}
    write_tables(page.with_suffix(".csv"), tables)
    page.write_text(filled(text, tables))


def provenance(command: str, part: str = "all", seed: str = "0") -> dict[str, str]:
    """A row of ``measured``, of today and this machine.

    Args:
        command: What made the numbers.
        part: Which of the page's.
        seed: The seed or the seeds.
    """
    threads = torch.get_num_threads()
    machine = (
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{threads} thread{'s' * (threads != 1)}, torch {torch.__version__}"
    )
    date = time.strftime("%-d %B %Y")
    values = (part, f"`{command}`", seed, machine, date)
    return dict(zip(PROVENANCE, values, strict=True))


def answer_check(page: str) -> None:
    """End the program where its command asks for ``--check`` of its page.

    Args:
        page: Its name in docs/results.
    """
    if "--check" in sys.argv[1:]:
        sys.exit(main([page, "--check"]))


def answer_check_of_rows(page: Path, made: Callable[[str], str]) -> None:
    """End the program where its command asks for ``--check`` of a page made whole out of rows.

    Args:
        page: The page.
        made: What it would be today, of what it is: rows, and the prose that is kept.
    """
    if "--check" in sys.argv[1:]:
        written = page.read_text()
        now, then = made(written).splitlines(), written.splitlines()
        longest = range(max(len(now), len(then)))
        other = [n for n in longest if now[n : n + 1] != then[n : n + 1]]
        for number in other:
            print(f"{page.name}:{number + 1} is not what the rows give", file=sys.stderr)
        sys.exit(1 if other else 0)


def made_line(machine: str, date: str) -> str:
    """By what a page of rows was made, as its sentence.

    Args:
        machine: With its article.
        date: Of the day.
    """
    return f"Torch {torch.__version__.split('+')[0]}, one thread of {machine}; {date}."


def made_line_of(text: str) -> str:
    """The sentence ``made_line`` in a page; "" in a page without.

    Args:
        text: A page.
    """
    found = MADE.search(text)
    return found[0] if found else ""


def name_tables(text: str) -> str:
    """Tables without marks get them, each named by the headings above it.

    Args:
        text: A page.
    """
    headings: dict[int, str] = {}
    names: list[str] = []

    def marked(found: re.Match[str]) -> str:
        table, level, heading = found.groups()
        if level:
            for deeper in [one for one in headings if one >= len(level)]:
                del headings[deeper]
            headings[len(level)] = heading.strip()
        if not table:
            return found[0]
        name = ": ".join(title for depth, title in sorted(headings.items()) if depth > 1) or "all"
        names.append(name)
        if names.count(name) > 1:
            name = f"{name} ({names.count(name)})"
        return f"{place(name, parse(table))}\n"

    return BARE.sub(marked, text)


def parse(table: str) -> Table:
    """The cells of a table in Markdown.

    Args:
        table: Its lines.
    """
    lines = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in table.strip().splitlines()]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [cells[0], *cells[2:]]


def place(name: str, table: Table) -> str:
    """A table between its marks; cells are Markdown already.

    Args:
        name: Of the table.
        table: Its cells.
    """
    lines = [f"| {' | '.join(row)} |" for row in (table[0], ["---"] * len(table[0]), *table[1:])]
    return "\n".join([f"<!-- table: {name} -->\n", *lines, "\n<!-- end of table -->"])


def tables_of(text: str) -> dict[str, Table]:
    """The tables between marks.

    Args:
        text: A page.
    """
    return {name: parse(table) for name, table in TABLE.findall(text)}


def filled(text: str, tables: Mapping[str, Table]) -> str:
    """The page with these tables between its marks.

    Args:
        text: A page.
        tables: By name.

    Raises:
        KeyError: If the page has a place for a table that is not there.
    """
    return TABLE.sub(lambda found: place(found[1], tables[found[1]]), text)


def write_tables(file: Path, tables: Mapping[str, Table]) -> None:
    """A row a cell.

    Args:
        file: The CSV file.
        tables: By name.
    """
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, (head, *rows) in tables.items():
            for number, row in enumerate(rows, 1):
                writer.writerows(
                    (name, number, column, cell) for column, cell in zip(head, row, strict=True)
                )


def read_tables(file: Path) -> dict[str, Table]:
    """What ``write_tables`` wrote.

    Args:
        file: The CSV file.
    """
    tables: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for row in read_rows(file):
        rows = tables.setdefault(row["table"], {})
        rows.setdefault(row["row"], []).append((row["column"], row["cell"]))
    return {
        name: [
            [column for column, _ in next(iter(rows.values()))],
            *([cell for _, cell in cells] for cells in rows.values()),
        ]
        for name, rows in tables.items()
    }


def differences(page: Path) -> list[str]:
    """What is wrong with a page, in sentences.

    Args:
        page: The page.
    """
    text, tables = page.read_text(), read_tables(page.with_suffix(".csv"))
    shown = tables_of(text)
    found = [
        f"the table {name!r} is not that of {page.stem}.csv"
        for name in shown
        if shown[name] != tables.get(name)
    ]
    found += [
        f"the table {name!r} of {page.stem}.csv is not shown"
        for name in tables.keys() - shown.keys()
    ]
    bare = TABLE.sub("", text)
    if any(match[1] for match in BARE.finditer(bare)):
        found.append("it has a table without marks, which no CSV file holds")
    head, *rows = shown.get(MEASURED, [[]])
    if tuple(head) != PROVENANCE or not rows or not all(all(row) for row in rows):
        found.append(f"its table {MEASURED!r} does not tell {', '.join(PROVENANCE)}")
    return found


def all_pages() -> list[Path]:
    """The pages whose tables are a CSV file's cells."""
    return sorted(p for p in RESULTS.glob("*.md") if "<!-- table: " in p.read_text())


def main(words: Sequence[str] | None = None) -> int:
    """Write or compare.

    Args:
        words: Of the command line.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="as aa_layer; none: all")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    given = parser.parse_args(words)
    status = 0
    for page in [RESULTS / f"{name}.md" for name in given.pages] or all_pages():
        if not given.check:
            page.write_text(filled(page.read_text(), read_tables(page.with_suffix(".csv"))))
            continue
        for sentence in differences(page):
            print(f"{page.name}: {sentence}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
