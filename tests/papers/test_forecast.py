import re
from dataclasses import astuple, replace

import pytest
import timm
import torch
from torch import nn

from convattn.bench import Counts, HeldTensors, count
from convattn.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.papers.costs import (
    activation_bytes,
    checkpointed_bytes,
    count_macs,
    training_state_bytes,
)
from convattn.papers.forecast import GPUS, forecast, report, seconds_per_image
from convattn.recipes import RECIPES
from convattn.tasks import build_network
from convattn.weights import RELEASES

MEASURED = {
    (release.model, release.pixels): release.images_per_second
    for release in RELEASES.values()
    if release.images_per_second is not None
}
"""Images a second that the authors of PatchConvNet measured on a V100."""

SMALL = TrainConfig(
    recipe="small",
    data=DataConfig(num_train=100, batch_size=8, image_size=32),
    model=ModelConfig(name="patchconvnet_nano", model_args={"embed_dim": 16, "depth": 1}),
    epochs=3,
)


def told(config, **arguments):
    """The rows of the report."""
    text = report(config, summary="What it is.", **arguments)
    rows = re.split(r"\n(?=\S)", text)
    return {row.split()[0]: " ".join(row.split()[1:]) for row in rows}


def counts_of(name, side, **arguments):
    with torch.device("meta"):
        return astuple(count(timm.create_model(name, **arguments), (3, side, side)))


@pytest.mark.parametrize(("name", "side"), MEASURED)
def test_time_of_inference_is_what_the_authors_measured(name, side):
    one, two = (counts_of(name, side, depth=depth) for depth in (1, 2))
    # Every block costs the same, and a hundred of them take long to count.
    blocks = int(re.search(r"\d+", name)[0])
    parameters, macs, activations = (
        first + (blocks - 1) * (second - first) for first, second in zip(one, two, strict=True)
    )
    counts = Counts(parameters=parameters, macs=macs, activations=activations)
    rate = 1 / seconds_per_image(counts, GPUS["v100"], half=True)
    assert rate == pytest.approx(MEASURED[name, side], rel=0.15)


def test_single_precision_moves_twice_the_bytes_at_a_lower_rate():
    with torch.device("meta"):
        counts = count(timm.create_model("resnet18"), (3, 224, 224))
    half, single = (seconds_per_image(counts, GPUS["a100"], half=half) for half in (True, False))
    assert single > 2 * half


def test_backward_pass_needs_what_autograd_keeps():
    # Of conv, ReLU, conv: the image, which is not made here, and the map behind the ReLU; and the
    # last map, which is handed out. Linear in the area, which is four times the one computed.
    with torch.device("meta"):
        network = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(5, 7, 3, padding=1)
        )
    assert activation_bytes(network, (3, 128, 128), mixed=False) == (5 + 7) * 128 * 128 * 4


def test_copies_of_weights_are_no_part_of_an_image():
    with torch.device("meta"):
        network = nn.Conv2d(3, 5, 1)
    in_half_precision = 2 * (3 + 5) * 64 * 64
    assert activation_bytes(network, (3, 64, 64), mixed=True) == in_half_precision


def test_recomputation_is_seen():
    def bytes_with(recompute):
        with torch.device("meta"):
            network = timm.create_model("patchconvnet_s60", depth=2, embed_dim=32)
        network.set_pointwise_recomputation(recompute)
        return activation_bytes(network, (3, 64, 64), mixed=False)

    assert bytes_with(True) < bytes_with(False)


def test_checkpointed_estimate_is_what_a_step_holds_at_most():
    def network(device):
        with torch.device(device):
            return timm.create_model("patchconvnet_s60", depth=6, embed_dim=64, num_classes=5)

    size = (3, 64, 64)
    plain = activation_bytes(network("meta"), size, mixed=False)
    estimate = checkpointed_bytes(network("meta"), size, mixed=False, plain=plain)
    model = network("cpu").train()
    model.set_grad_checkpointing()

    def most(batch_size):
        images = torch.zeros(batch_size, *size)
        with HeldTensors() as held:
            model(images).sum().backward()
        model.zero_grad()
        return 4 * held.most

    measured = (most(8) - most(4)) / 4
    assert estimate < plain
    assert estimate == pytest.approx(measured, rel=0.35)


def test_fsdp2_shares_the_state_out():
    config = replace(SMALL, optim=OptimConfig(opt="adamw"), precision="32-true")
    shared = replace(config, strategy="fsdp2")

    def state(config, devices):
        with torch.device("meta"):
            model = build_network(config, num_classes=10, input_size=(32, 32))
        return training_state_bytes(model, config, devices), model

    whole, model = state(config, 4)
    block = sum(one.nbytes for one in model.blocks[0].parameters())
    assert state(shared, 4)[0] == whole // 4 + 3 * block


@pytest.mark.parametrize(
    ("opt", "copies"), [("sgd", 3), ("adamw", 4), ("lamb", 4)], ids=["momentum", "two", "lamb"]
)
def test_state_holds_weights_gradients_and_the_optimisers_memory(opt, copies):
    config = replace(SMALL, optim=OptimConfig(opt=opt))
    with torch.device("meta"):
        network = nn.Linear(100, 100, bias=False)
    assert training_state_bytes(network, config) == pytest.approx(copies * 40_000, abs=100)


def test_averaged_weights_and_half_precision_add_their_copies():
    def state(**changes):
        with torch.device("meta"):
            network = nn.Linear(100, 100, bias=False)
        return training_state_bytes(network, replace(SMALL, **changes))

    assert state(ema_decay=0.9) - state() == 40_000
    assert state(precision="bf16-mixed") - state() == 20_000


