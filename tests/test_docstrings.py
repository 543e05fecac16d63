import doctest
import importlib
import pkgutil

import pytest
import torch

import convattn

# __main__ runs the command line when it is imported as a program.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(convattn.__path__, "convattn.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    if "experimental_triton" in name:
        pytest.importorskip("triton")  # PyTorch brings it on Linux alone
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"torch": torch})
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    count = sum(len(t.examples) for t in finder.find(convattn.AAConv2d, globs={}))
    assert count >= 2
