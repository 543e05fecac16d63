import csv
import dataclasses
import io

import numpy as np
import pytest
import torch
from scipy import stats

from convattn.probing.report import Findings, over_images, over_seeds, to_csv


def findings():
    """Two pools and neighbours, three seeds, four test images of which ep takes one more."""
    labels = torch.tensor([0, 1, 0, 1])
    sure = torch.nn.functional.one_hot(labels, 2).float() * 4
    worse = sure.clone()
    worse[0] = torch.tensor([0.0, 4.0])
    logits = [{"knn": worse, "avg": worse, "ep": sure}] * 3
    rows = [
        {
            "pool": pool,
            "seed": seed,
            "lr": "" if pool == "knn" else 1e-3 * (seed + 1),
            "accuracy": accuracy + 0.01 * seed * (pool == "ep"),
            "balanced_accuracy": accuracy,
            "cross_entropy": 0.5,
            "ece": 0.1,
            "parameters": 10,
            "seconds": 1.0,
            "validation_loss": loss,
        }
        for seed in range(3)
        for pool, accuracy, loss in (("knn", 0.75, 0.0), ("avg", 0.75, 0.4), ("ep", 0.97, 0.3))
    ]
    return Findings(rows=rows, labels=labels, logits=logits, images=100, cached=10, times={})


def test_student_s_interval_is_scipy_s():
    values = [0.9, 0.92, 0.97, 0.91]
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert over_seeds(values[:2]).low is None


def test_the_bootstrap_is_near_the_normal_interval():
    values = torch.tensor([1.0] * 700 + [0.0] * 300)
    found = over_images(values)
    half = 1.96 * (0.7 * 0.3 / 1000) ** 0.5
    assert found.mean == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - half, abs=0.003)
    assert found.high == pytest.approx(0.7 + half, abs=0.003)


def test_differences_are_paired_with_the_average_pool():
    found = findings().difference("ep", "accuracy")
    assert found.mean == pytest.approx(0.23)
    assert found.low < 0.23 < found.high
    over = findings().difference_over_images("ep")
    assert over.mean == pytest.approx(0.25)
    assert over.low == 0.0


def test_the_best_is_the_smallest_pool_near_the_least_validation_loss():
    assert findings().best == "ep"
    losses = {0: (0.3, 0.3), 1: (0.3, 0.35), 2: (0.34, 0.3)}  # of avg and ep, a seed each
    rows = [
        row
        | {"parameters": 10 if row["pool"] == "avg" else 20}
        | {"validation_loss": losses[row["seed"]][row["pool"] == "ep"]}
        for row in findings().rows
    ]
    assert dataclasses.replace(findings(), rows=rows).best == "avg"


def test_the_reading_names_what_lies_above():
    assert "above the average pool's for ep" in findings().reading()
    assert "below for no pool" in findings().reading()


def test_heads_that_neighbours_beat_are_told_to_be_trained_longer():
    found = findings()
    assert "took too few steps" in found.reading()
    far = [row | ({"validation_loss": 0.35} if row["pool"] == "knn" else {}) for row in found.rows]
    assert "took too few steps" not in dataclasses.replace(found, rows=far).reading()


def test_every_line_of_the_table_has_its_columns():
    found = findings()
    assert {len(found.cells(pool)) for pool in found.pools} == {len(found.head)}
    assert found.cells("ep")[6] == "0.002 (0.001 to 0.003)"


def test_csv_reads_back():
    rows = [{"pool": "ep", "lr": 0.00123456789}, {"pool": "knn"}]
    found = list(csv.DictReader(io.StringIO(to_csv(rows, ("pool", "lr")))))
    assert found == [{"pool": "ep", "lr": "0.00123457"}, {"pool": "knn", "lr": ""}]
