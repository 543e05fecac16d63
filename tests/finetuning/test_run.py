"""A finetuning from a folder of images to its run folder."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import convattn
from convattn.checks import Place, check_data
from convattn.config import DataConfig, FinetuneConfig
from convattn.finetuning import folder as folder_of_run
from convattn.finetuning import run as finetuning
from convattn.finetuning.folder import FinetunedRun
from convattn.finetuning.frozen import Choice, View
from convattn.finetuning.results import FinetunedResult
from convattn.finetuning.run import resume_finetune, run_finetune
from convattn.finetuning.setup import Setup
from convattn.runs import Run
from convattn.tasks import TASKS
from tests.finetuning.conftest import contents, paint


def test_a_run_is_left_that_every_command_opens(finished: FinetunedRun) -> None:
    found = finished
    result = json.loads((found.folder / "evaluation.json").read_text())
    assert isinstance(found.result, FinetunedResult)
    assert found.result.top1 >= 0.8
    for name in ("top1", "balanced_accuracy", "macro_f1", "ece", "num_images"):
        assert name in result
    assert result["num_images"] == 16
    run = Run.open(found.folder)
    model = run.load_model()
    source = TASKS["classification"].open_data(run.config.data, run.config.model.name)
    from convattn.data import transform_of

    test = source.test.with_transform(transform_of(run.pretrained_cfg))
    with torch.inference_mode():
        logits = torch.cat([model(image[None]) for image, _ in test])
    assert found.result.top1 == pytest.approx(
        float((logits.argmax(1) == source.test.labels).double().mean())
    )
    loss = torch.nn.functional.cross_entropy(logits, source.test.labels)
    assert found.result.loss == pytest.approx(float(loss), rel=1e-4, abs=1e-7)
    image = test[0][0][None]
    evidence = convattn.evidence(model, image)
    torch.testing.assert_close(
        evidence.maps.sum((2, 3)) + evidence.bias, logits[:1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.long
def test_the_page_asks_nothing_of_any_host(finished: FinetunedRun) -> None:
    text = finished.report.read_text()
    assert "data:image/jpeg" in text
    assert "http" not in text
    assert "red" in text
    assert "green" in text
    assert "convattn finetune" in text
    assert "--out" not in text.split("convattn predict")[0]  # which is taken


@pytest.mark.long
def test_the_same_seed_makes_the_same_bytes(config: FinetuneConfig, finished: FinetunedRun) -> None:
    second = run_finetune(config).folder
    assert contents(second) == contents(finished.folder)


@pytest.mark.long
def test_the_networks_of_the_folds_judge_the_labels_that_were_learnt(
    config: FinetuneConfig, images: Path, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(images, root)
    flipped = root / "train" / "green" / "99.png"
    (root / "train" / "red" / "03.png").rename(flipped)
    data = dataclasses.replace(config.data, root=str(root))
    found = run_finetune(dataclasses.replace(config, data=data, folds=2))
    labels = check_data(Place(root=str(root)), run=Run.open(found.folder)).report.labels
    assert labels is not None
    assert labels.num_images == 76
    assert "60 were judged by networks of the run's cross-validation" in labels.judged
    doubted = {one.image: (one.given, one.suggested) for one in labels.doubts}
    assert doubted[str(flipped.relative_to(root))] == ("green", "red")


@pytest.mark.long
def test_predictions_are_rejected_as_validation_images_chose(
    config: FinetuneConfig, images: Path, tmp_path: Path
) -> None:
    found = run_finetune(dataclasses.replace(config, kept_target=0.95))
    assert isinstance(found.result, FinetunedResult)
    least = found.result.reject_below
    assert least is not None
    run = Run.open(found.folder)
    assert run.pretrained_cfg["reject_below"] == least
    table = run.predict(images / "test", out=tmp_path / "table.csv", reject_below="auto")
    said = list(run.predict(images / "test", reject_below="auto"))
    assert [one.rejected for one in said] == [float(str(one.probability)) < least for one in said]
    assert table.num_rejected == sum(one.rejected for one in said)
    assert found.result.kept == pytest.approx(1 - table.num_rejected / 16)
    assert f"below {least:.3f}" in found.report.read_text()


def test_a_test_part_that_was_drawn_is_marked(
    config: FinetuneConfig, finished: FinetunedRun, images: Path
) -> None:
    data = dataclasses.replace(config.data, root=str(images / "train"))
    of_train = run_finetune(dataclasses.replace(config, data=data))
    for found, drawn in ((of_train, True), (finished, False)):
        assert json.loads((found.folder / "evaluation.json").read_text())["test_drawn"] is drawn
        assert ("drawn from data without splits" in found.report.read_text()) is drawn


@pytest.mark.long
def test_images_of_several_classes_are_judged_by_thresholds_of_their_own(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    root = tmp_path / "several"
    for number in range(60):
        paint(root, "red", number)
        paint(root, "green", number)
    rows = [f"red/{number:02}.png,red{'|spot' * (number % 3 == 0)}" for number in range(60)]
    rows += [f"green/{number:02}.png,green{'|spot' * (number % 3 == 0)}" for number in range(60)]
    (root / "labels.csv").write_text("\n".join(["path,labels", *rows]))
    data = DataConfig(name="folder", root=str(root / "labels.csv"))
    found = run_finetune(dataclasses.replace(config, data=data, class_weights="balanced"))
    result = json.loads((found.folder / "evaluation.json").read_text())
    assert {"map", "macro_f1", "ece", "num_images"} <= result.keys()
    assert result["per_class"]["red"]["average_precision"] >= 0.8
    thresholds = Run.open(found.folder).pretrained_cfg["thresholds"]
    assert thresholds == [one["threshold"] for one in result["per_class"].values()]


class _Killed(BaseException):
    pass


@pytest.mark.long
@pytest.mark.parametrize("killed_in", ["choose", "train_head", "predict", "render_report"])
def test_a_killed_run_ends_as_if_it_never_had_been(
    config: FinetuneConfig, finished: FinetunedRun, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    def die(*arguments: object, **options: object) -> Iterator[None]:
        raise _Killed

    with monkeypatch.context() as patch:
        place = (
            folder_of_run if killed_in in ("predict", "render_report") else finetuning.first_stage
        )
        patch.setattr(place, killed_in, die)
        with pytest.raises(_Killed):
            run_finetune(config)
    folder = resume_finetune(Path(str(config.out))).folder
    assert contents(folder) == contents(finished.folder)
    with pytest.raises(ValueError, match="has ended"):
        resume_finetune(folder)


@pytest.mark.long
def test_folds_judge_every_training_image_by_a_network_that_has_not_learnt_it(
    config: FinetuneConfig,
) -> None:
    found = run_finetune(dataclasses.replace(config, folds=3))
    lines = (found.folder / "out_of_fold.csv").read_text().splitlines()
    assert lines[0] == "path,label,fold,prediction,green,red"
    assert len(lines) == 61
    rows = [line.split(",") for line in lines[1:]]
    right = sum(row[1] == row[3] for row in rows) / len(rows)
    assert right >= 0.7
    assert {row[2] for row in rows} == {"1", "2", "3"}
    assert json.loads((found.folder / "evaluation.json").read_text())["out_of_fold"]["top1"] == (
        pytest.approx(right)
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept_target": 1.5}, "at most at 1, as 0.99"),
        ({"multi_label": True, "kept_target": 0.9}, "one class each"),
        ({"minutes": 1e-6}, "give at least --minutes"),
        ({"minutes": 0}, "must be above 0"),
        ({"folds": 1}, "expected 2 or more"),
        ({"folds": 31}, "belong to 30 groups, and 31 folds need one each"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    config: FinetuneConfig, change: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run_finetune(dataclasses.replace(config, **change))
    assert not Path(str(config.out)).exists()


def test_one_image_a_class_is_refused_by_name(config: FinetuneConfig, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("red", "green"):
            paint(tmp_path / "few" / part, name, 1 + 5 * (part == "test"))
    data = DataConfig(name="folder", root=str(tmp_path / "few"))
    with pytest.raises(ValueError, match="class 'green' has 1 training images"):
        run_finetune(dataclasses.replace(config, data=data))


@pytest.mark.long
@pytest.mark.parametrize("best", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_the_view_with_the_least_validation_loss_is_that_of_the_run(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    views = [View(64), View(96), View(96, whole=True)]
    choose = finetuning._choose
    monkeypatch.setattr(finetuning.first_stage, "possible_views", lambda *_: views)

    def judged(setup: Setup, images: torch.Tensor) -> Choice:
        choice = choose(setup, images)
        loss = 0.5 if setup.maps.view == views[best] else 0.6
        return dataclasses.replace(choice, outcome=dataclasses.replace(choice.outcome, loss=loss))

    def die(*_: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "_choose", judged)
        patch.setattr(folder_of_run, "render_report", die)
        with pytest.raises(_Killed):
            run_finetune(config)
    assert config.out is not None
    folder = resume_finetune(Path(config.out)).folder  # where nothing is judged anew
    cfg = Run.open(folder).pretrained_cfg
    assert tuple(cfg["input_size"][1:]) == ((64, 64), (96, 96), (96, 96))[best]
    assert (cfg["crop_mode"], cfg["crop_pct"] == 1) == (("center", False), ("squash", True))[
        best > 0
    ]
    assert str(views[best]) in (folder / "report.html").read_text()


@pytest.mark.long
def test_a_view_is_not_tried_where_its_maps_and_heads_would_take_too_long(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    views = [View(64), View(96), View(96, whole=True)]
    monkeypatch.setattr(finetuning.first_stage, "possible_views", lambda *_: views)
    seconds = iter([0.0, 60.0 * config.minutes, 0.0])  # of the check, and of the larger ones
    monkeypatch.setattr(finetuning.first_stage, "seconds_of_pass", lambda *_: next(seconds))
    run_finetune(config)
    told = capsys.readouterr().err
    assert re.search(r"images of 96 x 96 are not tried: they would take about 6\d\d s", told)
    assert "images of 96 x 96: validation loss" not in told
    assert "images of 96 x 96 uncropped: validation loss" in told


@pytest.mark.long
@pytest.mark.parametrize("best", ["attention", "query"])
def test_the_pool_with_the_least_validation_loss_is_that_of_the_run(
    config: FinetuneConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    best: str,
) -> None:
    choose, asked = finetuning.first_stage.choose, []

    def judged(maps: object, pool: str, *arguments: Any) -> Choice:
        asked.append(pool)
        choice = choose(maps, pool, *arguments)
        loss = 0.25 if pool == best else 0.75
        return dataclasses.replace(choice, outcome=dataclasses.replace(choice.outcome, loss=loss))

    def die(*_: object) -> None:
        raise _Killed

    monkeypatch.setattr(finetuning.first_stage, "choose", judged)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "_train_folds", die)
        with pytest.raises(_Killed):
            run_finetune(dataclasses.replace(config, pool="auto", folds=2))
    assert asked == ["attention", "query"]
    told = capsys.readouterr().err
    for pool in asked:
        loss = 0.25 if pool == best else 0.75
        assert f"pool {pool}, images of 64 x 64: validation loss {loss:.4f}" in told
    folder = resume_finetune(Path(str(config.out))).folder
    assert asked[2:] == [best, best]  # of the folds alone
    assert Run.open(folder).config.model.model_args["pool"] == best
    assert f">{best} of attention, query<" in (folder / "report.html").read_text()
    assert json.loads((folder / "finetune.json").read_text())["pool"] == "auto"
