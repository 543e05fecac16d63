"""Every recipe trains, with its network made small and its images made up."""

import math
import warnings
from dataclasses import replace

import lightning as L
import pytest
import torch

import convattn.train.classification
import convattn.train.detection
import convattn.train.segmentation
from convattn.data import Source, TensorImages, load_detection, load_segmentation
from convattn.recipes import RECIPES
from convattn.runs.build import create_model
from convattn.tasks import build_network, task_of
from convattn.train.callbacks import Ema
from convattn.train.classification import ClassificationJob
from convattn.train.run import _quiet
from convattn.weights import RELEASES

SIDE, BATCH, CLASSES = 64, 4, 10
_RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}
SMALL = {
    "patchconvnet": {"embed_dim": 16, "depth": 4},
    "aa_resnet": {**_RESNET, "img_size": SIDE},
    "resnet": _RESNET,
    "seresnet": _RESNET,
    "aa_wide_resnet": {"depth": 10, "widen": 1},
    "wide_resnet": {"depth": 10, "widen": 1},
    "se_wide_resnet": {"depth": 10, "widen": 1},
    "aa_mnasnet": {"depth_multiplier": 0.25, "channel_multiplier": 0.25, "img_size": SIDE},
    "semnasnet": {"num_features": 32},
    "mnasnet_a1": {"num_features": 32},
}
"""Beginning of a network's name -> what makes it small."""
SMALL_HEADS = {
    "retinanet": {"channels": 16, "max_level": 5},
    "mask_rcnn": {"channels": 16, "box_channels": 16, "mask_channels": 8},
    "upernet": {"channels": 16, "aux_channels": 8},
}


def shrunk(name):
    """What makes a network small; the nano ones are."""
    if "nano" in name:
        return {}
    return next(
        (
            arguments
            for start, arguments in sorted(SMALL.items(), key=lambda item: -len(item[0]))
            if name.startswith(start)
        ),
        {},
    )


def small_model(model):
    """The network of a recipe with fewer and narrower layers; all else is as it was."""
    kind = next((kind for kind in SMALL_HEADS if kind in model.name), None)
    if kind is None:
        return replace(model, model_args={**model.model_args, **shrunk(model.name)})
    backbone = model.backbone or model.name.partition(f"{kind}_")[2]
    if model.name.startswith("aa_"):
        backbone = f"aa_{backbone}"
    return replace(
        model,
        backbone_args={**model.backbone_args, **shrunk(backbone)},
        model_args={**model.model_args, **SMALL_HEADS[kind]},
    )


def small(config):
    """The recipe on a few small images, on one CPU."""
    sizes = {"image_size": SIDE if config.data.image_size else None, "num_workers": 0}
    if config.data.crop_size is not None:
        sizes["crop_size"] = (SIDE, SIDE)
    if config.data.max_size is not None:
        sizes["max_size"] = 2 * SIDE
    return replace(
        config,
        data=replace(config.data, batch_size=BATCH, **sizes),
        model=small_model(config.model),
    )


@pytest.fixture(scope="session")
def sources():
    """Images of each kind of data set."""
    generator = torch.Generator().manual_seed(0)

    def random_source(name, channels, side):
        images = torch.randint(256, (8, channels, side, side), generator=generator).byte()
        found = TensorImages(images, torch.arange(8) % CLASSES)
        return Source(
            name=name,
            class_names=tuple("abcdefghij"),
            train=found,
            test=found,
            image_size=(side, side),
            in_chans=channels,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
        )

    scenes = {"image_size": SIDE, "num_train": 8, "num_test": 1}
    return {
        "classification": {
            name: random_source(name, 1 if name == "fashion_mnist" else 3, side)
            for name, side in (
                ("cluttered_digits", SIDE),
                ("tiny_imagenet", SIDE),
                ("folder", 80),
                ("imagenet", 80),
                ("cifar100", 32),
                ("fashion_mnist", 28),
            )
        },
        "boxes": load_detection("cluttered_digits", **scenes),
        "masks": load_detection("cluttered_digits", masks=True, **scenes),
        "segmentation": load_segmentation("cluttered_digits", **scenes),
    }


@pytest.fixture
def made_up(monkeypatch, sources):
    """Every data set is one of those."""
    monkeypatch.setattr(
        convattn.train.classification,
        "open_data",
        lambda config: sources["classification"][config.name],
    )
    monkeypatch.setattr(
        convattn.train.detection,
        "open_parted",
        lambda config, masks, seed: sources["masks" if masks else "boxes"],
    )
    monkeypatch.setattr(
        convattn.train.segmentation,
        "open_parted",
        lambda config, seed: sources["segmentation"],
    )


