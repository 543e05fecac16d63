import dataclasses
import inspect
import json
import typing

import pytest

from convattn import POOLS, augment
from convattn.config import (
    DEFAULT_POOL,
    AugmentConfig,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    PoolName,
    TrainConfig,
)
from convattn.recipes import RECIPES

FULL = TrainConfig(
    recipe="all",
    data=DataConfig(scale=(0.5, 1.0), root="somewhere", auto_augment="rand-m9"),
    model=ModelConfig(name="resnet10t", model_args={"global_pool": "avg", "block_args": 3}),
    augment=AugmentConfig(
        pool="class-attention", conv=("last-2-stages", "layer1.*"), attn_downsample=2, freeze=True
    ),
    optim=OptimConfig(
        betas=(0.9, 0.95), schedule="multistep", decay_milestones=(3, 6), opt_args={"eps": 1e-6}
    ),
    devices=2,
    ema_decay=0.99,
)


def test_json_round_trip_is_exact():
    assert TrainConfig.from_json(FULL.to_json()) == FULL


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_survives_the_round_trip_and_bears_its_name(name):
    config = RECIPES[name]()
    assert TrainConfig.from_json(config.to_json()) == config
    assert config.recipe == name


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_states_the_papers_result_ours_hardware_and_time(name):
    text = RECIPES[name].description
    assert all(word in text for word in ("Paper", "Ours", "Hardware", "Time"))


def test_missing_fields_keep_their_defaults():
    assert TrainConfig.from_json('{"epochs": 3}') == TrainConfig(epochs=3)


def test_run_of_before_there_was_augment_adds_no_attention():
    values = json.loads(TrainConfig().to_json())
    del values["augment"]
    assert TrainConfig.from_json(json.dumps(values)).augment == AugmentConfig()
    assert AugmentConfig().pool is None
    assert not AugmentConfig().conv


def test_defaults_are_those_of_augment():
    parameters = inspect.signature(augment).parameters
    ours = dataclasses.asdict(AugmentConfig())
    common = ours.keys() - {"lr_scale", "freeze", "conv"}
    assert common == parameters.keys() - {"model", "conv", "input_size", "inplace"}
    assert {name: ours[name] for name in common} == {
        name: parameters[name].default for name in common
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 3}', "unknown field epoch; the nearest is epochs"),
        ('{"optim": {"lrr": 3}}', r"unknown field optim.lrr; the nearest is optim.lr"),
        ('{"epochs": "three"}', "epochs is 'three', expected int"),
        ('{"data": {"scale": [0.1]}}', r"data.scale is \(0.1,\)"),
        ('{"precision": "8"}', "precision is '8'"),
        ('{"epochs": true}', "epochs is True"),
        ('{"augment": {"pool": "most"}}', "augment.pool is 'most'"),
        ('{"augment": {"attn_downsample": "no"}}', "augment.attn_downsample is 'no'"),
        ('{"data": 3}', "data must be an object of fields"),
        ("[]", "the whole must be an object of fields"),
        ("{", "is not JSON"),
        ('{"epochs": 0}', "epochs=0 must be at least 1"),
    ],
)
def test_bad_json_says_what_is_wrong_with_which_field(text, message):
    with pytest.raises(ValueError, match=f"file.json.*{message}"):
        TrainConfig.from_json(text, "file.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(batch_size=0), r"data.batch_size=0"),
        (lambda: DataConfig(hflip=1.5), r"data.hflip=1.5"),
        (lambda: DataConfig(repeated_augmentation=0), r"data.repeated_augmentation=0"),
        (lambda: AugmentConfig(pool="attention", lr_scale=0), r"augment.lr_scale=0 must be above"),
        (lambda: AugmentConfig(lr_scale=3), "augment.lr_scale is about new attention"),
        (lambda: AugmentConfig(pool_norm=True), "augment.pool_norm=True is about the pool"),
        (lambda: AugmentConfig(conv=("all",), mlp_ratio=2.0), "augment.mlp_ratio=2.0 is about"),
        (lambda: AugmentConfig(freeze=True), "augment.freeze is about .* give augment.pool"),
        (lambda: OptimConfig(lr=-1), r"optim.lr=-1"),
        (lambda: OptimConfig(schedule="multistep"), "needs optim.decay_milestones"),
        (lambda: TrainConfig(ema_decay=1.0), "ema_decay=1.0"),
        (lambda: TrainConfig(accumulate=3), "nearest that works: 129"),
        (lambda: TrainConfig(seed=-1), "seed=-1"),
    ],
)
def test_impossible_value_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_field_is_explained():
    # The strings under the fields are the command line's help; ast sees them, Python does not.
    import ast

    from convattn import config

    for node in ast.parse(inspect.getsource(config)).body:
        # The parts of a TrainConfig are explained by their own classes.
        if isinstance(node, ast.ClassDef) and node.name != "TrainConfig":
            for item, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(item, ast.AnnAssign):
                    assert isinstance(after, ast.Expr), f"{node.name}.{ast.unparse(item.target)}"


