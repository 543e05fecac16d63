import urllib.error

import pytest
import torch
import torch.hub

from convattn.cli import main
from convattn.files import hash_file
from convattn.weights import RELEASES, cached_path, fetch, read_weights
from tests.weights.checkpoints import golden_network, released_tensors, write_checkpoint


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    """Of the test's own, and a server that cannot be reached."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def weights(*words):
    return main(["weights", *map(str, words)])


def fails(capsys, *words):
    """The one line that a mistake leaves on stderr."""
    assert main(list(map(str, words))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("convattn: ")
    return line


def put_in_cache(name):
    """A small file in the place of released weights."""
    file = cached_path(RELEASES[name].url)
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_checkpoint(file, golden_network("single_token")[0])


def test_the_list_has_every_release_with_the_authors_figure(capsys):
    assert weights("--filter", "patchconvnet_s60") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "pixels", "top-1", "parameters", "here"]
    assert sorted(line.split()[0] for line in lines) == sorted(
        name for name in RELEASES if name.startswith("patchconvnet_s60")
    )
    (line,) = [line for line in lines if "_512" in line]
    assert line.split()[1:] == ["512", "85.4", "%", "25.23", "M", "no"]


def test_what_is_here_has_a_size(capsys):
    file = put_in_cache("patchconvnet_s60.fb_in1k")
    assert weights("--filter", "s60.fb_in1k") == 0
    assert capsys.readouterr().out.strip().endswith(f"{file.stat().st_size / 1e6:.1f} MB")


@pytest.mark.parametrize("name", ["patchconvnet_b60", "patchconvnet_b60.fb_in1k"])
def test_one_in_full(capsys, name):
    assert weights(name) == 0
    told = capsys.readouterr().out
    assert told.startswith("patchconvnet_b60.fb_in1k\n")
    for words in (
        "99.39 M parameters",
        "short side to 256 pixels, bicubic, cropped to 224 x 224",
        "83.5 % on ImageNet, the authors' figure",
        "541 images a second, 2,790 MB",
        "apache-2.0",
        "https://dl.fbaipublicfiles.com/deit/b60_224_1k.pth",
        f"no; it belongs at {cached_path('/b60_224_1k.pth')}",
    ):
        assert words in told


def test_one_that_is_here_tells_its_place_and_hash(capsys):
    put_in_cache("patchconvnet_s60.fb_in1k")
    file = fetch(RELEASES["patchconvnet_s60.fb_in1k"].url)
    assert weights("patchconvnet_s60") == 0
    last_two = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[-1] for line in last_two] == [
        str(file),
        hash_file(file).read_text().split()[0],
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["patchconvnet_l60"], "no weights of patchconvnet_l60 were released"),
        (["patchconvnet_s60.fb"], "unknown weights 'patchconvnet_s60.fb'; the nearest is 'patchco"),
        (["--filter", "swin"], "no name of weights contains 'swin'"),
        (["patchconvnet_s60", "more"], "takes the name of one model's weights"),
        (["download"], "convattn weights download takes the name"),
        (["convert", "a.pth"], "takes the file to read and the file to write"),
        (["convert", "a.pth", "b.pth", "--model", "resnet5"], "the nearest is 'resnet5"),
        (["convert", "a.pth", "b.pth"], "a.pth does not exist"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, message):
    assert message in fails(capsys, "weights", *words)


@pytest.mark.parametrize("words", [[], ["convert"]])
def test_help(capsys, words):
    if words:
        with pytest.raises(SystemExit, match="0"):
            weights(*words, "--help")
    else:
        assert weights("--help") == 0
    assert "convattn weights convert" in capsys.readouterr().out


def test_a_download_that_was_done_prints_its_place(capsys):
    file = put_in_cache("patchconvnet_s60.fb_in1k")
    assert weights("download", "patchconvnet_s60") == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert hash_file(file).exists()


def test_without_a_network_the_place_is_told(capsys):
    line = fails(capsys, "weights", "download", "patchconvnet_s60")
    assert f"put it at {cached_path(RELEASES['patchconvnet_s60.fb_in1k'].url)}" in line
    line = fails(capsys, "explain", "patchconvnet_s60", "image.png")
    assert f"put it at {cached_path(RELEASES['patchconvnet_s60.fb_in1k'].url)}" in line


def test_a_file_is_converted(capsys, tmp_path):
    source = write_checkpoint(tmp_path / "theirs.pth", golden_network("single_token")[0])
    out = tmp_path / "ours.safetensors"
    assert weights("convert", source, out) == 0
    count = len(read_weights(source)[1])
    told = capsys.readouterr().out
    assert told == f"{out}  {count} tensors, 0.10 M numbers, of a network that is not known\n"
    assert torch.equal(
        read_weights(out)[1]["stem.0.weight"], read_weights(source)[1]["stem.0.weight"]
    )
    assert weights("convert", out, tmp_path / "back.pth", "--to", "released") == 0
    assert "patch_embed.proj.0.0.weight" in torch.load(tmp_path / "back.pth")["model"]


def test_a_released_file_is_evaluated_by_name(capsys, tmp_path):
    file = write_checkpoint(tmp_path / "s60.pth", released_tensors("S60", classes=10))
    words = ["--data", "cluttered_digits", "--data.num-test", "1", "--device", "cpu"]
    assert main(["evaluate", "patchconvnet_s60", "--weights", str(file), *words]) == 0
    assert "top-1" in capsys.readouterr().out


def test_a_released_file_of_other_classes_is_refused_by_the_command(capsys, tmp_path):
    file = write_checkpoint(tmp_path / "s60.pth", released_tensors("S60", classes=7))
    words = ["--data", "cluttered_digits", "--data.num-test", "1"]
    line = fails(capsys, "evaluate", "patchconvnet_s60", "--weights", file, *words)
    assert "head.fc.weight is 7x384 in the file, 10x384 in the model" in line
    assert line.endswith("create patchconvnet_s60 with num_classes=7, whose tensors these are")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is damaged"), (b"PK\3\4 cut short", "is damaged"), (b"<html>", "no PyTorch file")],
)
def test_a_bad_file_is_one_line(capsys, tmp_path, content, message):
    (tmp_path / "s60.pth").write_bytes(content)
    words = ["--data", "cluttered_digits", "--data.num-test", "1"]
    line = fails(capsys, "evaluate", "patchconvnet_nano", "--weights", tmp_path / "s60.pth", *words)
    assert message in line
