"""What int8 costs in accuracy in exported files, and what it saves in time there.

    python benchmarks/int8_files.py [--model patchconvnet_nano.cluttered_digits] [--repeats 40]

A network with weights, and the data set that it knows, become files in float32 and int8:
onnxruntime's static quantisation as ``export_int8`` makes it, and OpenVINO's by NNCF, which the
machine has to have (``pip install nncf``). Both are calibrated on the same training images and
see the same test images; one thread; all files take turns in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import convattn
from convattn.bench import compare, forward
from convattn.classification.dataset import open_data, test_batches
from convattn.config import DataConfig
from convattn.data import Source
from convattn.export import export_int8, export_onnx, export_openvino
from convattn.export.openvino_file import import_openvino
from convattn.export.quantized_run import CALIBRATION_IMAGES, calibration_images
from convattn.text import markdown_table
from int8_accuracy import HEAD, cells

Run = Callable[[Tensor], Tensor]


def in_onnxruntime(file: Path) -> Run:
    """The file on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def in_openvino(model: Any) -> Run:
    """A model that OpenVINO has read, on one thread, in float32 where it is not int8."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = import_openvino().compile_model(model, "CPU", options)
    return lambda images: torch.from_numpy(next(iter(compiled(images.numpy()).values())).copy())


def quantized_by_nncf(model: Any, images: Tensor) -> Any:
    """The model in int8, by NNCF's own choice of what else stays float32."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf

    batches = [part.numpy() for part in images.split(8)]
    return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))


def make_files(model: Any, images: Tensor, folder: Path) -> dict[str, Run]:
    """Every file, opened, by what it is called in the table."""
    export_onnx(model, folder / "float32.onnx")
    export_int8(model, folder / "int8.onnx", images)
    export_openvino(model, folder / "float32.xml")
    core = import_openvino().Core()
    exact, ours = (core.read_model(folder / name) for name in ("float32.xml", "int8.onnx"))
    return {
        "float32, onnxruntime": in_onnxruntime(folder / "float32.onnx"),
        "int8, onnxruntime": in_onnxruntime(folder / "int8.onnx"),
        "float32, OpenVINO": in_openvino(exact),
        "int8 by NNCF, OpenVINO": in_openvino(quantized_by_nncf(exact, images)),
        "onnxruntime's int8, OpenVINO": in_openvino(ours),
    }


def rows(
    model: Any, source: Source, config: DataConfig, batch_size: int, repeats: int
) -> list[tuple[str, ...]]:
    """A row a file; times are beside float32 in the same software."""
    loader: DataLoader[Any]
    loader, _ = test_batches(config, source, model.pretrained_cfg)
    batches = list(loader)
    labels = torch.cat([batch for _, batch in batches])
    with torch.inference_mode():
        exact = torch.cat([model(images) for images, _ in batches])
    with TemporaryDirectory() as folder:
        runs = make_files(model, calibration_images(source, model.pretrained_cfg), Path(folder))
        images = batches[0][0][:batch_size].contiguous()
        times = compare(
            {name: forward(run, images) for name, run in runs.items()},
            reference="float32, onnxruntime",
            repeats=repeats,
        )
        found = {
            name: torch.cat([run(images) for images, _ in batches]) for name, run in runs.items()
        }
    software = {name: "float32, " + name.rsplit(", ", 1)[1] for name in runs}
    return [
        (
            name,
            *cells(scores, exact, labels),
            f"{times.milliseconds(name).median:.2f} ms, {times.ratio(name, software[name]):.2f}",
        )
        for name, scores in found.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="patchconvnet_nano.cluttered_digits")
    parser.add_argument("--data", default="cluttered_digits")
    parser.add_argument("--batch-size", type=int, default=8, help="of what is timed")
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = timm.create_model(arguments.model, pretrained=True).eval()
    config = DataConfig(name=arguments.data, num_train=CALIBRATION_IMAGES)
    source = open_data(config)
    found = rows(model, source, config, arguments.batch_size, arguments.repeats)
    print(markdown_table(HEAD[1:], found))


if __name__ == "__main__":
    assert convattn  # registers the network
    main()
