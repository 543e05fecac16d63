import itertools
import os
import pickle
import tracemalloc

import pytest
import torch

from convattn.data import ImageFiles, folders, load_source
from convattn.data.images import digest_of_list
from convattn.data.names import Names

TEXTS = ["a.jpg", "", "ümlaut/\udcff.png", "s3://bucket/b.tar/1.jpg"]


def test_names_are_what_they_were_made_of():
    names = Names(TEXTS)
    assert list(names) == TEXTS
    assert [names[place] for place in range(-4, 4)] == TEXTS * 2
    assert names[1:] == TEXTS[1:]
    assert names[::-2] == TEXTS[::-2]
    assert pickle.loads(pickle.dumps(names)) == names == TEXTS
    assert names != Names(TEXTS[:3])
    assert names != Names(["a.jp", "g", *TEXTS[2:]])
    assert len(Names([])) == 0
    for place in (4, -5):
        with pytest.raises(IndexError):
            names[place]


@pytest.mark.long
def test_listing_classes_holds_names_once(tmp_path, monkeypatch):
    """Of 40 classes of 5,000 names the peak is less than a list of paths would be."""
    for split, name in itertools.product(("train", "val"), range(40)):
        (tmp_path / split / f"kind{name:02d}").mkdir(parents=True)
    entries = folders._entries

    def made_up(folder):
        if not os.path.basename(folder).startswith("kind"):
            return entries(folder)
        names = [f"image-{place:06d}.jpg" for place in range(5000)]
        return (Made(name, f"{folder}/{name}") for name in names)

    monkeypatch.setattr(folders, "_entries", made_up)
    tracemalloc.start()
    source = load_source("folder", root=tmp_path, format="folder")
    digest_of_list(source.train)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    count = len(source.train) + len(source.test)
    length = len(source.train.paths[0])
    assert count == 400_000
    assert peak < count * (length + 49)  # a text of Python takes as much, a list of them 8 more


class Made:
    def __init__(self, name, path):
        self.name, self.path = name, path

    def is_dir(self):
        return False

    def is_symlink(self):
        return False

    def is_file(self):
        return True


def private_pages():
    """MB that this process has written itself."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty")) / 1e3


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux")
def test_worker_that_reads_names_gets_no_copy_of_them():
    count = 200_000
    images = ImageFiles([f"images/{place:08d}.jpg" for place in range(count)], torch.zeros(count))
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        before = private_pages()
        for place in range(count):
            images.paths[place]
        os.write(writing, b"%d" % round(private_pages() - before))
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 99)) < 4  # a list's names take 14
