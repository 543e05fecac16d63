import hashlib
import shutil
import urllib.error
from pathlib import Path

import pytest
import timm
import torch
import torch.hub

import convattn  # noqa: F401  (registers the models)
from convattn.files import hash_file
from convattn.runs.build import create_model
from convattn.weights import RELEASES, cached_path, fetch, read_weights
from tests.weights.checkpoints import golden_network, write_checkpoint

URL = RELEASES["patchconvnet_s60.fb_in1k"].url


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves a small network as every released file; counts how often it is asked."""
    served = write_checkpoint(tmp_path / "served.pth", golden_network("single_token")[0])
    asked = []

    def download(url, target, *_, **__):
        asked.append(url)
        shutil.copy(served, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return served, asked


def test_a_file_is_downloaded_once_and_its_hash_recorded(server):
    served, asked = server
    file = fetch(URL)
    assert fetch(URL) == file == cached_path(URL)
    assert asked == [URL]
    assert file.read_bytes() == served.read_bytes()
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    assert hash_file(file).read_text() == f"{digest}  s60_224_1k.pth\n"
    assert sorted(file.parent.iterdir()) == [file, hash_file(file)]


def test_a_file_that_was_put_there_is_taken_and_known_from_then_on(server, tmp_path):
    served, asked = server
    file = cached_path(URL)
    file.parent.mkdir(parents=True)
    shutil.copy(served, file)
    assert fetch(URL) == file
    assert not asked
    assert hash_file(file).exists()


def test_a_changed_byte_in_the_cache_is_refused(server):
    file = fetch(URL)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"SHA-256 is \w{64}, expected \w{64}; delete both files"):
        create_model("patchconvnet_s60", pretrained=True, embed_dim=64, depth=3, num_classes=10)


def test_a_later_download_must_be_the_same_file(server):
    served, _ = server
    file = fetch(URL)
    file.unlink()
    write_checkpoint(served, golden_network("multi_token")[0])
    with pytest.raises(ValueError, match="delete both files"):
        read_weights(fetch(URL))


def test_half_a_download_leaves_nothing(server):
    served, _ = server
    served.write_bytes(served.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"did not send the weights .*, or get s60_224_1k.pth by"):
        fetch(URL)
    assert list(cached_path(URL).parent.iterdir()) == []


@pytest.mark.parametrize("make", [timm.create_model, create_model])
def test_without_a_network_one_sentence_tells_what_to_put_where(make, monkeypatch):
    def download(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(FileNotFoundError) as caught:
        make("patchconvnet_s60", pretrained=True, depth=1)
    assert str(caught.value) == (
        f"s60_224_1k.pth is not on this machine and could not be downloaded from {URL} (<urlopen "
        "error Name or service not known>); get it by other means and put it at "
        f"{Path(torch.hub.get_dir(), 'checkpoints', 's60_224_1k.pth')}"
    )


def test_timm_downloads_into_the_folder_that_it_is_given(server, tmp_path):
    _, asked = server
    sizes = {"embed_dim": 64, "depth": 3, "num_classes": 10}
    timm.create_model(
        "patchconvnet_s60.fb_in22k_ft_in1k_384",
        pretrained=True,
        cache_dir=tmp_path / "mine",
        **sizes,
    )
    assert asked == ["https://dl.fbaipublicfiles.com/deit/s60_384_21k.pth"]
    assert (tmp_path / "mine" / "s60_384_21k.pth.sha256").exists()


@pytest.mark.weights
@pytest.mark.parametrize("name", sorted(RELEASES))
def test_every_release_is_there_and_fits(name, monkeypatch):
    monkeypatch.undo()
    timm.create_model(name, pretrained=True)
