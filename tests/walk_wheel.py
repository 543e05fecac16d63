"""Walks through an installed convattn, line by line; ends with status 1 where one is wrong.

    cd SOMEWHERE_ELSE; ENVIRONMENT/bin/python -I walk_wheel.py

``make wheel-test`` and ``make wheel-check`` run it, in environments that they make.
"""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

REPEATS = 5
MOST = 1.3
"""How often timm's own time an import may take."""


def python(code):
    """What code prints, in a process of its own."""
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    if run.returncode:
        raise AssertionError(run.stderr.strip())
    return run.stdout.strip()


def walk_files():
    """The package is the wheel's, and whole."""
    file = Path(python("import convattn; print(convattn.__file__)"))
    assert file.is_relative_to(sys.prefix), f"{file} is not of this environment"
    for name in ("py.typed", "models/weights", "checks/data.html", "pages/base.html"):
        assert (file.parent / name).exists(), f"the wheel lacks {name}"
    required = metadata.metadata("convattn")["Requires-Python"]
    assert required == ">=3.11", f"the wheel requires Python {required}"
    return f"{file.parent.name} {metadata.version('convattn')}, of this environment"


def walk_description():
    """Links and pictures of the description work on an index, files and issues are linked."""
    told = metadata.metadata("convattn")
    links = re.findall(r"\]\(([^)]+)\)", told.get_payload())
    assert len(links) > 20, f"the description has {len(links)} links"
    within = [link for link in links if not link.startswith("https://")]
    assert not within, f"the description links {within[0]}, which no index has"
    names = [url.partition(",")[0] for url in told.get_all("Project-URL")]
    assert {"Source", "Issues", "Documentation", "Changelog"} <= set(names), names
    pythons = [line for line in told.get_all("Classifier") if "Python :: 3.1" in line]
    assert len(pythons) >= 3, pythons
    return f"all {len(links)} links of the description are absolute, and {len(names)} beside it"


def walk_extras():
    """Importing brings no package of an extra's alone."""
    extras = {"tyro", "lightning", "matplotlib", "sklearn", "gradio", "onnx", "onnxruntime"}
    extras |= {"openvino", "cleanlab", "litdata", "pyarrow", "torchmetrics", "tensorboard", "av"}
    loaded = set(python("import sys, convattn; print(*sys.modules)").split()) & extras
    assert not loaded, f"import convattn loads {loaded}"
    return "import convattn loads no package of an extra"


def walk_time():
    """Importing takes little longer than timm, the least of several processes each."""
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    names = ("timm", "convattn")
    times = [[float(python(code.format(name))) for name in names] for _ in range(REPEATS)]
    timms, ours = (min(column) for column in zip(*times, strict=True))
    assert ours < MOST * timms, f"import convattn takes {ours:.2f} s, timm {timms:.2f} s"
    return f"import convattn: {ours:.2f} s, timm: {timms:.2f} s, ratio {ours / timms:.2f}"


def walk_library():
    """What README.md shows first, at a small size."""
    shapes = python(
        "import timm, torch, convattn\n"
        'm = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True)\n'
        "heat = convattn.explain(m, torch.zeros(3, 90, 160)).heat\n"
        'r = timm.create_model("test_resnet")\n'
        'r = convattn.augment(r, pool="attention", conv="last-2-stages").eval()\n'
        "x = torch.randn(1, 3, 64, 64)\n"
        "shares, bias = convattn.evidence(r, x, [3])\n"
        "total = shares.sum((2, 3)) + bias\n"
        "assert torch.allclose(total[0, 0], r(x)[0, 3], rtol=1e-4, atol=1e-5)\n"
        "print(*heat.shape)"
    )
    assert shapes == "90 160", shapes
    return "explain, augment and evidence run, shares sum to the logit"


def walk_command():
    """``convattn list`` lists, or says what to install."""
    command = Path(sys.executable).with_name("convattn")
    run = subprocess.run([command, "list"], capture_output=True, text=True)
    asked = "install it with: pip install 'convattn[" in run.stderr
    assert (run.returncode == 0) != (run.returncode == 2 and asked), run.stderr
    return "convattn list: " + (run.stderr.strip() if asked else "lists")


def main():
    """Walk; every line is told."""
    status = 0
    steps = (walk_files, walk_description, walk_extras, walk_library, walk_command, walk_time)
    for step in steps:
        try:
            print(f"right: {step()}", flush=True)
        except AssertionError as error:
            print(f"WRONG: {error}", flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
