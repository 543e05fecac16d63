import json
import shutil

import pytest
from PIL import Image

from tests.campaign.running import Case, call, run_cases
from tests.data.layouts import WRITERS, Picture, Thing
from tests.mutations import mutate, mutate_json

pytestmark = pytest.mark.timeout(3600)


def _annotated(root, kind):
    def place(picture, inside):
        inside.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (picture.width, picture.height)).save(inside / picture.name)

    things = [Thing("cat", (2, 3, 20, 15)), Thing("dog", (5, 5, 12, 14), [5, 5, 12, 5, 12, 14])]
    pictures = {
        split: [Picture(f"{split}{number}.png", 32, 24, things) for number in range(2)]
        for split in ("train", "val")
    }
    WRITERS[kind](root, pictures, ("cat", "dog"), place)
    return root


@pytest.fixture
def kinds(runs, tmp_path):
    """Kind of JSON -> a folder to copy, the file in it that is changed, and the command."""
    made = {}
    for kind, pattern in (("coco", "annotations/*train*.json"), ("labelme", "train/*.json")):
        root = _annotated(tmp_path / kind, kind)
        file = sorted(root.glob(pattern))[0].relative_to(root)
        made[kind] = (root, file, ["check-data", "copy", "--data.format", kind])
    test = tmp_path / "test"
    ended = call(["evaluate", runs.finished, "--out", test, "--device", "cpu"], tmp_path / "words")
    assert ended.status == 0, ended.errors
    (test / "evaluation.json").unlink()
    (test / "predictions.csv").rename(test / "predictions.part.csv")
    made["settings"] = (test, "evaluation_config.json", ["evaluate", "--resume", "copy"])
    made["table"] = (_table(tmp_path / "table"), "metadata.jsonl", ["check-data", "copy"])
    return made


def _table(root):
    root.mkdir()
    rows = []
    for number in range(6):
        Image.new("RGB", (32, 24), (40 * number, 0, 0)).save(root / f"{number}.png")
        row = {
            "path": f"{number}.png",
            "label": "ab"[number % 2],
            "split": ("train", "val")[number % 3 // 2],
        }
        rows.append(json.dumps(row))
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return root


@pytest.mark.campaign("json", 300)
def test_mutated_json(row, kinds, tmp_path):
    """COCO's and LabelMe's annotations, a table of JSON lines and the settings of a stopped test
    with bytes changed, and with values replaced, removed and renamed, each opened by
    `check-data` or `evaluate --resume`."""

    def case(seed):
        kind = ("coco", "labelme", "coco", "settings", "table")[seed % 5]
        root, file, command = kinds[kind]

        def words(folder):
            shutil.copytree(root, folder / "copy")
            copy = folder / "copy" / file
            change = mutate if seed % 2 or kind == "table" else mutate_json
            copy.write_bytes(change(copy.read_bytes(), seed))
            return command

        return Case(f"{kind}, seed {seed}", words)

    run_cases(map(case, range(row.total)), row, tmp_path / "cases")
    row.check()
