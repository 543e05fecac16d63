import csv
import io
from collections import Counter

import pytest
import torch

from convattn.classification.predictions import (
    MultiLabelPredictions,
    Predictions,
    PredictionsFile,
    average_precision_table,
    confusions,
    join,
    per_class_table,
)

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox, grey", "gnu")


def some(count=30, *, attention=False, ranks=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, len(NAMES), generator=generator)
    return Predictions(
        labels=torch.randint(0, 6, (count,), generator=generator),
        classes=scores.topk(ranks, dim=1).indices,
        losses=torch.rand(count, generator=generator).double(),
        peaks=torch.rand(count, generator=generator) > 0.5 if attention else None,
        energies=torch.rand(count, generator=generator).double() if attention else None,
    )


def part(predictions, start, end):
    tensors = {
        name: None if tensor is None else tensor[start:end]
        for name, tensor in vars(predictions).items()
    }
    return Predictions(**tensors)


def same(one, other):
    return all(
        (mine is None and theirs is None) or torch.equal(mine, theirs)
        for mine, theirs in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def names(count):
    return [f"n01/{number}, tail.JPEG" for number in range(count)]


def written(path, predictions, batch_size=4):
    file = PredictionsFile(path, names(len(predictions)))
    for start in range(0, len(predictions), batch_size):
        file.append(part(predictions, start, start + batch_size))
    return path


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("ranks", [2, 5])
def test_file_gives_the_same_bits_back(tmp_path, attention, ranks):
    predictions = some(attention=attention, ranks=ranks)
    path = written(tmp_path / "file.csv", predictions)
    back = PredictionsFile(path, names(30)).rewind(predictions.labels, 4)
    assert same(back, predictions)


def test_file_is_plain_csv(tmp_path):
    predictions = some(3)
    with written(tmp_path / "file.csv", predictions).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == names(3)
    assert [int(row["rank2"]) for row in rows] == predictions.classes[:, 1].tolist()


def torn(content, rows, extra=b""):
    """The header, some rows, and what was being written."""
    return b"".join(content.splitlines(keepends=True)[: 1 + rows]) + extra


@pytest.mark.parametrize(
    ("rows", "extra", "kept"),
    [
        (8, b"", 8),
        (10, b"", 8),
        (11, b'"n01/11, ta', 8),
        (12, b"\0\0\0\0\n", 12),
        (12, b"a,b,c,d,e,f,g,h\n", 12),
        (3, b"", 0),
        (0, b"", 0),
    ],
)
def test_rewinding_keeps_whole_batches_and_the_rest_follows(tmp_path, rows, extra, kept):
    predictions = some()
    path = written(tmp_path / "file.csv", predictions)
    whole = path.read_bytes()
    path.write_bytes(torn(whole, rows, extra))
    file = PredictionsFile(path, names(30))
    back = file.rewind(predictions.labels, 4)
    assert (0 if back is None else len(back)) == kept
    for start in range(kept, 30, 4):
        file.append(part(predictions, start, start + 4))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"image,lab"])
def test_file_without_a_whole_header_is_begun_anew(tmp_path, content):
    (tmp_path / "file.csv").write_bytes(content)
    predictions = some(4)
    file = PredictionsFile(tmp_path / "file.csv", names(4))
    assert file.rewind(predictions.labels, 4) is None
    file.append(predictions)
    assert file.path.read_bytes() == written(tmp_path / "other.csv", predictions).read_bytes()


def test_other_images_are_told(tmp_path):
    predictions = some()
    path = written(tmp_path / "file.csv", predictions)
    others = [*names(30)[:6], "other.JPEG", *names(30)[7:]]
    with pytest.raises(ValueError, match=r"row 7 of .* the data have other.JPEG, class"):
        PredictionsFile(path, others).rewind(predictions.labels, 4)


