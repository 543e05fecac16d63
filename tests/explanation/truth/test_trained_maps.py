import pytest
import torch
from torch import nn

from convattn.explanation.geometry import Grid
from convattn.explanation.truth import train_masks, trained_look
from convattn.explanation.truth.measures import energy_in_mask
from convattn.explanation.truth.sanity import rank_correlation
from convattn.explanation.truth.trained_maps import ClassMasks, mask_loss

from .stripes import make_network, make_stripes, train


@pytest.fixture(scope="module")
def model():
    return train()


def batches():
    images, _, _ = make_stripes(512, seed=3)
    while True:
        yield from images.split(32)


@pytest.fixture(scope="module")
def masks(model):
    return train_masks(model, batches(), 100)


def test_little_of_the_image_keeps_the_class(model, masks):
    images, labels, there = make_stripes(60, seed=7)
    maps, grid = trained_look({model: masks}, images)(model, images, labels)
    assert energy_in_mask(maps, there, grid).mean() > 4 * there.double().mean()
    kept = model(images * grid.heat(maps)[:, None]).argmax(1)
    assert (kept == labels).double().mean() > 0.95
    assert maps.mean() < 0.2


def test_another_class_has_another_map(model, masks):
    images, labels, _ = make_stripes(60, seed=7)
    look = trained_look({model: masks}, images)
    one, _ = look(model, images, labels)
    other, _ = look(model, images, (labels + 1) % 3)
    assert rank_correlation(one, other).mean() < 0.9


def test_the_network_is_left_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.zero_grad()
    train_masks(model, batches(), 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_network_of_another_seed_is_asked_by_its_own_masks(model, masks):
    other = train(seed=1)
    own = train_masks(other, batches(), 5)
    images, labels, _ = make_stripes(4, seed=7)
    both = trained_look({model: masks, other: own}, images)
    alone = trained_look({other: own}, images)
    torch.testing.assert_close(
        both(other, images, labels)[0], alone(other, images, labels)[0], rtol=0, atol=0
    )


def test_a_random_copy_is_asked_by_the_first_ones_masks(model, masks):
    images, labels, _ = make_stripes(4, seed=7)
    random = make_network(seed=2).eval()
    maps, _ = trained_look({model: masks}, images)(random, images, labels)
    features = random[:4](images)  # its last map is the second ReLU's
    torch.testing.assert_close(maps, masks(features, labels))


def test_channels_last_networks_are_read_as_they_are():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last, self.head = (
                nn.Conv2d(1, 8, 3, 2, 1),
                nn.Identity(),
                nn.Linear(8, 3),
            )

        def forward(self, x):
            x = self.last(self.body(x).permute(0, 2, 3, 1))
            return self.head(x.mean((1, 2)))

    network = Swapped().eval()
    images, labels, _ = make_stripes(4)
    maps, grid = trained_look({network: train_masks(network, [images], 1)}, images)(
        network, images, labels
    )
    assert maps.shape == (4, 12, 12)
    assert grid.feat_size == (12, 12)


def test_the_loss_is_the_slow_loops():
    torch.manual_seed(0)
    network = make_network().eval()
    images, labels, _ = make_stripes(2)
    grid = Grid.of_pixels((24, 24))
    maps = torch.rand(2, 24, 24)
    with torch.no_grad():
        said = network(torch.stack([image * one for image, one in zip(images, maps, strict=True)]))
    chance = said.softmax(1)
    kept = -sum(float(chance[n, labels[n]].log()) for n in range(2)) / 2
    area = sum(float(value) ** 0.3 for value in maps.flatten()) / maps.numel()
    steps = [
        sum(
            float((one[y + dy, x + dx] - one[y, x]) ** 2)
            for one in maps
            for y in range(24 - dy)
            for x in range(24 - dx)
        )
        / (2 * 24 * 23)
        for dy, dx in ((1, 0), (0, 1))
    ]
    expected = 1.5 * kept + 2 * area + 0.01 * sum(steps)
    with torch.no_grad():
        loss = mask_loss(network, images, labels, maps, grid)
    assert float(loss) == pytest.approx(expected, 1e-5)


def test_masks_come_back_from_their_tensors(masks):
    again = ClassMasks.of(masks.state_dict())
    features = torch.randn(2, 16, 5, 6)
    labels = torch.tensor([0, 2])
    assert torch.equal(again(features, labels), masks(features, labels))
