"""``convattn push``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from convattn.cli.targets import check_free
from convattn.cli.words import UsageError, parse
from convattn.text import say

_PROG = "convattn push"


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Put a run's network and its model card on the Hugging Face hub, or into a folder alike.

    timm.create_model("hf-hub:REPO", pretrained=True), after import convattn, is then the network.
    What timm does not build (a detector, a segmenter, attention added by augment) goes as a run
    folder, which Run.open reads; the card says how.
    """

    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """Folder of a finished run."""
    repo: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")] = None
    """Repository, NAME or OWNER/NAME; it is made if there is none."""
    local: str | None = None
    """Folder to make instead; nothing is sent."""
    private: bool = False
    """Make a new repository private."""


def command(arguments: list[str]) -> int:
    """Run ``convattn push``."""
    options = parse(PushOptions, PushOptions(), arguments, prog=_PROG)
    if options.run is None or (options.repo is None) == (options.local is None):
        raise UsageError(
            f"{_PROG} takes a run, and a repository or a folder: {_PROG} RUN REPO, or {_PROG} RUN "
            "--local DIR"
        )
    if options.local is not None and options.private:
        raise UsageError("--private is for a repository; a folder is as private as its place")
    check_free(options.local)

    from convattn.runs import Run
    from convattn.runs.sharing import load_code, push, save_for_hub

    run = Run.open(options.run)
    if options.local is not None:
        folder = save_for_hub(run, Path(options.local))
        code = load_code(run, folder)
        say(f"{folder} holds the network: {code.splitlines()[-1].removeprefix('model = ')}")
        return 0
    assert options.repo is not None
    say(push(run, options.repo, private=options.private))
    return 0
