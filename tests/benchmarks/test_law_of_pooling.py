import argparse
import importlib

import pytest
import torch
import torch.nn.functional as F

from tests.benchmarks.conftest import FOLDER


@pytest.fixture(scope="module")
def digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("digits_by_size")


@pytest.fixture(scope="module")
def law(digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("law_of_pooling")


@pytest.mark.parametrize("share", [2, 5, 20, 50])
def test_digits_cover_the_share_that_is_asked(digits, share):
    boxes = digits.draw(share, 256).boxes.double()
    found = (boxes[:, 2:] - boxes[:, :2]).prod(1).mean() / digits.SIDE**2
    assert 100 * float(found) == pytest.approx(share, rel=0.08)


def test_shares_of_cells_are_the_mean_over_the_pixels_of_a_cell(digits):
    boxes = torch.tensor([[3, 5, 20, 31], [0, 0, 64, 64], [17, 40, 23, 63]])
    masks = torch.zeros(3, 1, 64, 64)
    for mask, (left, top, right, bottom) in zip(masks, boxes.tolist(), strict=True):
        mask[0, top:bottom, left:right] = 1
    means = F.avg_pool2d(masks, 8)[:, 0]
    expected = means / means.sum((1, 2), keepdim=True)
    torch.testing.assert_close(digits.shares_of_cells(boxes, 8), expected)


@pytest.mark.parametrize("cells", [4, 8])
def test_an_oracle_averages_the_object_alone(digits, cells):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    inside = torch.zeros(2, cells, cells)
    inside[:, 1, 2], inside[:, 3, 3] = 0.25, 0.75
    oracle = digits.Network("oracle", cells, seed=0).eval()
    found = oracle.trunk(images)
    assert found.shape == (2, 64, cells, cells)
    pooled = 0.25 * found[:, :, 1, 2] + 0.75 * found[:, :, 3, 3]
    expected = oracle.head(pooled[:, :, None, None])
    torch.testing.assert_close(oracle(images, inside), expected)
    average = digits.Network("avg-bn", cells, seed=0).eval()
    assert torch.equal(average(images, inside), average(images, 1 - inside))


def test_networks_of_a_seed_differ_in_the_pool_alone(digits):
    trunks = []
    for pool in ("avg-bn", "query", "aggregation"):
        torch.manual_seed(3)
        trunks.append(digits.Network(pool, 8, seed=3).trunk.state_dict())
    for name, tensor in trunks[0].items():
        assert all(torch.equal(tensor, other[name]) for other in trunks[1:])


def test_what_is_there_is_not_made_again(digits, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(digits, "SEEDS", 2)
    monkeypatch.setattr(digits, "NUM_VALIDATION", 64)
    monkeypatch.setattr(digits, "NUM_TEST", 64)
    learned = []

    def train(cell, lr, seed, steps=1):
        learned.append((*cell, lr, seed))
        return digits.Network(cell[2], cell[1], seed).eval()

    monkeypatch.setattr(digits, "train", train)
    monkeypatch.setattr(digits, "_training_seconds", lambda cell: 0)
    file = tmp_path / "law_of_pooling.csv"
    columns = ("data", "object_share", "map_size", "pool", "seed", "accuracy", "lr", "epoch")
    asked = argparse.Namespace(
        maps=[4], shares=[20.0], pools=["avg-bn", "query"], steps=digits.STEPS, cost=True
    )
    digits.make_rows(asked, file, (*columns, "seconds"))
    assert "10 trainings or more" in capsys.readouterr().out
    assert not learned
    asked.cost = False
    digits.make_rows(asked, file, (*columns, "seconds"))
    rows = digits.read_rows(file)
    assert [(row["pool"], row["seed"]) for row in rows] == [
        ("avg-bn", "0"),
        ("query", "0"),
        ("avg-bn", "1"),
        ("query", "1"),
    ]
    tried = digits.read_rows(tmp_path / "law_of_pooling_rates.csv")
    assert len(learned) == len(tried) + 2  # seed 0 is the chosen rate's network
    digits.make_rows(asked, file, (*columns, "seconds"))
    assert len(learned) == len(tried) + 2
    asked.steps = 1_000  # by the same rates
    digits.make_rows(asked, file, (*columns, "seconds"))
    assert len(learned) == len(tried) + 2 + 4
    more = [row for row in digits.read_rows(file) if row not in rows]
    assert {row["data"] for row in more} == {"cluttered digits, 1,000 steps"}
    assert [row["lr"] for row in more] == [row["lr"] for row in rows]


def test_a_table_pairs_seeds(law, digits):
    place = {"data": digits.DATA, "object_share": "5", "map_size": "8"}
    rows = [
        {**place, "pool": pool, "seed": str(seed), "accuracy": str(base + seed / 100)}
        for pool, base in (("avg-bn", 0.5), ("query", 0.75))
        for seed in range(5)
    ]
    page = law.page_of(rows, "", "Made.")
    table = page.partition("#### 8 x 8 cells, cluttered digits\n")[2]
    assert "| query | +25.0 (+25.0 to +25.0) |" in table
    assert "| avg-bn | 52.0 (50.0 to 54.0) |" in table
    assert "### 4 x 4" not in page
