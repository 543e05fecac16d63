import json

import pytest
import timm
import torch

from tests.campaign.counting import RIGHT
from tests.campaign.running import Case, call, run_cases
from tests.mutations import mutate

pytestmark = pytest.mark.timeout(3600)


@pytest.mark.campaign(".pth", 100)
def test_mutated_pth(row, runs, tmp_path):
    """A state dict as torch.save writes it, with bytes changed, given to `explain --weights`;
    where it is not refused the classes found must be those of the whole file."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": model.state_dict()}, file)
    content = file.read_bytes()
    command = [
        "explain",
        "test_resnet",
        runs.image,
        "--num-classes",
        "10",
        "--out",
        "out",
        "--weights",
    ]
    reference = _found(call([*command, file], tmp_path / "whole"))

    def case(seed):
        def words(folder):
            (folder / "weights.pth").write_bytes(mutate(content, seed))
            return [*command, "weights.pth"]

        def judge(ended):
            if ended.outcome != RIGHT:
                return ended.outcome
            return RIGHT if _found(ended) == reference else "other classes, unnoticed"

        return Case(f"seed {seed}", words, judge)

    run_cases(map(case, range(row.total)), row, tmp_path / "cases")
    row.check()


def _found(ended):
    return json.loads((ended.folder / "out" / "explanations.json").read_text())
