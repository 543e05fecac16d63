from dataclasses import replace
from pathlib import Path

import convattn
from convattn.config import ModelConfig
from convattn.recipes import RECIPES
from convattn.recipes.record import vary_model, without_leftovers
from convattn.weights import RELEASES


def words(recipe):
    """The description without its line breaks."""
    return " ".join(recipe.description.split())


def test_description_states_the_papers_figures_and_what_is_inferred():
    assert words(RECIPES["aa_resnet34_imagenet"]) == (
        "Attention-augmented ResNet-34 on ImageNet. "
        "Paper (arXiv 1904.09925, table 2): 74.7 % top-1, 92.0 % top-5. Ours: not trained yet. "
        "Hardware: 8 GPUs. Time: not measured. Inferred: as ``aa_resnet50_imagenet``."
    )


def test_description_states_what_we_reached():
    assert words(RECIPES["cluttered_digits_retinanet"]).endswith(
        "Paper: none. Ours, seeds 0 to 2: 91.8 / 92.5 / 91.1 % AP50. Hardware: one CPU core. "
        "Time: 7 minutes, up to 10 beside other work."
    )


def test_description_follows_the_row():
    recipe = RECIPES["aa_resnet34_imagenet"]
    changed = replace(recipe, row=replace(recipe.row, score="12.3", score_known=False))
    assert "12.3 % top-1, 92.0 % top-5, by memory and unconfirmed" in words(changed)


def test_recipe_of_another_model_shares_all_else():
    base = RECIPES["aa_resnet50_imagenet"].config
    other = vary_model(base, "other", name="resnet18")
    assert (other.recipe, other.model.name) == ("other", "resnet18")
    assert replace(other, recipe=base.recipe, model=base.model) == base


def test_released_weights_are_of_the_network_that_the_recipe_trains_at_that_size():
    rows = {name: recipe.row for name, recipe in RECIPES.items() if recipe.row is not None}
    released = {name: RELEASES[row.release] for name, row in rows.items() if row.release}
    assert len(released) == len(RELEASES)
    for name, release in released.items():
        config = RECIPES[name].config
        assert config.model.name.partition(".")[0] == release.model
        assert config.data.image_size == release.pixels


def test_what_nobody_has_trained_is_said_in_one_place():
    files = Path(convattn.__file__).parent.rglob("*.py")
    assert sum(file.read_text().count("not trained yet") for file in files) == 1


def test_another_backbone_leaves_what_the_recipe_chose_for_its_own():
    recipe = ModelConfig(
        name="retinanet",
        backbone="aa_resnet_nano",
        backbone_args={"img_size": 96},
        model_args={"channels": 64, "head_convs": 2},
    )
    other = replace(recipe, backbone="resnet18")
    model, gone = without_leftovers(other, recipe, ())
    assert gone == ["img_size 96", "channels 64"]
    assert (model.backbone_args, model.model_args) == ({}, {"head_convs": 2})
    for told, kept in (
        ({"model_args.channels"}, {"channels": 64, "head_convs": 2}),
        ({"model_args"}, {"channels": 64, "head_convs": 2}),
    ):
        model, gone = without_leftovers(other, recipe, told)
        assert (gone, model.model_args) == (["img_size 96"], kept)
    changed = replace(other, backbone_args={"img_size": 64}, model_args={"channels": 32})
    assert without_leftovers(changed, recipe, ()) == (changed, [])
    assert without_leftovers(recipe, recipe, ()) == (recipe, [])
