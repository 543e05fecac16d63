"""The model card of a run."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from convattn.runs import Run
from convattn.runs.card import write_card
from tests.runs.finished import FIGURES, make_run


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return write_card(make_run(tmp_path / "run"))


def test_the_hub_reads_task_library_and_figures(card: Path) -> None:
    data = ModelCard.load(card).data
    assert (data.library_name, data.pipeline_tag) == ("timm", "image-classification")
    assert data.license is None
    assert set(data.tags) == {"image-classification", "timm", "convattn"}
    found = {one.metric_type: one.metric_value for one in data.eval_results}
    assert found == {
        "accuracy": FIGURES["top1"],
        "balanced_accuracy": FIGURES["balanced_accuracy"],
        "f1": FIGURES["macro_f1"],
    }
    assert {one.dataset_name for one in data.eval_results} == {"hymenoptera"}


def test_people_read_data_classes_figures_and_transform(card: Path) -> None:
    text = ModelCard.load(card).content
    for told in (
        "trained on hymenoptera",
        "ants, bees",
        "On 153 images",
        "| top-1 | 94.12% | 90.2 to 97.4 |",
        "| balanced accuracy | 94.13% |  |",
        "| mean | 0.5, 0.4, 0.3 |",
        "| crop_pct | 0.9 |",
    ):
        assert told in text
    assert "somebody" not in text
    assert "calibration" not in text


def test_its_lines_load_the_network(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(card.parent.parent)
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(names["model"](images), Run.open(card.parent).load_model()(images))


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", label_names=["<b>ants\n# bold", "bees"])
    assert "&lt;b&gt;ants # bold, bees" in write_card(folder).read_text()


def test_a_run_without_figures_has_a_card(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "evaluation.json").unlink()
    card = ModelCard.load(write_card(folder))
    assert card.data.eval_results is None
    assert "No figures are kept." in card.content
