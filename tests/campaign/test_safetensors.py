import json
import random
import struct

import pytest

from tests.campaign.counting import RIGHT
from tests.campaign.running import Case, call, run_cases
from tests.mutations import mutate, mutate_json

pytestmark = pytest.mark.timeout(3600)


def _with_changed_header(content, seed):
    """Valid JSON of other values at the beginning of the file."""
    size = struct.unpack("<Q", content[:8])[0]
    header = mutate_json(content[8 : 8 + size].rstrip(), seed)
    if random.Random(seed).randrange(3) == 0:  # the words about the network, which are text
        told = json.loads(content[8 : 8 + size])
        about = told["__metadata__"]["pretrained_cfg"]
        told["__metadata__"]["pretrained_cfg"] = mutate_json(about.encode(), seed).decode()
        header = json.dumps(told).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


@pytest.mark.campaign("safetensors", 200)
def test_mutated_safetensors(row, runs, tmp_path):
    """A run's model.safetensors with bytes changed, and with other names, types, shapes, offsets
    and words about the network in its header, given to `predict`; where it is not refused the
    prediction must be as of the whole file, unless it is the words that were changed."""
    reference = _prediction(call(["predict", runs.finished, runs.image], tmp_path / "whole"))

    def case(seed):
        change = mutate if seed % 2 else _with_changed_header

        def words(folder):
            file = runs.copy(runs.finished, folder) / "model.safetensors"
            file.write_bytes(change(file.read_bytes(), seed))
            return ["predict", "run", runs.image]

        def judge(ended):
            if ended.outcome != RIGHT or change is not mutate:
                return ended.outcome
            return RIGHT if _prediction(ended) == reference else "another prediction, unnoticed"

        return Case(f"{change.__name__}, seed {seed}", words, judge)

    run_cases(map(case, range(row.total)), row, tmp_path / "cases")
    row.check()


def _prediction(ended):
    return json.loads((ended.folder / "predicted" / "predictions.json").read_text())
