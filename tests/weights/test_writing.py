"""Weights are written with a checksum, the same bytes for the same tensors, and checked."""

import json

import safetensors
import safetensors.torch
import torch

from convattn.weights import read_weights, write_weights
from convattn.weights.digests import TENSORS_SHA256

TENSORS = {
    "b.weight": torch.arange(12.0).reshape(3, 4).t(),
    "a": torch.tensor(3, dtype=torch.int64),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
}
METADATA = {"pretrained_cfg": json.dumps({"mean": [0.5], "label_names": ["a", "ü"]})}


def test_tensors_and_words_come_back(tmp_path):
    file = tmp_path / "model.safetensors"
    write_weights(file, TENSORS, METADATA)
    found = safetensors.torch.load_file(file)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with safetensors.safe_open(file, "pt") as content:
        kept = content.metadata()
    assert kept.pop(TENSORS_SHA256)
    assert kept == METADATA
    read_weights(file)


def test_same_tensors_give_the_same_bytes(tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        write_weights(file, TENSORS, {**METADATA, "z": "1", "c": "2"})
    assert len({file.read_bytes() for file in files}) == 1


def test_any_flipped_bit_is_noticed(tmp_path):
    file = tmp_path / "model.safetensors"
    write_weights(file, TENSORS, METADATA)
    whole, noticed = file.read_bytes(), 0
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        try:
            _, found = read_weights(file)
        except ValueError as error:
            noticed += "model.safetensors" in str(error)
            continue
        # Only of the padding, or of the checksum's own name.
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert noticed > 0.7 * len(whole) / 7


def test_files_without_a_checksum_are_read(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "theirs.safetensors")
    assert torch.equal(read_weights(tmp_path / "theirs.safetensors")[1]["a"], torch.ones(2))
