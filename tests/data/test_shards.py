import csv
import functools
import http.server
import io
import json
import re
import sys
import tarfile
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from convattn.classification.sharding import shard_data
from convattn.config import DataConfig
from convattn.data import UnreadableImageError, load_source
from convattn.data.drawing import find_duplicates
from convattn.data.shards import expand_braces
from tests.data.test_sources import make_classes


@pytest.fixture
def folder(tmp_path):
    make_classes(tmp_path / "images" / "train", ants=9, bees=7, wasps=4)
    make_classes(tmp_path / "images" / "val", ants=2, bees=2, wasps=1)
    make_classes(tmp_path / "images" / "test", ants=3, bees=2, wasps=2)
    return tmp_path / "images"


FORMATS = ["webdataset", "litdata"]


def need(format):
    if format == "litdata":
        pytest.importorskip("litdata")


def shard(root, out, **options):
    shard_data(DataConfig(name="folder", root=str(root)), out, **{"shard_size": 6, **options})
    return out


def assert_same_images(found, expected):
    assert len(found) == len(expected)
    assert torch.equal(found.labels, expected.labels)
    for one, other in zip(found, expected, strict=True):
        assert one[0].mode == other[0].mode
        assert one[0].tobytes() == other[0].tobytes()
        assert len(one) == len(other)
        assert torch.equal(torch.as_tensor(one[-1]), torch.as_tensor(other[-1]))


def assert_same_source(found, expected):
    for part in ("train", "val", "test"):
        if getattr(expected, part) is None:
            assert getattr(found, part) is None
        else:
            assert_same_images(getattr(found, part), getattr(expected, part))
    for what in ("class_names", "multi_label", "image_size", "in_chans", "mean", "std"):
        assert getattr(found, what) == getattr(expected, what), what


@pytest.mark.parametrize("format", FORMATS)
def test_shards_are_the_folder_to_the_bit(format, folder, tmp_path):
    need(format)
    out = shard(folder, tmp_path / "out", format=format)
    assert_same_source(load_source(format, root=out), load_source("folder", root=folder))


@pytest.mark.parametrize("format", FORMATS)
def test_table_of_several_classes_groups_and_weights(format, tmp_path):
    need(format)
    with (tmp_path / "all.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "red", "round", "small", "split", "group", "weight"])
        for number in range(12):
            name = f"{number}.jpg"
            Image.new("RGB", (7, 6), (20 * number, 9, 1)).save(tmp_path / name)
            labels = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1))[number % 4]
            split = "test" if number in (3, 7, 10) else "train"
            table.writerow([name, *labels, split, f"p{number // 2}", 1 + number / 4])
    expected = load_source("folder", root=tmp_path / "all.csv")
    out = shard(tmp_path / "all.csv", tmp_path / "out", format=format)
    found = load_source(format, root=out)
    assert expected.multi_label
    assert_same_source(found, expected)
    assert torch.equal(found.train.groups, expected.train.groups)
    assert torch.equal(found.train.weights, expected.train.weights)


def test_generated_images_keep_size_mean_and_pixels(tmp_path):
    config = DataConfig(name="cluttered_digits", num_train=5, num_test=3, image_size=32)
    shard_data(config, tmp_path / "out", shard_size=2)
    found = load_source("webdataset", root=tmp_path / "out")
    expected = load_source("cluttered_digits", num_train=5, num_test=3, image_size=32)
    assert (found.image_size, found.mean) == ((32, 32), expected.mean)
    for (image, label), pixels in zip(found.train, expected.train.images, strict=True):
        assert image.tobytes() == pixels.permute(1, 2, 0).contiguous().numpy().tobytes()
        assert label in range(10)


