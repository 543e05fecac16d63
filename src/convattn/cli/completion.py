"""Completion of commands and flags in the shell: ``convattn --print-completion bash``."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence

from convattn.cli.words import UsageError, choose

SHELLS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}
"""Shell -> what stands before the script that bash reads, too."""

_SCRIPT = """\
_convattn() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) COMPREPLY=() ;;
  esac
}}
complete -o default -F _convattn convattn
"""


def script_of(words: Sequence[str], commands: Mapping[str, str], run: Callable[..., int]) -> str:
    """The script that completes commands and their flags; other words are completed as files.

    The flags are those of the helps, read when the script is written: write it anew after an
    update.

    Args:
        words: Of the command line behind ``--print-completion``: the shell.
        commands: By name.
        run: The command line.

    Raises:
        UsageError: If it is not one word.
        ValueError: If there is no such shell here.
    """
    if len(words) != 1:
        raise UsageError(f"--print-completion takes one shell: {' or '.join(SHELLS)}")
    before = choose("shell", words[0], SHELLS)
    cases = "\n".join(
        f'    {name}) COMPREPLY=($(compgen -W "{" ".join(_flags(name, run))}" -- "$word")) ;;'
        for name in commands
    )
    return before + _SCRIPT.format(commands=" ".join(commands), cases=cases)


def _flags(command: str, run: Callable[..., int]) -> list[str]:
    told, recipe = io.StringIO(), ["quickstart"] if command == "train" else []
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit, ModuleNotFoundError):
        run([command, *recipe, "--help"])
    lines = (line.strip(" │") for line in told.getvalue().splitlines())
    found = (re.findall(r"--[a-z][\w.-]*\w", line) for line in lines if _tells(line))
    return sorted({"--config", "--print-config", "--help"}.union(*found))


def _tells(line: str) -> bool:
    """Whether a line of a help lists flags, rather than speaks of them."""
    return line.startswith(("-", "usage:", "convattn "))