def test_json_spells_out_every_field():
    values = json.loads(TrainConfig().to_json())
    assert set(values) == {item.name for item in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"pool": "attention", "pool_heads": 2, "mlp_ratio": 3.0}, ("aggregation", 2, 3.0)),
        ({"pool": "class-attention", "pool_heads": 1}, ("class-attention", 1, None)),
        ({"pool": None, "pool_heads": 1, "mlp_ratio": 3.0}, (None, None, None)),
        ({"pool": "attention"}, ("attention", None, None)),
    ],
)
def test_attention_in_a_run_from_before_the_light_pools_is_the_papers_block(before, after):
    augment = TrainConfig.from_json(json.dumps({"augment": before})).augment
    assert (augment.pool, augment.pool_heads, augment.mlp_ratio) == after
    again = TrainConfig.from_json(TrainConfig(augment=augment).to_json()).augment
    assert again == augment


@pytest.mark.parametrize("choice", [{"prefetch_factor": 4}, {"persistent_workers": True}])
def test_what_is_about_workers_is_refused_without_any(choice):
    name, value = next(iter(choice.items()))
    with pytest.raises(ValueError, match=rf"data.{name}={value} is about processes that load") as e:
        DataConfig(**choice)
    assert "\n" not in str(e.value)
    assert DataConfig(num_workers=1, **choice).is_same(DataConfig())


def test_names_of_pools_are_those_of_the_table():
    assert set(typing.get_args(PoolName)) == {"attention", "class-attention", *POOLS}
    assert DEFAULT_POOL in POOLS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(num_workers=100_000), "data.num_workers=100000 must be at most 1,024"),
        (lambda: DataConfig(num_train=10**12), "data.num_train=1000000000000 must be at most"),
        (lambda: DataConfig(image_size=10**7), "data.image_size=10000000 must be at most 16,384"),
        (lambda: DataConfig(image_size=0), "data.image_size=0 must be at least 1"),
        (lambda: DataConfig(mixup=float("inf")), "data.mixup=inf is no number"),
        (lambda: DataConfig(scale=(float("nan"), 1.0)), "data.scale=nan is no number"),
        (lambda: ModelConfig(drop_path_rate=float("nan")), "model.drop_path_rate=nan is no number"),
        (lambda: ModelConfig(drop_rate=1.5), "model.drop_rate=1.5 must be at most 1"),
        (lambda: OptimConfig(lr=float("nan")), "optim.lr=nan is no number"),
        (lambda: TrainConfig(devices=-7), "devices=-7 must be at least 1"),
        (lambda: TrainConfig(epochs=10**12), "epochs=1000000000000 must be at most"),
        (lambda: TrainConfig(seed=2**64), "seed=18446744073709551616 must be at most"),
        (lambda: FinetuneConfig(minutes=float("inf")), "minutes=inf is no number"),
    ],
)
def test_numbers_beyond_any_use_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
