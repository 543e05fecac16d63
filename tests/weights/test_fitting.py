import pytest
import timm
import torch
from timm.models import adapt_input_conv

from convattn.runs.build import create_model, load_weights
from convattn.weights import patchconvnet_from_released
from tests.weights.checkpoints import golden_network, write_checkpoint

SIZES = {"embed_dim": 64, "depth": 3, "num_classes": 10}
NETWORKS = {
    "single_token": ("patchconvnet_s60", SIZES),
    "four_heads": ("patchconvnet_s60", SIZES | {"num_heads": 4}),
    "ratio4": ("patchconvnet_b60", SIZES | {"mlp_ratio": 4.0}),
    "multi_token": ("patchconvnet_s60_multi", SIZES),
}


@pytest.fixture
def files(tmp_path):
    """The golden networks' files as they would have been released."""
    return {
        name: write_checkpoint(tmp_path / f"{name}.pth", golden_network(name)[0])
        for name in NETWORKS
    }


def from_file(name, file, **words):
    """By timm's own function, as ``pretrained=True`` would have downloaded it."""
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **words
    ).eval()


@pytest.mark.parametrize("way", ["timm", "checkpoint"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_released_file_gives_the_golden_logits(network, way, files):
    name, sizes = NETWORKS[network]
    _, image, logits = golden_network(network)
    if way == "timm":
        model = from_file(name, files[network], **sizes)
    else:
        model = create_model(name, checkpoint=files[network], **sizes).eval()
    torch.testing.assert_close(model.double()(image), logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("network", ["single_token", "multi_token"])
def test_other_classes_start_with_a_classifier_of_their_own(network, files):
    name, sizes = NETWORKS[network]
    torch.manual_seed(1)
    model = from_file(name, files[network], **sizes | {"num_classes": 7}).state_dict()
    theirs = patchconvnet_from_released(golden_network(network)[0])
    fresh = {n for n in model if n not in theirs or not torch.equal(model[n], theirs[n])}
    tokens = {"head.token"} if network == "multi_token" else set()
    assert fresh == {"head.fc.weight", "head.fc.bias"} | tokens
    assert len(model["head.fc.weight"]) == 7
    assert 0 < model["head.fc.weight"].std() < 0.1


@pytest.mark.parametrize("network", ["single_token", "multi_token"])
def test_no_classes_are_as_a_classifier_that_is_taken_off(network, files):
    name, sizes = NETWORKS[network]
    image = golden_network(network)[1].float()
    without = from_file(name, files[network], **sizes | {"num_classes": 0})
    taken_off = from_file(name, files[network], **sizes)
    taken_off.reset_classifier(0)
    assert torch.equal(without(image), taken_off(image))


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channels_get_the_first_convolution_as_timm_adapts_it(in_chans, files):
    name, sizes = NETWORKS["single_token"]
    theirs = golden_network("single_token")[0]["patch_embed.proj.0.0.weight"].float()
    model = from_file(name, files["single_token"], in_chans=in_chans, **sizes)
    assert torch.equal(model.stem[0].weight, adapt_input_conv(in_chans, theirs))
    assert model(torch.randn(1, in_chans, 40, 56)).shape == (1, 10)


def test_training_starts_from_it_with_other_classes_and_channels(files):
    name, sizes = NETWORKS["multi_token"]
    model = create_model(
        name,
        checkpoint=files["multi_token"],
        own_classifier=True,
        **sizes | {"num_classes": 7, "in_chans": 1},
    )
    theirs = patchconvnet_from_released(golden_network("multi_token")[0])
    assert torch.equal(model.stem[0].weight, adapt_input_conv(1, theirs["stem.0.weight"]))
    assert model.head.token.shape[0] == 7
    assert torch.equal(model.head.mlp[0].weight, theirs["head.mlp.0.weight"])


def test_features_only_are_those_of_the_whole_network(files):
    name, sizes = NETWORKS["single_token"]
    image = golden_network("single_token")[1].float()
    backbone = from_file(
        name, files["single_token"], features_only=True, out_indices=[0, 2], **sizes
    )
    whole = from_file(name, files["single_token"], **sizes)
    expected = whole.forward_intermediates(image, [0, 2], intermediates_only=True)
    for one, other in zip(backbone(image), expected, strict=True):
        assert torch.equal(one, other)


def test_without_a_pool_the_trunk_is_loaded(files):
    name, sizes = NETWORKS["single_token"]
    trunk = from_file(name, files["single_token"], global_pool="", **sizes | {"num_classes": 0})
    whole = from_file(name, files["single_token"], **sizes)
    image = golden_network("single_token")[1].float()
    assert torch.equal(trunk(image), whole.forward_features(image))


def test_another_pool_has_other_tensors(files):
    name, sizes = NETWORKS["single_token"]
    with pytest.raises(
        ValueError, match=r"19 tensors differ: head\.attn\.k\.bias 64 is unknown to the"
    ):
        from_file(name, files["single_token"], global_pool="avg", **sizes)


def test_a_file_of_another_architecture_tells_which(s60):
    message = r"holds another model .*: stem\.0\.weight is .*; create patchconvnet_s60 with num_c"
    message += "lasses=1000, whose tensors these are"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        from_file("patchconvnet_b60", s60, depth=60, embed_dim=128)


def test_another_head_names_its_tensors(s60_multi):
    message = (
        r"head\.token is 1000x384 in the file, 1x384 in the model; create patchconvnet_s60_multi"
    )
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        from_file("patchconvnet_s60", s60_multi)


def test_a_file_of_other_classes_than_the_config_says_is_refused(files):
    name, sizes = NETWORKS["single_token"]
    message = r"head\.fc\.weight is 10x64 in the file, 1000x64 in the model"
    with pytest.raises(ValueError, match=message):
        from_file(name, files["single_token"], **sizes | {"num_classes": 1000})


def test_a_refused_file_leaves_the_network_as_it_was(files):
    name, sizes = NETWORKS["single_token"]
    model = create_model(name, **sizes | {"num_classes": 7})
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="holds another model or another number of classes"):
        load_weights(model, files["single_token"])
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["s60", "s60_multi"])
def test_every_value_of_a_whole_checkpoint_arrives(kind, request):
    file = request.getfixturevalue(kind)
    model = from_file(f"patchconvnet_{kind}", file)
    theirs = patchconvnet_from_released(torch.load(file, weights_only=False)["model"])
    ours = model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_tensors_in_memory_go_timm_s_own_way(files):
    name, sizes = NETWORKS["single_token"]
    tensors, image, logits = golden_network("single_token")
    model = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": {"model": tensors}, "num_classes": 10},
        **sizes,
    )
    torch.testing.assert_close(model.eval().double()(image), logits, rtol=0, atol=1e-9)
