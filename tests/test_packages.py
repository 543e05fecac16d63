"""How the package hangs together: what hides what, what imports what, what an import costs."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import convattn

SOURCES = Path(convattn.__file__).parent
MODULES = {
    ".".join(("convattn", *file.relative_to(SOURCES).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): file
    for file in SOURCES.rglob("*.py")
}
EXTRAS = ("lightning", "tyro", "matplotlib", "gradio", "onnx", "sklearn", "torchmetrics")


def imports_of(name):
    """The modules of ours that a module imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in MODULES else node.module for part in parts}
    return found & (MODULES.keys() - {name})


@pytest.mark.parametrize(
    "name", sorted(name for name, file in MODULES.items() if file.stem == "__init__")
)
def test_no_package_hides_a_module_of_its_own(name):
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "__main__":
            expected = importlib.import_module(f"{name}.{module.name}")
            assert getattr(package, module.name) is expected


def test_imports_make_no_circle_not_even_lazy_ones():
    try:
        TopologicalSorter({name: imports_of(name) for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.fixture(scope="module")
def loaded():
    """What modules there are after each of several imports, one after the other in one process."""
    names = ("timm", "convattn", "convattn.tasks")
    code = "; ".join(("import sys", *(f"import {name}; print(*sys.modules)" for name in names)))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {
        name: set(line.split()) for name, line in zip(names, run.stdout.splitlines(), strict=True)
    }


@pytest.mark.long
def test_importing_convattn_loads_no_extra_and_no_detector(loaded):
    assert not [name for name in loaded["convattn"] if name.split(".")[0] in EXTRAS]
    # `import torchvision`, which timm does, loads torchvision's own detectors.
    own = loaded["convattn"] - loaded["timm"]
    assert not [name for name in own if name.startswith("torchvision.models.detection")]
    assert not [name for name in own if name.startswith("convattn.detection")]


def test_the_tasks_door_opens_without_lightning_or_an_extra(loaded):
    extras = {*EXTRAS, "faster_coco_eval", "segmentation_models_pytorch"}
    assert not loaded["convattn.tasks"] & extras