def test_other_labels_are_told(tmp_path):
    predictions = some()
    path = written(tmp_path / "file.csv", predictions)
    labels = predictions.labels.clone()
    labels[2] = 6
    with pytest.raises(ValueError, match=r"row 3 of .* class 6: the data have changed"):
        PredictionsFile(path, names(30)).rewind(labels, 4)


def slow_confusions(predictions):
    pairs = zip(predictions.labels.tolist(), predictions.classes[:, 0].tolist(), strict=True)
    return Counter((label, first) for label, first in pairs if label != first)


def test_confusions_are_the_slow_count():
    predictions = some(300)
    found = confusions(predictions)
    assert {(label, taken): times for label, taken, times in found} == slow_confusions(predictions)
    assert [(-times, label, taken) for label, taken, times in found] == sorted(
        (-times, label, taken) for label, taken, times in found
    )


def test_per_class_table_is_the_slow_loop():
    predictions = some(300)
    rows = list(csv.DictReader(io.StringIO(per_class_table(predictions, NAMES))))
    assert [row["name"] for row in rows] == list(NAMES)
    for number, row in enumerate(rows[:6]):
        mine = [
            ranked
            for label, ranked in zip(
                predictions.labels.tolist(), predictions.classes.tolist(), strict=True
            )
            if label == number
        ]
        wrong = Counter(ranked[0] for ranked in mine if ranked[0] != number)
        assert int(row["images"]) == len(mine)
        assert float(row["top1"]) == sum(ranked[0] == number for ranked in mine) / len(mine)
        assert float(row["top5"]) == sum(number in ranked for ranked in mine) / len(mine)
        assert wrong[NAMES.index(row["mistaken_for"])] == max(wrong.values()) == int(row["times"])


def test_class_without_images_has_an_empty_row():
    last = per_class_table(some(), NAMES, tuple("abcdefg")).splitlines()[-1]
    assert last == "6,g,gnu,0,,,,0"


def test_class_that_is_always_right_is_mistaken_for_nothing():
    labels = torch.tensor([0, 1])
    predictions = Predictions(
        labels=labels, classes=torch.tensor([[0, 1], [1, 0]]), losses=torch.zeros(2)
    )
    assert per_class_table(predictions, NAMES[:2]).splitlines()[1] == "0,,ant,1,1.0,,0"


def part_of(predictions, start, end):
    return MultiLabelPredictions(**{k: v[start:end] for k, v in vars(predictions).items()})


def several(count=10):
    generator = torch.Generator().manual_seed(1)
    return MultiLabelPredictions(
        labels=torch.rand(count, 3, generator=generator) < 0.4,
        scores=torch.rand(count, 3, generator=generator),
        losses=torch.rand(count, generator=generator).double(),
    )


def test_file_of_several_classes_gives_the_same_bits_back(tmp_path):
    predictions = several()
    file = PredictionsFile(tmp_path / "file.csv", names(10))
    file.append(predictions)
    again = PredictionsFile(file.path, names(10)).rewind(predictions.labels, 4)
    assert same(again, predictions)
    assert same(join([part_of(again, 0, 3), part_of(again, 3, 10)]), predictions)
    other = predictions.labels.clone()
    other[2] = torch.tensor([True, False, True])
    predictions.labels[2] = False
    file.path.unlink()
    PredictionsFile(file.path, names(10)).append(predictions)
    with pytest.raises(ValueError, match=r"row 3 .*classes none, where .*classes 0, 2: the data"):
        PredictionsFile(file.path, names(10)).rewind(other, 4)


def test_table_of_several_classes_counts():
    predictions = several()
    text = average_precision_table(predictions, ["a", "b", "c"], {"a": 0.5, "c": 0.25})
    rows = list(csv.DictReader(io.StringIO(text)))
    for number, row in enumerate(rows):
        assert int(row["images"]) == sum(bits[number] for bits in predictions.labels.tolist())
        taken = sum(scores[number] >= 0.5 for scores in predictions.scores.tolist())
        assert int(row["taken"]) == taken
    assert [row["average_precision"] for row in rows] == ["0.5", "", "0.25"]
