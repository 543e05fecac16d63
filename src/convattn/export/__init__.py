"""Trained networks as files for other software, checked before they are kept.

Each file is read back and compared with the network at three image sizes and two batch sizes;
one that differs is not kept. It holds what its images need and what its classes are called.
"""

from convattn.export.checking import TOLERANCE, Check, Exported
from convattn.export.dense import choose_boxes
from convattn.export.int8 import INT8_TOLERANCE, export_int8
from convattn.export.onnx_file import export_onnx
from convattn.export.openvino_file import export_openvino
from convattn.export.program_file import METADATA_FILE, export_program
from convattn.export.quantized_run import Quantized, export_int8_run
from convattn.export.safetensors_file import export_safetensors

__all__ = [
    "INT8_TOLERANCE",
    "METADATA_FILE",
    "TOLERANCE",
    "Check",
    "Exported",
    "Quantized",
    "choose_boxes",
    "export_int8",
    "export_int8_run",
    "export_onnx",
    "export_openvino",
    "export_program",
    "export_safetensors",
]
