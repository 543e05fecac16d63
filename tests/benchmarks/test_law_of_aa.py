import argparse
import csv
import importlib

import pytest
import torch

from tests.benchmarks.conftest import FOLDER


@pytest.fixture(scope="module")
def law():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("law_of_aa")


NETWORKS = ("plain", "aa-relative", "se", "large-kernel", "aa-none", "gc", "aa-sine")
GLOBAL = [name for name in NETWORKS if name != "plain"]


def seen_by_the_middle_cell(model):
    """Pixels whose change moves a cell of the last map, over several images: (64, 64) bool."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, 0.1, 0.5)
    images = torch.randn(8, 1, 64, 64, requires_grad=True)
    maps = model.eval()[:-3](images)
    assert maps.shape[2:] == (16, 16)
    maps[:, :, 8, 8].sum().backward()
    return images.grad.abs().amax((0, 1)) > 0


def test_the_plain_field_is_what_gradients_say(law):
    seen = seen_by_the_middle_cell(law.make_network("plain"))
    rows, columns = (seen.any(dim).nonzero().flatten() for dim in (1, 0))
    side = int(law.receptive_field("plain"))
    assert side == 31
    assert int(rows.max() - rows.min()) + 1 == side
    assert int(columns.max() - columns.min()) + 1 == side


@pytest.mark.parametrize("network", GLOBAL)
def test_the_others_see_all_of_the_image(law, network):
    seen = seen_by_the_middle_cell(law.make_network(network))
    assert law.receptive_field(network) > 2 * 64
    assert seen.double().mean() > 0.99


@pytest.mark.parametrize("network", GLOBAL)
def test_twins_have_as_many_parameters(law, network):
    plain = law.count_parameters("plain")
    assert abs(law.count_parameters(network) / plain - 1) < 0.04


def test_a_network_of_random_weights_does_not_depend_on_what_was_counted(law):
    torch.manual_seed(3)
    law.width_of.cache_clear()
    one = law.make_network("se")
    torch.manual_seed(3)
    other = law.make_network("se")
    for mine, yours in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, yours)


def test_near_pairs_fit_into_the_plain_field(law):
    assert law.near("same_different") == (12, 14, 17, 20)
    assert law.near("count") == (12, 14, 17, 20)
    assert law.reach_of("count", 20) == 1.0


def test_rates_widen_at_the_edge_alone(law):
    low, middle, high = law.RATES
    assert law.rates_to_try({low: 0.5}) == [middle, high]
    assert law.rates_to_try({low: 0.5, middle: 0.6, high: 0.5}) == []
    assert law.rates_to_try({low: 0.5, middle: 0.6, high: 0.7}) == [2 * high]
    assert law.rates_to_try({low: 0.7, middle: 0.6, high: 0.5}) == [low / 2]
    ends = {low / 4: 0.9, low / 2: 0.8, low: 0.7, middle: 0.6, high: 0.5}
    assert law.rates_to_try(ends) == []
    assert law.best_rate({low: 0.6, middle: 0.6}) == low


@pytest.fixture
def tiny(law, monkeypatch):
    """Two steps, four images, and networks whose training leaves traces."""
    monkeypatch.setattr(law, "STEPS", 2)
    monkeypatch.setattr(law, "NEAR_STEPS", 1)
    monkeypatch.setattr(law, "BATCH", 2)
    monkeypatch.setattr(law, "NUM_VALIDATION", 4)
    monkeypatch.setattr(law, "NUM_TEST", 4)
    monkeypatch.setattr(law, "RATES", (1e-2, 2e-2))
    monkeypatch.setattr(law, "WIDEST", 1)
    trained = []
    train = law.train

    def noted(task, network, lr, seed, steps=2):
        trained.append((network, lr, seed))
        return train(task, network, lr, seed, steps)

    monkeypatch.setattr(law, "train", noted)
    return trained


def options(**changes):
    given = {"tasks": ["same_different"], "networks": ["plain", "aa-none"], "seeds": 2}
    return argparse.Namespace(**{**given, "minutes": 1e9, "cost": False, **changes})


def test_a_study_goes_on_where_it_stopped(law, tiny, tmp_path):
    study = law.Study(tmp_path / "results")
    law.make_rows(options(seeds=1, networks=["plain"]), study)
    assert tiny == [("plain", 1e-2, 0), ("plain", 2e-2, 0)]  # the chosen one is not trained again
    law.make_rows(options(seeds=1, networks=["plain"]), study)
    assert len(tiny) == 2
    law.make_rows(options(), study)
    networks = [network for network, _, _ in tiny[2:]]
    assert networks == ["aa-none", "aa-none", "plain", "aa-none"]
    with study.file.open() as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0])[:5] == ["task", "distance", "network", "seed", "accuracy"]
    assert len(rows) == 2 * 2 * len(law.DISTANCES)


def test_a_killed_choice_trains_the_best_again(law, tiny, tmp_path):
    study = law.Study(tmp_path)
    columns = law.RATE_COLUMNS
    for lr, accuracy in ((1e-2, 0.9), (2e-2, 0.5)):
        row = dict(zip(columns, ("count", "plain", lr, accuracy, 1.0), strict=True))
        law.append_rows(study.rates_file, columns, [row])
    study.add("count", "plain", 0)
    assert tiny == [("plain", 1e-2, 0)]


def test_no_run_begins_after_the_minutes(law, tiny, tmp_path, capsys):
    law.make_rows(options(minutes=-1), law.Study(tmp_path))
    assert tiny == []
    assert "the same command goes on" in capsys.readouterr().out


def test_the_page_keeps_what_is_written_and_has_every_network(law, tmp_path):
    study = law.Study(tmp_path / "results")
    for network, accuracy in (("plain", 0.5), ("aa-relative", 0.9)):
        for seed in range(3):
            rows = [
                ("same_different", distance, network, seed, accuracy + seed / 100, "0.01", 1)
                for distance in law.DISTANCES
            ]
            made = [dict(zip(law.COLUMNS, row, strict=True)) for row in rows]
            law.append_rows(study.file, law.COLUMNS, made)
    (tmp_path / "law_of_aa.md").write_text("## Reading it\n\nTrust it.\n\n## Table\n\nold\n")
    law.write_page(study, tmp_path, "Made by a test.")
    text = (tmp_path / "law_of_aa.md").read_text()
    assert "Trust it." in text
    assert "old" not in text
    assert "91.0 (88.5 to 93.5)" in text  # Student's: 4.303 / sqrt(3) points
    assert "### count" not in text
    assert (tmp_path / "law_of_aa.png").stat().st_size > 5_000


def test_pairs_of_timm_stand_below_their_twins(law):
    lines = law.timm_table().splitlines()[2:]
    assert len(lines) == len(law.TIMM)
    assert "(+1.2)" in next(line for line in lines if "seresnet33ts" in line)
    assert "(" not in next(line for line in lines if "| resnet33ts" in line)
