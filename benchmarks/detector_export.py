"""A detector's exported files beside the detector: size, agreement and time.

    python benchmarks/detector_export.py RUN --out FILE.csv [--size 480 640] [--repeats 11]

RUN is a run of a RetinaNet. Its files are made as ``convattn export`` makes them; they and the
detector take turns on the same image of ``--size``, at that scale, one thread each. ``onnx`` and
``torch-export`` give all boxes, so ``choose_boxes`` belongs to their time.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from convattn.bench import compare
from convattn.export import choose_boxes, export_onnx, export_program
from convattn.export.dense import RawDetector
from convattn.runs import Run


def in_onnxruntime(file: Path, images: torch.Tensor) -> Callable[[], list[Any]]:
    """A pass of a file on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: list(session.run(None, {"images": images.numpy()}))


def main() -> None:
    """Export, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640))
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = Run.open(options.run).load_model()
    size = tuple(options.size)
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    copied: Any = Run.open(options.run).load_model()
    cfg = RawDetector(copied).cfg(None)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        place = Path(folder)
        files = {
            "onnx": export_onnx(model, place / "raw.onnx"),
            "onnx --nms": export_onnx(model, place / "nms.onnx", nms=True),
            "torch-export": export_program(model, place / "program.pt2"),
        }
        program = torch.export.load(files["torch-export"].file).module()
        raw = in_onnxruntime(files["onnx"].file, images)

        def chosen(outputs: Any) -> Any:
            boxes, scores = outputs
            return choose_boxes(boxes[0], scores[0], size, cfg)

        steps: dict[str, Callable[[], Any]] = {
            "PyTorch": lambda: model(list(images)),
            "onnx": lambda: chosen(raw()),
            "onnx --nms": in_onnxruntime(files["onnx --nms"].file, images),
            "torch-export": lambda: chosen(program(images)),
        }
        found = compare(steps, reference="PyTorch", repeats=options.repeats)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    table: list[tuple[object, ...]] = [("way", "megabytes", "difference", "time")]
    for way in steps:
        file = files.get(way)
        worst = max(max(one.differences.values()) for one in file.checks) if file else 0
        table.append((way, f"{(file.size if file else weights) / 1e6:.2f}", f"{worst:.0e}"))
        table[-1] += (found.cell(way),)
    with options.out.open("w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows(table)
    for row in table:
        print(*row, sep="  ")


if __name__ == "__main__":
    main()
