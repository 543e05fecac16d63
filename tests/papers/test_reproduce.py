import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import convattn.papers.reproduce
from convattn.bench import count
from convattn.papers.reproduce import check_rows, to_json, to_markdown, to_text
from convattn.papers.tables import HEADLINE, TABLES
from convattn.recipes import RECIPES
from convattn.weights import RELEASES

NAMED = {
    "PatchConvNet-S60": "82.1",
    "PatchConvNet-S120": "83.2",
    "PatchConvNet-B60": "83.5",
    "PatchConvNet-B120": "84.1",
    "PatchConvNet-S60, ImageNet-21k, 512": "85.4",
    "PatchConvNet-B60, ImageNet-21k, 384": "86.5",
    "PatchConvNet-L120, ImageNet-21k, 384": "87.1",
    "AA-ResNet-152": "79.1",
    "AA-Wide-ResNet-28-10": "81.6",
}
"""The rows that the papers are known by."""


def row_of(recipe):
    """The row that a recipe trains, and its table."""
    return next((row, table) for table in TABLES for row in table.rows if row.recipe == recipe)


def only(monkeypatch, *recipes, **changes):
    """Leave only these rows in the tables."""
    found = [row_of(recipe) for recipe in recipes]
    tables = {
        table: tuple(replace(row, **changes) for row, its in found if its is table)
        for _, table in found
    }
    monkeypatch.setattr(
        convattn.papers.reproduce,
        "TABLES",
        tuple(replace(table, rows=rows) for table, rows in tables.items()),
    )


