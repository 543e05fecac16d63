import json
import os
from collections import namedtuple

import numpy as np
import pytest
import torch

from convattn.data import TensorImages, train_transform
from convattn.exceptions import Interrupted
from convattn.probing import cache as module
from convattn.probing.cache import MapCache, SeededImages, digest_of, digest_of_images, write_maps
from tests.probing.maps import TRANSFORM, Counted, draw_images, options, write


def by_hand(network, number, seed):
    images = draw_images(number, seed=seed).images
    with torch.no_grad():
        return torch.cat([network(TRANSFORM(image[None])) for image in images])


def test_maps_are_what_the_network_makes_of_each_image(tmp_path):
    cache = write(tmp_path, dtype="float32")
    everything = torch.cat([by_hand(Counted(), 90, 90), by_hand(Counted(), 30, 30)])
    found = cache.read(cache.rows(torch.arange(120)))
    torch.testing.assert_close(found, everything, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_short_formats_round(tmp_path, dtype, error):
    exact = write(tmp_path, dtype="float32").read(torch.arange(120))
    found = write(tmp_path, dtype=dtype).read(torch.arange(120))
    torch.testing.assert_close(found, exact, rtol=error, atol=1e-4)
    assert not torch.equal(found, exact)


def test_the_backbone_sees_each_image_once_and_a_second_call_none(tmp_path):
    network = Counted()
    first = write(tmp_path, network=network)
    assert network.images == 120
    again = write(tmp_path, network=network)
    assert network.images == 120
    assert again.folder == first.folder


def test_an_item_is_a_map_and_its_label(tmp_path):
    cache = write(tmp_path)
    x, label = cache[100]
    assert x.shape == (6, 4, 4)
    assert x.dtype == torch.float32
    assert label == draw_images(30, seed=30).labels[10]


def test_a_stopped_pass_goes_on_and_leaves_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 1)
    whole = write(tmp_path / "whole")
    with pytest.raises(Interrupted, match="goes on"):
        write(tmp_path / "part", network=Counted(stops_after=2))
    network = Counted()
    part = write(tmp_path / "part", network=network)
    assert network.images == 120 - 64
    assert (part.folder / "maps.npy").read_bytes() == (whole.folder / "maps.npy").read_bytes()


def test_what_was_written_but_not_recorded_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 1)
    whole = write(tmp_path / "whole")
    with pytest.raises(Interrupted):
        write(tmp_path / "part", network=Counted(stops_after=2))
    (folder,) = (tmp_path / "part").iterdir()
    with (folder / "maps.npy").open("ab") as file:
        file.write(b"half a map")
    part = write(tmp_path / "part")
    assert (part.folder / "maps.npy").read_bytes() == (whole.folder / "maps.npy").read_bytes()


def test_another_network_or_transform_has_a_folder_of_its_own(tmp_path):
    other = Counted()
    torch.nn.init.zeros_(other.conv.bias)
    folders = {
        write(tmp_path).folder,
        write(tmp_path, network=other).folder,
        write(tmp_path, about={"layer": "last", "mean": 0.5}).folder,
        write(tmp_path, dtype="float32").folder,
    }
    assert len(folders) == 4


def test_a_folder_that_tells_of_other_maps_is_not_read(tmp_path):
    file = write(tmp_path).folder / "cache.json"
    told = json.loads(file.read_text()) | {"layer": "stage3"}
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"cache\.json tells of other maps"):
        write(tmp_path)


def test_a_damaged_folder_is_named(tmp_path):
    folder = write(tmp_path).folder
    (folder / "maps.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"is damaged .*; delete it"):
        MapCache(folder)
    (folder / "cache.json").write_text("{")
    with pytest.raises(ValueError, match=r"cache\.json is damaged"):
        MapCache(folder)
    with pytest.raises(FileNotFoundError, match="is no cache of maps"):
        MapCache(tmp_path)


def test_more_than_the_limit_is_refused_with_smaller_choices(tmp_path):
    with pytest.raises(ValueError, match=r"120 maps of 6x4x4 in float16 take .* --image-size"):
        write(tmp_path, limit=1e-6)
    assert not any(tmp_path.iterdir())


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(OSError, match=r"has 0\.00 GB free; give another --cache"):
        write(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_what_is_there_usable(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 1)
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path)
    network = Counted()
    write(tmp_path, network=network)
    assert network.images == 120 - 64


def test_maps_too_large_for_the_format_are_refused(tmp_path):
    network = Counted()
    with torch.no_grad():
        network.conv.weight.mul_(1e7)
    with pytest.raises(ValueError, match="too large for float16; try --cache-dtype bfloat16"):
        write(tmp_path, network=network)
    write(tmp_path, network=network, dtype="bfloat16")


def test_two_processes_do_not_write_one_cache(tmp_path):
    with pytest.raises(Interrupted):
        write(tmp_path, network=Counted(stops_after=0))
    (folder,) = tmp_path.iterdir()
    with (
        module.FileLock(folder / ".lock"),
        pytest.raises(ValueError, match="is being written by another process"),
    ):
        write(tmp_path)


def test_further_views_are_random_but_the_same_in_any_order():
    images = draw_images(4).with_transform(train_transform(16, scale=(0.5, 1.0)))
    one, other = SeededImages(images, 1), SeededImages(images, 2)
    torch.testing.assert_close(one[2][0], [one[index][0] for index in (3, 2)][1], rtol=0, atol=0)
    assert not torch.equal(one[2][0], other[2][0])
    state = torch.get_rng_state()
    _ = one[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_of_views_and_test_images(tmp_path):
    parts = [draw_images(n, seed=n) for n in (7, 5)]
    seen = [part.with_transform(TRANSFORM) for part in parts]
    cache = write_maps(
        Counted(),
        [seen[0], SeededImages(seen[0], 1), SeededImages(seen[0], 2)],
        seen[1],
        labels=torch.cat([part.labels for part in parts]),
        shape=(6, 4, 4),
        about={},
        options=options(tmp_path),
    )
    assert len(cache) == 3 * 7 + 5
    assert cache.rows(torch.tensor([0, 6, 7, 11]), 0).tolist() == [0, 6, 21, 25]
    assert cache.rows(torch.tensor([0, 6]), torch.tensor([1, 2])).tolist() == [7, 20]
    assert [cache.image_of(row) for row in (0, 7, 20, 21, 25)] == [0, 0, 6, 7, 11]


def test_digests_tell_networks_and_images_apart(tmp_path):
    assert digest_of(Counted()) == digest_of(Counted())
    assert digest_of(Counted()) != digest_of(Counted(7))
    images = draw_images(5)
    changed = TensorImages(images.images ^ 1, images.labels)
    assert digest_of_images(images) != digest_of_images(changed)


def test_the_file_is_numpys_own(tmp_path):
    cache = write(tmp_path)
    assert np.load(cache.folder / "maps.npy").shape == (120, 6, 4, 4)
