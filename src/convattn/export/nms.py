"""Non-maximum suppression behind a detector's boxes and scores, as nodes of ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

OUTPUTS = ("boxes", "labels", "scores")
"""What a graph gives then."""


def add_nms(
    model: ModelProto, *, score_thresh: float, nms_thresh: float, detections_per_img: int
) -> None:
    """Let a graph give the best boxes instead of all.

    Its outputs, boxes (B, A, 4) and scores (B, A, K) by whatever names, give way to ``boxes``
    (B, D, 4), ``labels`` (B, D) from 1 and ``scores`` (B, D), the surest first; where there are
    fewer than D the rest is 0.

    Args:
        model: Changed.
        score_thresh: A box counts above it.
        nms_thresh: IoU above which of boxes of a class the surest alone stays.
        detections_per_img: D.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    raw_boxes, raw_scores = (output.name for output in graph.output)
    count = detections_per_img
    constants: dict[str, Any] = {
        "nms_count": np.array([count], np.int64),
        "nms_iou": np.array([nms_thresh], np.float32),
        "nms_least": np.array([score_thresh], np.float32),
        "nms_rows": np.array([0, -1], np.int64),
        "nms_pads": np.array([0, 0, 0, count], np.int64),
        "nms_axis": np.array([2], np.int64),
        "nms_last": np.array([-1], np.int64),
        "nms_zero": np.array(0, np.int64),
        "nms_nothing": np.array(0, np.float32),
        "nms_one": np.array(1, np.int64),
    }
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )

    def add(kind: str, inputs: str, outputs: str, **attributes: Any) -> None:
        graph.node.append(
            helper.make_node(
                kind, inputs.split(), outputs.split(), outputs.split()[0], **attributes
            )
        )

    add("Transpose", raw_scores, "nms_scores", perm=[0, 2, 1])
    kept = f"{raw_boxes} nms_scores nms_count nms_iou nms_least"
    add("NonMaxSuppression", kept, "nms_kept")
    # What was kept, among zeros: so it can be sorted by image, over all classes.
    add("GatherND", "nms_scores nms_kept", "nms_kept_scores")
    add("Shape", "nms_scores", "nms_shape")
    add("ConstantOfShape", "nms_shape", "nms_zeros")
    add("ScatterND", "nms_zeros nms_kept nms_kept_scores", "nms_spread")
    add("Reshape", "nms_spread nms_rows", "nms_flat")
    add("Pad", "nms_flat nms_pads nms_nothing", "nms_padded")
    add("TopK", "nms_padded nms_count", "scores nms_places", axis=1)
    add("Greater", "scores nms_nothing", "nms_found")
    add("Where", "nms_found nms_places nms_zero", "nms_place")
    add("Gather", "nms_shape nms_axis", "nms_anchors")
    add("Div", "nms_place nms_anchors", "nms_class")
    add("Add", "nms_class nms_one", "nms_label")
    add("Where", "nms_found nms_label nms_zero", "labels")
    add("Mod", "nms_place nms_anchors", "nms_anchor")
    add("Unsqueeze", "nms_anchor nms_last", "nms_index")
    add("GatherND", f"{raw_boxes} nms_index", "nms_boxes", batch_dims=1)
    add("Unsqueeze", "nms_found nms_last", "nms_shown")
    add("Where", "nms_shown nms_boxes nms_nothing", "boxes")
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    del graph.output[:]
    kinds = {"boxes": TensorProto.FLOAT, "labels": TensorProto.INT64, "scores": TensorProto.FLOAT}
    for name in OUTPUTS:
        shape = [batch, count, 4] if name == "boxes" else [batch, count]
        graph.output.append(helper.make_tensor_value_info(name, kinds[name], shape))