def test_pattern_reads_its_training_shards_and_the_test(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    whole, some = (
        load_source("webdataset", root=out / name)
        for name in ("train-{000000..000003}.tar", "train-{000000,000002}.tar")
    )
    assert_same_source(whole, load_source("folder", root=folder))
    assert len(some.train) == 12
    assert set(some.train.paths) < set(whole.train.paths)
    assert some.train.paths == sorted(some.train.paths, key=lambda path: path.rsplit("/")[-1])
    assert_same_images(some.test, whole.test)


def test_pattern_of_two_folders_reads_both(folder, tmp_path):
    make_classes(tmp_path / "more" / "train", ants=2, bees=3, wasps=4)
    make_classes(tmp_path / "more" / "test", ants=1, bees=1, wasps=1)
    for name in ("images", "more"):
        shard(tmp_path / name, tmp_path / "out" / name)
    root = str(tmp_path / "out" / "{images,more}" / "train-000000.tar")
    found = load_source("webdataset", root=root)
    assert len(found.train) == 12
    assert len(found.test) == 10


def test_test_is_read_without_training_shards(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    for file in out.glob("train-*"):
        file.unlink()
    expected = load_source("folder", root=folder).test
    for root in (out, out / "test-{000000..000001}.tar"):
        found = load_source("webdataset", root=root, class_names=("ants", "bees", "wasps"))
        assert_same_images(found.test, expected)
        assert len(found.train) == 0


def test_test_shards_alone_are_nothing_to_train_on(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="no shards to train on"):
        load_source("webdataset", root=out / "test-{000000..000001}.tar")


def test_copies_in_shards_are_found_as_in_folders(folder, tmp_path):
    copy = folder / "train" / "ants" / "zz.png"
    copy.write_bytes((folder / "train" / "ants" / "003.png").read_bytes())
    found = load_source("webdataset", root=shard(folder, tmp_path / "out"))
    expected = load_source("folder", root=folder)
    assert find_duplicates(found.train.paths) == find_duplicates(expected.train.paths) == [[3, 9]]


def test_images_lie_in_another_order_than_their_classes(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    first = json.loads((out / "train-000000.tar.json").read_text())
    assert len(set(first["classes"])) > 1
    with tarfile.open(out / first["file"]) as tar:
        for name, offset, size in zip(
            first["names"], first["offsets"], first["sizes"], strict=True
        ):
            assert (tar.getmember(name).offset_data, tar.getmember(name).size) == (offset, size)


def test_webdataset_reads_the_same(folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    out = shard(folder, tmp_path / "out")
    expected = load_source("folder", root=folder).test
    with (out / "test-000000.tar").open("rb") as stream:
        files = webdataset.tariterators.tar_file_expander([{"stream": stream, "url": "test"}])
        samples = list(webdataset.tariterators.group_by_keys(files))
    assert len(samples) == 6
    for sample, path, label in zip(samples, expected.paths, expected.labels, strict=False):
        assert sample["png"] == Path(path).read_bytes()
        assert int(sample["cls"]) == label
        assert json.loads(sample["json"])["classes"] == [("ants", "bees", "wasps")[label]]


def test_litdata_reads_the_same(folder, tmp_path):
    litdata = pytest.importorskip("litdata")
    out = shard(folder, tmp_path / "out", format="litdata")
    items = list(litdata.StreamingDataset(str(out / "test")))
    expected = load_source("folder", root=folder).test
    assert [item["cls"] for item in items] == expected.labels.tolist()
    for item, path in zip(items, expected.paths, strict=True):
        assert item["image"] == Path(path).read_bytes()


# --- tars of others


def make_tar(file, *members):
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def jpeg(number):
    written = io.BytesIO()
    Image.new("RGB", (6, 5), (9 * number, 90, 9)).save(written, "JPEG")
    return written.getvalue()


def samples(first, count, classes=3):
    for number in range(first, first + count):
        yield f"{number:04d}.jpg", jpeg(number)
        yield f"{number:04d}.cls", str(number % classes).encode()


def test_tars_of_others_are_read_by_their_names(tmp_path):
    make_tar(tmp_path / "set-train-00.tar", *samples(0, 5))
    make_tar(tmp_path / "set-train-01.tar", *samples(5, 3))
    make_tar(tmp_path / "set-val-00.tar", *samples(9, 4))
    for root in (tmp_path, tmp_path / "set-{train-{00..01},val-00}.tar"):
        source = load_source("webdataset", root=root)
        assert source.class_names == ("0", "1", "2")
        assert source.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
        assert source.test.labels.tolist() == [0, 1, 2, 0]
        assert source.train[6][0].getpixel((0, 0))[0] == pytest.approx(54, abs=2)


def test_tars_of_webdatasets_own_writer(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(20):
            notes = {"class_name": ("cat", "dog")[number % 2]}
            sample = {"jpg": jpeg(number), "cls": number % 2, "json": notes}
            writer.write({"__key__": f"{number:04d}", **sample})
    source = load_source("webdataset", root=tmp_path / "a.tar")
    assert source.class_names == ("cat", "dog")
    assert source.test_drawn
    assert (len(source.train), len(source.test)) == (16, 4)
    assert "no shards of a test" in source.notes[0]
    tested = load_source("webdataset", root=tmp_path / "a.tar", test_all=True)
    assert len(tested.test) == 20


def test_several_classes_in_the_json_of_others(tmp_path):
    notes = [{"classes": ["red", "round"]}, {"classes": []}, {"classes": ["red"]}]
    members = [
        (f"{split}{number}{end}", content)
        for split in ("a", "b")
        for number, note in enumerate(notes)
        for end, content in ((".png", jpeg(number)), (".json", json.dumps(note).encode()))
    ]
    make_tar(tmp_path / "train.tar", *members)
    make_tar(tmp_path / "test.tar", *members[:6])
    source = load_source("webdataset", root=tmp_path)
    assert source.multi_label
    assert source.test.labels.tolist() == [[True, True], [False, False], [True, False]]


BAD_TARS = {
    "holds the key '0001' twice": [*samples(0, 4), ("0001.cls", b"2")],
    "0004.jpg has no label": [*samples(0, 4), ("0004.jpg", jpeg(4))],
    "and no image of the key 'x'": [*samples(0, 4), ("x.cls", b"2")],
    "is empty; expected a class": [*samples(0, 4), ("x.jpg", jpeg(1)), ("x.cls", b" ")],
    "is no JSON": [*samples(0, 4), ("x.jpg", jpeg(1)), ("x.json", b"{")],
    "has the class -1; expected a number from 0": [("x.jpg", jpeg(1)), ("x.json", b'{"cls": -1}')],
    "by number, as 1, and by name, as 'cat'": [
        *samples(1, 1),
        ("x.jpg", jpeg(1)),
        ("x.cls", b"cat"),
    ],
    "are of one class, '0'": [*samples(0, 3, classes=1)],
    "hold no image": [("readme.txt", b"hello")],
}


@pytest.mark.parametrize("message", BAD_TARS)
def test_bad_tars_are_told(message, tmp_path):
    make_tar(tmp_path / "a.tar", *BAD_TARS[message])
    with pytest.raises(ValueError, match=message):
        load_source("webdataset", root=tmp_path)


@pytest.mark.parametrize("kept", [700, 5000])
def test_tar_of_others_that_is_cut_short_is_told(kept, tmp_path):
    file = tmp_path / "a.tar"
    make_tar(file, *samples(0, 9))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a.tar cannot be read as a tar .*cut short"):
        load_source("webdataset", root=tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 99, b"\x1f\x8b\x08" + bytes(900)])
def test_what_is_no_tar_is_told(content, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.tar cannot be read as a tar"):
        load_source("webdataset", root=tmp_path)


# --- bad input


def test_missing_shard_is_told(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    (out / "train-000001.tar").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"train-000001.tar does not exist; write the shards"
    ):
        load_source("webdataset", root=out)
    with pytest.raises(FileNotFoundError, match=r"train-000009.tar does not exist"):
        load_source("webdataset", root=tmp_path / "nowhere" / "train-{000009..000010}.tar")


def test_missing_index_of_a_shard_is_told(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    (out / "train-000001.tar.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000001.tar.json, which tells what is in"):
        load_source("webdataset", root=out)


@pytest.mark.parametrize("content", [b"{}", b"[", b'{"file": 1}', b"\xff"])
def test_damaged_index_of_a_shard_is_told(content, folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    (out / "train-000001.tar.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-000001.tar.json is no index of a shard"):
        load_source("webdataset", root=out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "index.json is damaged"),
        ('{"shard_format": "webdataset"}', r"index.json is damaged \(.*finished"),
        ('{"shard_format": "webdataset", "finished": true}', "it lacks class_names, image_size"),
        (None, r"out is not finished; go on with the same `convattn shard`"),
    ],
)
def test_damaged_or_unfinished_index_is_told(content, message, folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    text = (out / "index.json").read_text().replace('"finished": true', '"finished": false')
    (out / "index.json").write_text(content or text)
    with pytest.raises(ValueError, match=message):
        load_source("webdataset", root=out)


def test_class_that_the_index_does_not_name_is_told(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    file = out / "train-000001.tar.json"
    index = json.loads(file.read_text())
    index["classes"][0] = 3
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"number that index.json does not name, which has 3"):
        load_source("webdataset", root=out)


@pytest.mark.parametrize("format", FORMATS)
def test_shard_that_is_cut_short_is_told(format, folder, tmp_path):
    need(format)
    out = shard(folder, tmp_path / "out", format=format)
    file = max(file for end in ("tar", "bin") for file in out.rglob(f"*.{end}"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="it is cut short, or another file"):
        load_source(format, root=out)


def test_shard_that_is_damaged_while_it_is_read_is_an_unreadable_image(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    train = load_source("webdataset", root=out).train
    (out / "train-000000.tar").write_bytes(b"")
    broken = next(n for n, path in enumerate(train.paths) if "train-000000.tar" in path)
    with pytest.raises(UnreadableImageError, match=r"tar gives 0 bytes where .* cut short"):
        train[broken]
    (out / "train-000000.tar").unlink()
    with pytest.raises(UnreadableImageError, match="it is no longer there"):
        train[broken]


def test_shards_of_other_classes_are_not_mixed(folder, tmp_path):
    for split in ("train", "test"):
        make_classes(tmp_path / "more" / split, ants=2, flies=3)
    for name in ("images", "more"):
        shard(tmp_path / name, tmp_path / "out" / name)
    root = str(tmp_path / "out" / "{images,more}" / "train-000000.tar")
    with pytest.raises(
        ValueError, match="differ in class_names: ants, bees, wasps and ants, flies"
    ):
        load_source("webdataset", root=root)


def test_shards_with_and_without_an_index_are_not_mixed(folder, tmp_path):
    shard(folder, tmp_path / "a")
    make_tar(tmp_path / "b" / "train-000000.tar", *samples(0, 5))
    with pytest.raises(ValueError, match=r"b holds no index.json, and .*a does"):
        load_source("webdataset", root=tmp_path / "{a,b}" / "train-000000.tar")


def test_file_that_the_index_does_not_list_is_told(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"train-000004.tar is not among the shards"):
        load_source("webdataset", root=out / "train-{000000..000004}.tar")


@pytest.mark.parametrize("format", FORMATS)
def test_folder_without_shards_is_told(format, folder):
    with pytest.raises(FileNotFoundError, match=r"holds no index.json of `convattn shard`"):
        load_source(format, root=folder)


def test_other_format_is_told(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds webdataset shards, not litdata; give --data.name"):
        load_source("litdata", root=out)
    with pytest.raises(ValueError, match="names tars, and litdata needs a folder"):
        load_source("litdata", root=out / "train-{000000..000003}.tar")


def test_group_is_for_convattn_shard(folder, tmp_path):
    out = shard(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="give it to `convattn shard`"):
        load_source("webdataset", root=out, group="a")


@pytest.mark.parametrize("pattern", ["a-{}.tar", "a-{x}.tar", "a-{1..}.tar"])
def test_braces_of_no_meaning_are_told(pattern):
    with pytest.raises(ValueError, match="neither a range"):
        expand_braces(pattern)


def test_braces_that_count_down_or_name_no_tar(tmp_path):
    with pytest.raises(ValueError, match=r"expected files that end in .tar"):
        load_source("webdataset", root=tmp_path / "a-{0..3}.zip")


# --- on another computer


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and parts of its files where the server is asked to."""

    ranges = True

    def do_GET(self):
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        if span is None or not self.ranges or not file.is_file():
            super().do_GET()
            return
        first, last = map(int, span.groups())
        content = file.read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(content[first : last + 1])))
        self.end_headers()
        self.wfile.write(content[first : last + 1])

    def log_message(self, *_):
        pass


@pytest.fixture
def served(folder, tmp_path):
    """A folder of shards, and its address."""
    pytest.importorskip("aiohttp")
    out = shard(folder, tmp_path / "out")
    handler = functools.partial(_Ranges, directory=str(out))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield out, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_shards_on_a_server_are_the_folder_to_the_bit(served, folder):
    _, address = served
    expected = load_source("folder", root=folder)
    for root in (address, f"{address}/train-{{000000..000003}}.tar"):
        assert_same_source(load_source("webdataset", root=root), expected)


def test_tars_of_others_on_a_server(served, folder):
    out, address = served
    for file in out.glob("*.json"):
        file.unlink()
    found = load_source(
        "webdataset", root=f"{address}/{{train-{{000000..000003}},test-000000}}.tar"
    )
    assert found.class_names == ("ants", "bees", "wasps")
    assert sorted(found.train.labels.tolist()) == [0] * 9 + [1] * 7 + [2] * 4
    assert_same_images(found.test, load_source("folder", root=folder).test.select(torch.arange(6)))


def test_what_a_server_has_not_or_cannot_is_told(served, monkeypatch):
    out, address = served
    train = load_source("webdataset", root=address).train
    monkeypatch.setattr(_Ranges, "ranges", False)
    with pytest.raises(UnreadableImageError, match="its server knows no ranges"):
        train[0]
    (out / "train-000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000001.tar does not exist"):
        load_source("webdataset", root=address)


def test_address_of_another_kind_names_what_is_missing(monkeypatch):
    with pytest.raises(ValueError, match=r"nosuch://a/.* is of a kind that is not known"):
        load_source("webdataset", root="nosuch://a/train-{0..1}.tar")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3://a/.* needs a package that .*s3fs"):
        load_source("webdataset", root="s3://a/train-{0..1}.tar")