def write_run(folder, config, **evaluation):
    """What a finished run leaves, as far as it is read."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


def write_test(folder, *arguments, **evaluation):
    """What a test of a model by name leaves."""
    folder.mkdir(parents=True)
    (folder / "evaluation_config.json").write_text(json.dumps({"arguments": arguments}))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


def test_best_known_rows_are_the_named_nine():
    best = [row_of(recipe)[0] for recipe in HEADLINE]
    assert {row.name: row.score for row in best} == NAMED


def test_every_row_has_a_recipe_of_its_own():
    recipes = [row.recipe for table in TABLES for row in table.rows]
    assert set(recipes) <= set(RECIPES)
    assert len(set(recipes)) == len(recipes)


def test_every_recipe_of_the_papers_sets_that_states_a_figure_is_a_row():
    rows = {row.recipe: row.score for table in TABLES for row in table.rows}
    for name, make in RECIPES.items():
        stated = re.search(
            r"Paper \(arXiv [^)]*\): (?:no figure|trained so|([\d.]+))", make.description
        )
        if stated is not None and stated[1] is not None:
            assert rows.pop(name) == stated[1], name
    assert not rows


def test_every_release_is_a_row():
    assert {row.release for table in TABLES for row in table.rows} - {None} == set(RELEASES)


def test_figures_that_nothing_confirms_are_marked(monkeypatch):
    only(monkeypatch, "aa_mnasnet_075_imagenet", "semnasnet_075_imagenet")
    for one in check_rows():
        assert one.paper.startswith("about ")
        assert one.paper.endswith("unconfirmed")
        assert "/ about " in one.parameters_cell
        assert "/ about " in one.cost_cell


def test_costs_are_those_of_the_network_that_the_recipe_trains(monkeypatch):
    only(monkeypatch, "aa_resnet34_imagenet")
    (found,) = check_rows()
    with torch.device("meta"):
        counts = count(timm.create_model("aa_resnet34"), (3, 224, 224))
    assert (found.parameters, found.macs) == (counts.parameters, counts.macs)
    assert found.cost == 2 * counts.macs / 1e9


def test_patchconvnet_costs_what_the_paper_says_once_its_projections_are_counted(monkeypatch):
    only(monkeypatch, "patchconvnet_s60_imagenet")
    (found,) = check_rows()
    assert found.verified == "parameters equal, GMACs equal, counting 0.06 that ours does without"


@pytest.mark.parametrize(
    ("printed", "verdict"),
    [("20.8", "parameters equal"), ("20", "parameters differ by +3.8 %")],
)
def test_verdict_is_to_the_digits_printed(printed, verdict, monkeypatch):
    only(monkeypatch, "aa_resnet34_imagenet", parameters=printed, cost="")
    (found,) = check_rows()
    assert found.verified == verdict


def test_nothing_is_measured_without_runs(monkeypatch):
    only(monkeypatch, "resnet34_imagenet")
    (found,) = check_rows()
    assert found.measured_cell == "not measured"
    assert "measured" not in found.verified


def test_finished_run_of_the_recipe_is_measured(monkeypatch, tmp_path):
    only(monkeypatch, "resnet34_imagenet", "seresnet34_imagenet")
    config = RECIPES["resnet34_imagenet"]()
    moved = replace(config, seed=3, devices=8, data=replace(config.data, root="elsewhere"))
    write_run(tmp_path / "deep" / "run", moved, top1=0.7312, num_images=50_000)
    plain, squeezed = check_rows([tmp_path])
    assert plain.measured_cell == "73.12 % (trained, `run`)"
    assert plain.verified.endswith("top-1 measured")
    assert squeezed.measured_cell == "not measured"


def test_run_with_other_settings_is_told_and_not_taken_for_the_row(monkeypatch, tmp_path):
    only(monkeypatch, "resnet34_imagenet")
    config = RECIPES["resnet34_imagenet"]()
    changed = replace(config, epochs=1, optim=replace(config.optim, lr=0.1))
    write_run(tmp_path / "run", changed, top1=0.5, num_images=50_000)
    (found,) = check_rows([tmp_path])
    assert found.measured_cell == "50.00 % (trained with another epochs, optim.lr, `run`)"
    assert "measured" not in found.verified


@pytest.mark.parametrize(
    ("arguments", "number", "told", "whole"),
    [
        (["patchconvnet_s60.fb_in1k"], 50_000, "82.10 % (released weights on 50,000", True),
        (["patchconvnet_s60", "--weights", "x/s60_224_1k.pth"], 50_000, "82.10 %", True),
        (["patchconvnet_s60.fb_in1k"], 1000, "released weights on 1,000 images", False),
        (["patchconvnet_s60", "--weights", "mine.pth"], 50_000, "not measured", False),
        (["patchconvnet_s60.fb_in22k_ft_in1k"], 50_000, "not measured", False),
    ],
)
def test_released_weights_count_where_they_were_tested(
    arguments, number, told, whole, monkeypatch, tmp_path
):
    only(monkeypatch, "patchconvnet_s60_imagenet")
    words = [*arguments, "--data", "imagenet"]
    write_test(tmp_path / "test", *words, top1=0.821, num_images=number)
    (found,) = check_rows([tmp_path])
    assert told in found.measured_cell
    assert found.verified.endswith("top-1 measured") == whole


def test_weights_on_this_machine_are_said_to_be_here(monkeypatch, tmp_path):
    only(monkeypatch, "patchconvnet_s60_imagenet")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    before = check_rows()[0].weights_cell
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "s60_224_1k.pth").touch()
    assert before == "`patchconvnet_s60.fb_in1k`, not downloaded"
    assert check_rows()[0].weights_cell == "`patchconvnet_s60.fb_in1k`, here"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_commands_are_understood(table):
    from convattn.cli.train import TrainOptions
    from convattn.cli.words import parse
    from convattn.papers.reproduce import RowStatus

    for row in table.rows:
        commands = RowStatus(
            row=row, table=table, parameters=1, macs=1, weights_here=False, measured=()
        ).commands
        program, command, recipe, *words = commands[-1].split()
        assert (program, command) == ("convattn", "train")
        parse(TrainOptions, TrainOptions(**vars(RECIPES[recipe]())), words, prog="train")
        if row.release is not None:
            assert commands[0].split()[2] == row.release


def test_page_holds_every_row_and_the_best_known_first(monkeypatch):
    only(monkeypatch, "resnet34_imagenet", "patchconvnet_s60_imagenet")
    page = to_markdown(check_rows())
    sections = page.split("\n## ")
    assert sections[1].startswith("The rows that the papers are known by")
    assert sections[1].count("| PatchConvNet-S60 |") == 1
    assert "| ResNet-34 |" not in sections[1]
    assert "| ResNet-34 | 73.6 % top-1 | 21.80 / 21.8 |" in page
    assert "convattn train resnet34_imagenet --data.root DIR --devices 8" in page


def test_json_holds_what_was_counted(monkeypatch):
    only(monkeypatch, "resnet34_imagenet")
    found = check_rows()
    (row,) = json.loads(to_json(found))
    assert row["ours"] == {"parameters": found[0].parameters, "macs": found[0].macs}
    assert row["paper"]["score"] == 73.6
    assert row["measured"] == []


def test_text_is_aligned(monkeypatch):
    only(monkeypatch, "resnet34_imagenet", "seresnet34_imagenet")
    lines = to_text(check_rows()).splitlines()
    column = lines[1].index("paper")
    assert [line[column:].split()[0] for line in lines[2:4]] == ["73.6", "74.3"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: None, FileNotFoundError, "is no folder"),
        (lambda folder: folder.mkdir(), ValueError, "holds no evaluation.json"),
        (
            lambda folder: write_test(folder, "x") or (folder / "evaluation.json").write_text("{"),
            ValueError,
            r"evaluation.json is not JSON.* test that run again",
        ),
    ],
)
def test_folder_without_tests_is_an_error(make, error, message, tmp_path):
    make(tmp_path / "runs")
    with pytest.raises(error, match=message):
        check_rows([tmp_path / "runs"])


def test_progress_names_each_row(monkeypatch):
    only(monkeypatch, "resnet34_imagenet", "seresnet34_imagenet")
    told = []
    check_rows(progress=lambda *line: told.append(line))
    assert told == [(0, 2, "ResNet-34"), (1, 2, "SE-ResNet-34")]


def test_documented_page_is_of_these_tables():
    page = (Path(__file__).parents[2] / "docs" / "results" / "reproduce.md").read_text()
    for table in TABLES:
        assert f"## {table.title}\n" in page
        for row in table.rows:
            assert f"| {row.name} |" in page
