from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from convattn.config import DataConfig
from convattn.data import ImageFiles, TensorImages, UnreadableImageError
from convattn.train.datamodule import Batch, EpochBatches, SeededBatches, TrainingData


def batches(epoch=0, **arguments):
    sampler = EpochBatches(arguments.pop("num_images", 23), 8, **{"seed": 3, **arguments})
    sampler.set_epoch(epoch)
    return list(sampler)


def test_epoch_shows_no_image_twice_and_drops_the_rest():
    shown = [index for batch in batches() for index in batch.indices]
    assert len(shown) == 16
    assert len(set(shown)) == 16
    assert set(shown) < set(range(23))


def test_repeated_images_follow_one_another_in_an_epoch_of_the_same_length():
    shown = [index for batch in batches(repeats=3) for index in batch.indices]
    assert len(shown) == 16
    assert shown == [index for index in dict.fromkeys(shown) for _ in range(3)][:16]


def test_order_changes_with_epoch_and_seed_and_with_nothing_else():
    first = batches()
    assert batches() == first
    assert batches(epoch=1) != first
    assert batches(seed=4) != first


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (4, 1), (2, 2)])
def test_ranks_and_parts_share_out_each_steps_images(world_size, accumulate):
    whole = [batch.indices for batch in batches()]
    ranks = [
        batches(rank=rank, world_size=world_size, accumulate=accumulate)
        for rank in range(world_size)
    ]
    for step, indices in enumerate(whole):
        shared = [
            index
            for part in range(accumulate)
            for rank in ranks
            for index in rank[step * accumulate + part].indices
        ]
        assert shared == indices


def test_parts_and_ranks_are_augmented_differently():
    seeds = [batch.seed for rank in (0, 1) for batch in batches(rank=rank, world_size=2)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("start_step", [0, 1, 2, 5])
def test_resumed_sampler_goes_on_where_the_other_stopped(start_step):
    epoch, skipped = divmod(start_step, 2)
    resumed = EpochBatches(23, 8, seed=3, accumulate=2, start_step=start_step)
    assert resumed.epoch == epoch
    assert len(resumed) == 4
    assert list(resumed) == batches(epoch=epoch, accumulate=2)[2 * skipped :]
    resumed.set_epoch(epoch + 1)
    assert list(resumed) == batches(epoch=epoch + 1, accumulate=2)


class Noise(Dataset):
    """Items that are nothing but the augmentation's random numbers."""

    def __getitem__(self, index):
        return torch.rand(3) + index


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_depends_on_the_batch_and_not_on_the_worker(num_workers):
    sampler = EpochBatches(16, 4, seed=0)
    loader = DataLoader(SeededBatches(Noise()), batch_sampler=sampler, num_workers=num_workers)
    given = torch.stack(list(loader))
    expected = []
    for seed, indices in EpochBatches(16, 4, seed=0):
        torch.manual_seed(seed)
        expected.append(torch.stack([torch.rand(3) + index for index in indices]))
    assert torch.equal(given, torch.stack(expected))


def test_loading_a_batch_leaves_the_generators_of_the_training_alone():
    images = TensorImages(
        torch.zeros(4, 1, 2, 2, dtype=torch.uint8),
        torch.arange(4),
        transform=lambda batch: torch.rand(batch.shape),
    )
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    SeededBatches(images).__getitems__(Batch(seed=1, indices=[0, 1]))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("choice", ["error", "skip"])
def test_training_stops_at_a_damaged_image_or_goes_on_as_told(tmp_path, capsys, choice):
    paths = []
    for number in range(4):
        paths.append(str(tmp_path / f"{number}.jpg"))
        Image.effect_noise((64, 64), 50).convert("RGB").save(paths[-1])
    whole = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(whole[: len(whole) // 2])
    images = ImageFiles(paths, torch.arange(4), transform=to_tensor)
    config = DataConfig(batch_size=4, bad_images=choice)
    data = TrainingData(config, train=images, val=images, cfg={}, seed=0)
    batches = SeededBatches(data.train_images)
    if choice == "error":
        with pytest.raises(UnreadableImageError, match=r"2\.jpg cannot be read as an image"):
            batches.__getitems__(Batch(seed=0, indices=[0, 1, 2, 3]))
        return
    assert [label for _, label in batches.__getitems__(Batch(0, [0, 1, 2, 3]))] == [0, 1, 3, 3]
    assert "2.jpg cannot be read as an image" in capsys.readouterr().err


def loader(device="cpu", **choices):
    """Of training batches, on a device that need not be there."""
    images = TensorImages(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), torch.arange(8))
    data = TrainingData(
        DataConfig(batch_size=4, **choices), train=images, val=images, cfg={}, seed=0
    )
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy)
    return data.train_dataloader()


def test_workers_are_as_asked_for():
    found = loader(num_workers=2)
    assert (found.persistent_workers, found.prefetch_factor, found.pin_memory) == (True, 2, False)
    found = loader(num_workers=2, persistent_workers=False, prefetch_factor=5)
    assert (found.persistent_workers, found.prefetch_factor) == (False, 5)
    assert not loader(persistent_workers=False).persistent_workers


def test_memory_is_pinned_where_a_gpu_copies():
    assert loader("cuda").pin_memory
    assert not loader("cuda", pin_memory=False).pin_memory
    with pytest.raises(ValueError, match=r"pin_memory=True is for .* and cpu trains; leave it out"):
        loader(pin_memory=True)
