"""Small detectors and segmenters that find something though nobody trained them."""

import torch
from torch import nn

from convattn.runs import create_dense_model

CFG = {
    "num_classes": 3,
    "input_size": (3, 64, 64),
    "image_size": 64,
    "max_size": 96,
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.25),
    "label_names": ("a", "b", "c"),
    "category_ids": (1, 2, 3),
}


def shaken(model):
    """The network with weights that find something and differ from layer to layer."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
            module.weight.data.uniform_(0.5, 1.5, generator=draw)
    return model.eval()


def detector(backbone="aa_resnet_nano", **arguments):
    torch.manual_seed(0)
    model = create_dense_model(
        "retinanet",
        cfg=CFG,
        backbone=backbone,
        channels=16,
        head_convs=1,
        max_level=6,
        anchor_scale=2.0,
        head_init="kaiming",
        **arguments,
    )
    head = model.head.classification_head.cls_logits
    nn.init.normal_(head.weight, std=0.2)
    nn.init.constant_(head.bias, -2.0)
    nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.05)
    return shaken(model)


def segmenter(backbone="aa_resnet_nano", **arguments):
    torch.manual_seed(0)
    return shaken(
        create_dense_model(
            "upernet", cfg=CFG, backbone=backbone, channels=16, aux_channels=8, **arguments
        )
    )
