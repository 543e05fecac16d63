import os
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from convattn.files import hash_file, record_hash
from convattn.weights import (
    patchconvnet_from_released,
    read_weights,
)
from convattn.weights.reading import unwrapped
from tests.weights.checkpoints import golden_network, write_checkpoint


class Payload:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def plain_file(folder, **words):
    file = folder / "weights.pth"
    torch.save({"model": {"a": torch.arange(1000.0), "b": torch.ones(3)}}, file, **words)
    return file


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["single_token", "multi_token"])
def test_released_tensors_come_under_our_names(name, zipped, tmp_path):
    tensors, _, _ = golden_network(name)
    file = tmp_path / "weights.pth"
    write_checkpoint(file, tensors, _use_new_zipfile_serialization=zipped)
    found, read = read_weights(file)
    assert found == file
    assert same(read, patchconvnet_from_released(tensors))


def test_released_names_in_safetensors_come_under_ours(tmp_path):
    tensors, _, _ = golden_network("single_token")
    safetensors.torch.save_file(tensors, tmp_path / "weights.safetensors")
    assert same(
        read_weights(tmp_path / "weights.safetensors")[1], patchconvnet_from_released(tensors)
    )


PLAIN = {"stem.weight": torch.ones(2), "fc.weight": torch.zeros(3), "fc.bias": torch.ones(1)}


@pytest.mark.parametrize(
    "wrappers",
    ["_orig_mod.", "module.", "model.", "model._orig_mod.", "module.model.", "_orig_mod.module."],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_names_of_wrapped_networks_are_unwrapped(tmp_path, wrappers, suffix):
    wrapped = {wrappers + name: tensor for name, tensor in PLAIN.items()}
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": wrapped}, file)
    else:
        safetensors.torch.save_file(wrapped, file)
    assert same(read_weights(file)[1], PLAIN)


def test_networks_that_were_wrapped_really(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    plain = network.state_dict()
    for number, wrapped in enumerate(
        (torch.compile(network), torch.nn.DataParallel(network), torch.compile(network[0]))
    ):
        file = tmp_path / f"{number}.pth"
        torch.save(wrapped.state_dict(), file)
        expected = network[0].state_dict() if number == 2 else plain
        assert same(read_weights(file)[1], expected)


def test_names_inside_are_left_but_for_compiled_parts():
    names = {"a.model.w": 1, "a.module.w": 2, "a._orig_mod.v": 3, "b.w": 4}
    assert list(unwrapped(names)) == ["a.model.w", "a.module.w", "a.v", "b.w"]
    assert list(unwrapped({"a._orig_mod.w": 1, "a.w": 2})) == ["a._orig_mod.w", "a.w"]
    assert list(unwrapped({"model.w": 1, "v": 2})) == ["model.w", "v"]
    assert unwrapped({}) == {}


def test_a_runs_own_names_stay(tmp_path):
    wrapped = {f"model.{name}": tensor for name, tensor in PLAIN.items()}
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(wrapped, file, metadata={"pretrained_cfg": "{}"})
    assert same(read_weights(tmp_path)[1], wrapped)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_named_and_not_run(zipped, tmp_path):
    content = {"model": {"a": torch.ones(1)}, "args": Payload(tmp_path / "trace")}
    file = tmp_path / "weights.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"it asks for (posix|nt)\.mkdir, which could run anyth"):
        read_weights(file)
    assert not (tmp_path / "trace").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "trace").exists()  # so the payload works where nobody takes care


def test_a_bare_pickle_is_not_run(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    with pytest.raises(ValueError, match="no PyTorch file of plain tensors"):
        read_weights(file)
    assert not (tmp_path / "trace").exists()


def test_no_more_than_a_namespace_is_let_in(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(1)}, "out": tmp_path}, file)
    before = set(torch.serialization.get_safe_globals())  # a list out of a set, in no order
    with pytest.raises(ValueError, match=r"it asks for pathlib\.(_local\.)?\w+Path"):
        read_weights(file)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(zipped, share, tmp_path):
    file = plain_file(tmp_path, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ValueError, match=r"weights\.pth is (damaged \(.+\); get it anew|no PyTorch)"
    ):
        read_weights(file)


def test_a_changed_byte_is_noticed(tmp_path):
    file = plain_file(tmp_path)
    content = bytearray(file.read_bytes())
    content[content.find(torch.arange(1000.0).numpy().tobytes()) + 400] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged \(the bytes of its part weights/data/0 have ch"):
        read_weights(file)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"PK and no more"])
def test_what_is_no_checkpoint_is_refused(content, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth is (no PyTorch file|damaged)"):
        read_weights(file)


def test_a_checkpoint_without_tensors_is_refused(tmp_path):
    torch.save({"model": {"a": 3}}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_weights(tmp_path / "weights.pth")


def test_a_file_must_have_the_hash_that_is_kept_of_it(tmp_path):
    file = plain_file(tmp_path)
    record_hash(file)
    read_weights(file)
    expected = hash_file(file).read_text().split()[0]
    torch.save({"model": {"a": torch.zeros(1)}}, file)
    with pytest.raises(ValueError, match=rf"SHA-256 is \w{{64}}, expected {expected}; delete both"):
        read_weights(file)


def test_an_empty_hash_is_no_hash(tmp_path):
    file = plain_file(tmp_path)
    hash_file(file).touch()
    with pytest.raises(ValueError, match="expected none; delete both"):
        read_weights(file)


def test_names_that_are_numbers_are_refused(tmp_path):
    torch.save({1: torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth holds no state dict"):
        read_weights(tmp_path / "weights.pth")


def test_packed_archive_is_not_unpacked(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(file, "w") as packed:
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"weights\.pth is damaged \(its parts are compressed"):
        read_weights(file)