class Losses(L.Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(outputs["loss"].item())


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_takes_two_steps(name, made_up, tmp_path):
    config = small(RECIPES[name]())
    job = task_of(config.model.name).job(config)
    task = job.make_task(None)
    before = {key: value.clone() for key, value in task.model.named_parameters()}
    losses = Losses()
    averages = [] if config.ema_decay is None else [Ema(config.ema_decay)]
    with _quiet(), warnings.catch_warnings():
        trainer = L.Trainer(
            max_steps=2,
            accelerator="cpu",
            devices=1,
            precision=config.with_precision(gpu=False, bfloat16=False).precision,
            gradient_clip_val=config.clip_grad,
            accumulate_grad_batches=config.accumulate,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            default_root_dir=tmp_path,
            callbacks=[losses, *averages],
        )
        trainer.fit(task, job.data)
    assert trainer.global_step == 2
    assert len(losses.found) == 2
    assert all(map(math.isfinite, losses.found))
    moved = [key for key, value in task.model.named_parameters() if not value.equal(before[key])]
    assert moved


BUILT = {
    repr((config.model.name, config.model.backbone, config.model.model_args)): recipe
    for recipe, config in ((recipe, make()) for recipe, make in RECIPES.items())
}
"""One recipe for every network at its full size."""


@pytest.mark.parametrize("recipe", BUILT.values())
def test_network_of_a_recipe_builds_at_full_size(recipe):
    config = RECIPES[recipe]()
    side = config.data.image_size or SIDE
    with torch.device("meta"):
        model = build_network(
            config,
            num_classes=7,
            in_chans=1 if config.data.name == "fashion_mnist" else 3,
            input_size=(side, side),
        )
    assert sum(parameter.numel() for parameter in model.parameters()) > 10_000


def test_released_weights_that_recipes_start_from_exist():
    named = {config().model.name for config in RECIPES.values()}
    tagged = {name for name in named if ".fb_" in name}
    assert len(tagged) == 3
    assert tagged <= set(RELEASES)


def test_authors_command_is_followed():
    # https://github.com/facebookresearch/deit/issues/185 and the defaults of its main.py.
    config = RECIPES["patchconvnet_s60_imagenet"]()
    assert (config.optim.opt, config.optim.lr, config.data.batch_size) == ("lamb", 3e-3, 2048)
    assert (config.optim.weight_decay, config.optim.warmup_epochs) == (0.05, 5)
    assert (config.data.mixup, config.data.cutmix, config.data.random_erasing) == (0.8, 1.0, 0.25)
    assert config.data.repeated_augmentation == 3


@pytest.mark.parametrize(
    ("recipe", "side"),
    [("patchconvnet_s60_finetune_384", 384), ("patchconvnet_s60_finetune_512", 512)],
)
def test_finetuning_is_at_its_size_and_of_the_network_named(recipe, side):
    config = RECIPES[recipe]()
    assert config.data.image_size == side
    assert config.model.name.startswith(recipe.partition("_finetune")[0])


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_of_a_network_has_its_name(name):
    model = RECIPES[name]().model.name.partition(".")[0]
    own = {"patchconvnet_nano", "resnet18", "retinanet", "mask_rcnn", "upernet"}
    assert model in name or model in own or "nano" in model


def test_recipes_with_figures_of_memory_say_so():
    for name in RECIPES:
        if "mnasnet" in name or "ratio" in name:
            assert "unconfirmed" in RECIPES[name].description


def test_class_tokens_start_from_the_single_token(tmp_path):
    arguments = {"embed_dim": 16, "depth": 1, "num_classes": 5, "layer_scale": 1e-6}
    single = create_model("patchconvnet_s60", **arguments).eval()
    file = tmp_path / "single.pth"
    torch.save({"model": single.state_dict()}, file)
    multi = create_model(
        "patchconvnet_s60_multi", checkpoint=file, own_classifier=True, **arguments
    ).eval()
    assert multi.head.token.equal(single.head.token.expand(5, -1))
    assert multi.head.fc.weight.equal(single.head.fc.weight)
    # With so small a layer scale the tokens hardly hear of the patches: the logits are the same.
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(multi(image), single(image), atol=1e-4, rtol=0)


def test_class_tokens_of_other_classes_start_from_the_single_token(tmp_path):
    arguments = {"embed_dim": 16, "depth": 1}
    single = create_model("patchconvnet_s60", num_classes=5, **arguments)
    file = tmp_path / "single.pth"
    torch.save({"model": single.state_dict()}, file)
    multi = create_model(
        "patchconvnet_s60_multi", checkpoint=file, own_classifier=True, num_classes=3, **arguments
    )
    assert multi.head.token.equal(single.head.token.expand(3, -1))
    assert multi.stem[0].weight.equal(single.stem[0].weight)


def test_multi_class_recipe_finetunes_a_single_token_network(made_up, tmp_path):
    config = small(RECIPES["patchconvnet_s60_multi_finetune"]())
    single = create_model("patchconvnet_s60", num_classes=CLASSES, **config.model.model_args)
    file = tmp_path / "single.pth"
    torch.save({"model": single.state_dict()}, file)
    task = ClassificationJob(config).make_task(file)
    assert task.model.head.token.equal(single.head.token.expand(CLASSES, -1))
