"""Shards in object storage, over HTTP from a server that speaks S3's protocol on this machine."""

import json
import random
from pathlib import Path

import pytest
import torch

from convattn.cli import main
from convattn.data import UnreadableImageError, load_detection, load_segmentation, load_source
from convattn.tasks import train
from tests.data.dense_folders import write_coco, write_masks
from tests.data.test_dense_shards import assert_same
from tests.data.test_shards import FORMATS, assert_same_images, assert_same_source, shard
from tests.data.test_sources import make_classes
from tests.noise import write_noise
from tests.train.conftest import digest
from tests.train.test_shards import config

moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
pytest.importorskip("s3fs")

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that only these tests need


@pytest.fixture(scope="module")
def server():
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """Copies a folder into a bucket: its address there."""
    settings = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")

    def put(folder):
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                key = f"{tmp_path.name}/{file.relative_to(tmp_path).as_posix()}"
                client.upload_file(str(file), "shards", key)
        return f"s3://shards/{tmp_path.name}/{Path(folder).relative_to(tmp_path).as_posix()}"

    return put


@pytest.fixture
def litdata_over_http(monkeypatch, tmp_path):
    """Litdata's client, which refuses what is not HTTPS, and its cache in a place of the test."""
    pytest.importorskip("litdata")
    from litdata.streaming import downloader
    from litdata.utilities import dataset_utilities

    monkeypatch.setitem(downloader._OBSTORE_CLIENT_OPTIONS, "allow_http", True)
    monkeypatch.setattr(dataset_utilities, "_DEFAULT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path):
    make_classes(tmp_path / "images" / "train", ants=9, bees=7, wasps=4)
    make_classes(tmp_path / "images" / "val", ants=2, bees=2, wasps=1)
    make_classes(tmp_path / "images" / "test", ants=3, bees=2, wasps=2)
    return tmp_path / "images"


@pytest.mark.long
@pytest.mark.parametrize("place", ["", "/train-{000000..000003}.tar"])
def test_tars_are_the_folder_to_the_bit(place, images, bucket, tmp_path):
    address = bucket(shard(images, tmp_path / "out"))
    found = load_source("webdataset", root=address + place)
    assert_same_source(found, load_source("folder", root=images))


@pytest.mark.long
def test_chunks_are_the_folder_to_the_bit(images, bucket, litdata_over_http, tmp_path):
    address = bucket(shard(images, tmp_path / "out", format="litdata"))
    found = load_source("litdata", root=address)
    assert_same_source(found, load_source("folder", root=images))
    backwards = torch.arange(len(found.train)).flip(0)
    assert_same_images(
        found.train.select(backwards),
        load_source("folder", root=images).train.select(backwards),
    )


@pytest.mark.long
def test_tars_of_others(images, bucket, tmp_path):
    out = shard(images, tmp_path / "out")
    for file in out.rglob("*.json"):
        file.unlink()
    root = f"{bucket(out)}/{{train-{{000000..000003}},test-{{000000..000001}}}}.tar"
    found = load_source("webdataset", root=root)
    assert_same_images(found.test, load_source("folder", root=images).test)


@pytest.mark.long
@pytest.mark.parametrize("format", FORMATS)
def test_boxes_and_masks(format, bucket, litdata_over_http, tmp_path):
    for write, load, more in (
        (write_coco, load_detection, {"masks": False}),
        (write_masks, load_segmentation, {}),
    ):
        folder, out = write(tmp_path / write.__name__), tmp_path / f"out_{write.__name__}"
        assert main(["shard", str(folder), str(out), "--format", format, "--shard-size", "3"]) == 0
        assert_same(load(format, root=bucket(out), **more), load("folder", root=folder, **more))


@pytest.mark.long
@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize("format", FORMATS)
def test_training_ends_with_the_weights_of_the_folders(format, bucket, litdata_over_http, tmp_path):
    write_noise(tmp_path / "images", num_train=13)
    expected = train(config(tmp_path / "images", "folder", tmp_path / "one"))
    address = bucket(shard(tmp_path / "images", tmp_path / "out", format=format))
    found = train(config(address, format, tmp_path / "other", num_workers=2))
    assert digest(found.folder) == digest(expected.folder)


@pytest.mark.long
@pytest.mark.parametrize("format", FORMATS)
def test_reading_leaves_the_generator_of_augmentation(
    format, images, bucket, litdata_over_http, tmp_path
):
    train = load_source(format, root=bucket(shard(images, tmp_path / "out", format=format))).train
    random.seed(3)
    expected = random.random()
    random.seed(3)
    train[0]
    assert random.random() == expected


@pytest.mark.long
def test_what_is_not_there_is_told(images, bucket, tmp_path):
    out = shard(images, tmp_path / "out")
    address = bucket(out)
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no index.json"):
        load_source("webdataset", root=f"{address}/nowhere")
    with pytest.raises(FileNotFoundError, match=r"other-000000.tar does not exist"):
        load_source("webdataset", root="s3://shards/other-{000000..000001}.tar")
    train = load_source("webdataset", root=address).train
    client = boto3.client("s3")
    client.delete_object(Bucket="shards", Key=train.paths[0].split("/", 3)[3].rsplit("/", 1)[0])
    with pytest.raises(UnreadableImageError, match="no longer there"):
        train[0]


@pytest.mark.long
def test_shard_that_is_cut_short_is_told(images, bucket, tmp_path):
    out = shard(images, tmp_path / "out")
    file = out / "train-000001.tar"
    file.write_bytes(file.read_bytes()[:-100])
    assert json.loads((out / "index.json").read_text())["finished"]
    with pytest.raises(ValueError, match="it is cut short, or another file"):
        load_source("webdataset", root=bucket(out))
