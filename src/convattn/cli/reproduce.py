"""``convattn reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convattn.cli.words import UsageError, parse
from convattn.text import say


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Show both papers' tables beside what is verified here: costs, weights, accuracy."""

    runs: tuple[str, ...] = ()
    """Folders that hold finished runs and tests of released weights, at any depth."""
    out: str | None = None
    """Markdown file to write; one that `convattn reproduce` wrote is replaced."""
    json: str | None = None
    """JSON file to write."""


def command(arguments: list[str]) -> int:
    """Run ``convattn reproduce``."""
    options = parse(ReproduceOptions, ReproduceOptions(), arguments, prog="convattn reproduce")
    for flag, file in (("--out", options.out), ("--json", options.json)):
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise UsageError(
                f"{flag} {file}: there is no folder {Path(file).parent}; make it first"
            )
    from tqdm import tqdm

    from convattn.files import replace_atomically
    from convattn.papers.reproduce import check_rows, to_json, to_markdown, to_text

    with tqdm(unit=" rows", leave=False, disable=None) as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        found = check_rows([Path(folder) for folder in options.runs], progress=progress)
    say(to_text(found))
    for file, write in ((options.out, to_markdown), (options.json, to_json)):
        if file is not None:
            replace_atomically(Path(file), write(found).encode())
            say(str(file))
    return 0
