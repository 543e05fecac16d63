import pytest
import torch

from convattn.data import load_detection, load_source
from convattn.data.counts import SHOWN, Counts, count, judge_counts, summarize
from convattn.text import list_names
from tests.checks.faults import good_classes


def judged(train, test=None, unit="images"):
    classes = {"train": train} if test is None else {"train": train, "test": test}
    counts = Counts(
        unit=unit,
        class_names=tuple("abcdef"[: len(train)]),
        images={part: sum(numbers) for part, numbers in classes.items()},
        classes=classes,
    )
    return {one.kind: one for one in judge_counts(counts)}


def test_even_classes_are_no_finding():
    assert judged((30, 60), (60, 60)) == {}


@pytest.mark.parametrize(("numbers", "told"), [((400, 41), False), ((400, 40), True)])
def test_ten_times_as_many_are_told(numbers, told):
    found = judged(numbers)
    assert ("imbalance" in found) == told
    if told:
        assert "'a' there are 400" in found["imbalance"].sentence
        assert "10 times as many as the 40 of 'b'" in found["imbalance"].sentence


def test_a_class_without_training_images_is_an_error_and_without_objects_a_warning():
    assert judged((30, 0, 30))["no_train_image"].severity == "error"
    assert judged((30, 0, 30), unit="objects")["no_train_object"].severity == "warning"
    assert judged((30, 30), (200, 0))["no_test_image"].severity == "warning"


def test_folders_of_data_that_became_classes_are_told():
    counts = Counts(
        unit="images", class_names=("images", "masks"), images={}, classes={"train": (30, 30)}
    )
    (finding,) = judge_counts(counts)
    assert finding.sentence.startswith("'images', 'masks' taken as classes")


def test_few_images_are_told_with_the_fewest_first():
    assert "2 of 3 classes" in judged((20, 19, 3))["few"].sentence
    assert "'c' 3, 'b' 19" in judged((20, 19, 3))["few"].sentence


def test_the_margin_of_a_small_test():
    # 1.96 * sqrt(0.5 * 0.5 / 25) = 0.196
    assert "up to 20 points" in judged((50, 50), (10, 15))["small_test"].sentence


def test_classes_are_counted_by_part(tmp_path):
    counts = count(load_source("folder", root=good_classes(tmp_path, 3, 2)))
    assert counts.classes == {"train": (3, 3), "test": (2, 2)}


def test_columns_of_several_classes_an_image_are_counted(tmp_path):
    source = load_source("folder", root=good_classes(tmp_path, 3, 2))
    source.train.labels = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0], [0, 0], [0, 0]])
    assert count(source).classes["train"] == (3, 1)


@pytest.mark.long
def test_generated_objects_are_not_counted():
    source = load_detection("cluttered_digits", num_train=4, num_test=2)
    assert count(source).classes == {}


def test_the_summary_tells_numbers_and_the_worst(tmp_path):
    source = load_source("folder", root=good_classes(tmp_path, 3, 2))
    first, second = summarize(source, "HERE")
    assert first == "6 images to train (3 a class), 4 images to test (2 a class); 2 classes"
    assert "'cat' 3, 'dog' 3" in second
    assert second.endswith("see convattn check-data HERE")


def test_a_test_alone_is_summed_up_alone(tmp_path):
    source = load_source("folder", root=good_classes(tmp_path, 3, 2), class_names=["cat", "dog"])
    assert summarize(source, "HERE") == ["4 images to test (2 a class); 2 classes"]


def test_long_lists_are_cut():
    assert list_names(list("abcdefg"), SHOWN) == "a, b, c, d, e and 2 more"
