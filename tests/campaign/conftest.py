"""What the rows share, and the page that is made of them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.counting import Row
from tests.campaign.page import write_page
from tests.campaign.running import preload
from tests.campaign.runs import Runs, make_runs

_RESULTS: list[dict[str, Any]] = []
_PAGE = os.environ.get("CONVATTN_CAMPAIGN")
"""The file to write."""


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line at once, whatever pytest keeps back."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            os.write(2, f"{line}\n".encode(errors="backslashreplace"))

    return write


@pytest.fixture
def row(
    request: pytest.FixtureRequest, tell: Callable[[str], None], record_property: Any
) -> Iterator[Row]:
    """The row that the test's marker names; its docstring says what is tried."""
    name, total = request.node.get_closest_marker("campaign").args
    made = Row(
        name=name,
        total=total,
        tries=" ".join((inspect.getdoc(request.function) or "").split()),
        command=f"tests/campaign/{Path(request.fspath).name}",
        tell=tell,
    )
    yield made
    record_property("campaign", made.to_json())


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A finished and a stopped tiny run."""
    preload()
    return make_runs(tmp_path_factory.mktemp("campaign"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take a row's counts out of its report, which may come from another process, to the page."""
    if report.when != "teardown":
        return
    _RESULTS.extend(value for name, value in report.user_properties if name == "campaign")
    if _PAGE and _RESULTS:
        write_page(Path(_PAGE), _RESULTS)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show every row's counts."""
    for found in sorted(_RESULTS, key=lambda found: found["name"]):
        counts = ", ".join(f"{found[key]:,} {key}" for key in ("right", "refused", "faults"))
        terminalreporter.write_line(f"{found['name']}: {counts}, {found['seconds']:.0f} s")