@pytest.mark.parametrize("name", ["resnet10t", "aa_resnet_nano", "patchconvnet_nano"])
def test_multiply_adds_alone_are_those_of_the_full_count(name):
    with torch.device("meta"):
        network = timm.create_model(name)
    assert count_macs(network, (3, 64, 96)) == count(network, (3, 64, 96)).macs


def test_steps_are_epochs_times_whole_batches():
    found = forecast(SMALL, GPUS["h100"])
    assert found.steps_per_epoch == 100 // 8
    assert "3 epochs x 12 = 36 steps of 8 images" in told(SMALL)["steps"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [({}, 8), ({"devices": 2}, 4), ({"devices": 2, "num_nodes": 2, "accumulate": 2}, 1)],
)
def test_batch_is_shared_by_devices_machines_and_parts(changes, part):
    assert forecast(replace(SMALL, **changes), GPUS["h100"]).part == part


def test_parameters_are_those_of_the_network_with_its_attention():
    config = replace(
        SMALL,
        data=replace(SMALL.data, image_size=64),
        model=ModelConfig(name="resnet10t"),
        augment=AugmentConfig(pool="attention", conv=("last-1-stages",)),
    )
    built = build_network(config, num_classes=10, input_size=(64, 64))
    plain = timm.create_model("resnet10t", num_classes=10)
    counted = forecast(config, GPUS["h100"]).counts.parameters
    assert counted == sum(parameter.numel() for parameter in built.parameters())
    assert counted != sum(parameter.numel() for parameter in plain.parameters())


@pytest.mark.parametrize(
    "name", ["resnet34_imagenet", "cluttered_digits_mask_rcnn", "cluttered_digits_upernet"]
)
def test_every_setting_that_is_no_default_is_told(name):
    config = RECIPES[name]()
    text = " ".join(told(config).values())
    default = TrainConfig()
    for part in ("data", "model", "optim"):
        for field, value in vars(getattr(config, part)).items():
            if value != getattr(getattr(default, part), field):
                assert field in text
    assert f"epochs {config.epochs}" in text


def test_published_numbers_stand_in_for_a_set_that_is_not_there():
    line = told(RECIPES["resnet34_imagenet"]())["images"]
    assert "1,281,167 for training, 1,000 classes" in line
    assert "give --data.root DIR" in line


def test_images_that_are_there_are_counted(tmp_path):
    from PIL import Image

    for split, number in (("train", 5), ("val", 1)):
        for name in ("cat", "dog", "owl"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (40, 40)).save(tmp_path / split / name / f"{index}.png")
    data = DataConfig(name="folder", root=str(tmp_path), batch_size=4, image_size=32)
    line = told(replace(SMALL, data=data))["images"]
    assert f"15 for training, 3 classes (found in {tmp_path})" in line


def test_unknown_number_of_images_is_said_to_be_unknown():
    rows = told(replace(SMALL, data=DataConfig(name="folder", batch_size=8, image_size=32)))
    assert "an unknown number for training, 1,000 classes (assumed" in rows["images"]
    assert "3 epochs of unknown length" in rows["steps"]
    assert rows["time"].split()[1:4] == ["images", "a", "second"]


def test_missing_folder_is_an_error():
    data = DataConfig(name="folder", root="nowhere", batch_size=8)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        forecast(replace(SMALL, data=data), GPUS["h100"])


def test_batch_larger_than_the_set_is_an_error():
    data = replace(SMALL.data, batch_size=128)
    with pytest.raises(ValueError, match=r"128 is more than the 100 .* choose at most 100"):
        forecast(replace(SMALL, data=data), GPUS["h100"])


def test_too_large_a_batch_is_told_how_to_fit():
    config = RECIPES["resnet34_imagenet"]()
    line = told(replace(config, data=replace(config.data, batch_size=8192)), gpu="rtx4090")
    advised = re.search(r"too little, --accumulate (\d+) would do", line["memory"])
    assert advised is not None
    fitting = replace(
        config, data=replace(config.data, batch_size=8192), accumulate=int(advised[1])
    )
    assert "it fits" in told(fitting, gpu="rtx4090")["memory"]


def test_where_the_weights_come_from_is_told(tmp_path):
    there = tmp_path / "weights.pth"
    there.touch()
    lines = [
        told(replace(SMALL, model=replace(SMALL.model, **start)))["network"]
        for start in ({}, {"pretrained": True}, {"checkpoint": str(there)}, {"checkpoint": "gone"})
    ]
    assert [line.split("starts from ")[1] for line in lines] == [
        "random weights",
        "its released weights",
        str(there),
        "gone, which is not there",
    ]


def test_more_gpus_take_less_time():
    seconds = [
        forecast(replace(RECIPES["resnet34_imagenet"](), devices=devices), GPUS["a100"])
        for devices in (1, 8)
    ]
    assert seconds[0].part == 8 * seconds[1].part
    assert seconds[0].memory > seconds[1].memory


@pytest.mark.long
def test_v100_is_said_to_have_no_bfloat16():
    config = RECIPES["resnet34_imagenet"]()
    assert "--precision 16-mixed" in told(config, gpu="v100")["time"]
    assert "--precision 16-mixed" not in told(config, gpu="a100")["time"]


def test_time_is_told_to_one_digit():
    line = told(RECIPES["resnet34_imagenet"].config, gpu="v100")["time"]
    assert re.match(r"about [1-9]0* (days|hours|minutes), ", line)
