import os
import pickle

import pytest
import torch

from convattn.data import ImageFiles
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
