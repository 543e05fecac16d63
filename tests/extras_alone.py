"""Runs commands as if one extra alone were installed, in processes forked from this one.

    python tests/extras_alone.py < CASES > RESULTS

``CASES`` and ``RESULTS`` are JSON: lists of [extra, words], and of [status, stderr]. The extra ""
is none. What is installed beyond the extra's own requirements is hidden.
"""

import contextlib
import importlib.machinery
import io
import itertools
import json
import os
import sys
import tomllib
import traceback
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]


def requirements(name, extra):
    """What a distribution asks for, with one of its extras."""
    if name == "convattn":
        lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"].get(extra, [])
    else:
        lines = metadata.requires(name) or []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for own in ("", *requirement.extras):
                yield canonicalize_name(requirement.name), own


def installed_with(extra):
    """The distributions that ``pip install convattn[EXTRA]`` leaves."""
    found, waiting = set(), [("convattn", extra)]
    while waiting:
        name, own = waiting.pop()
        if (name, own) not in found:
            found.add((name, own))
            with contextlib.suppress(metadata.PackageNotFoundError):  # of another system
                waiting += requirements(name, own)
    return {name for name, _ in found}


def hide_all_but(kept):
    """Have imports and version queries find no other distribution."""
    owners = metadata.packages_distributions()
    hidden = {
        module
        for module, names in owners.items()
        if not kept & {canonicalize_name(name) for name in names}
    }
    find, from_name = REAL

    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else find(name, path, target)

    def found(cls, name):
        if canonicalize_name(name) not in kept:
            raise metadata.PackageNotFoundError(name)
        return from_name(name)

    importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
    metadata.Distribution.from_name = classmethod(found)


REAL = (importlib.machinery.PathFinder.find_spec, metadata.Distribution.from_name)


def run(words):
    """Exit status and stderr of one command."""
    from convattn.__main__ import main

    sys.argv = ["convattn", *words]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main()
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
    return status, errors.getvalue()


def main():
    """Run all cases."""
    cases = json.load(sys.stdin)
    kept = {extra: installed_with(extra) for extra in ("", *(extra for extra, _ in cases))}
    hide_all_but(kept[""])
    import convattn.tasks  # noqa: F401  what every command imports

    results = []
    for extra, group in itertools.groupby(cases, key=lambda case: case[0]):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            hide_all_but(kept[extra])
            text = json.dumps([run(words) for _, words in group])
            with open(writing, "w") as file:
                file.write(text)
            os._exit(0)
        os.close(writing)
        with open(reading) as file:
            results += json.load(file)
        os.waitpid(child, 0)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
