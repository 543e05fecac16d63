import pytest
import torch

from convattn.data.drawing import draw_held_out, draw_mixed_test, find_duplicates, group_by_name


@pytest.mark.parametrize("seed", range(20))
def test_drawn_parts_are_those_of_single_images_where_nothing_belongs_together(seed):
    labels = torch.randint(3, (97,), generator=torch.Generator().manual_seed(seed)).sort().values
    generator = torch.Generator().manual_seed(seed)
    expected = torch.zeros(97, dtype=torch.bool)
    for label in range(3):
        members = (labels == label).nonzero()[:, 0]
        drawn = torch.randperm(len(members), generator=generator)[: round(0.2 * len(members))]
        expected[members[drawn]] = True
    assert torch.equal(draw_held_out(labels, "abc", [], seed), expected)


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_near_a_fifth_of_every_class(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (400,), generator=generator)
    groups = torch.randint(60, (400,), generator=generator)
    together = [(groups == one).nonzero()[:, 0].tolist() for one in groups.unique()]
    for_test = draw_held_out(labels, "abcd", together, seed)
    for group in together:
        assert len(set(for_test[group].tolist())) == 1
    for label in range(4):
        assert 0.1 < for_test[labels == label].float().mean() < 0.35


def test_classes_that_cannot_be_parted_are_named():
    together = [[0, 2, 4], [1, 3, 5]]
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    for_test = draw_held_out(labels, "abc", together, 0)
    assert for_test.sum() == 3
    with pytest.raises(ValueError, match="class 'b' belong together"):
        draw_held_out(torch.tensor([0, 0, 1, 1]), "ab", [[2, 3]], 0)


def test_duplicates_are_of_the_same_bytes(tmp_path):
    contents = [b"one" * 5000, b"two" * 5000, b"one" * 5000, b"xne" + b"one" * 4999, b"short"]
    files = []
    for number, content in enumerate([*contents, b"short"]):
        files.append(str(tmp_path / str(number)))
        (tmp_path / str(number)).write_bytes(content)
    assert find_duplicates([*files, str(tmp_path / "missing")]) == [[0, 2], [4, 5]]


def test_groups_are_what_the_pattern_finds(tmp_path):
    paths = [str(tmp_path / name) for name in ("a/p1_x", "b/p1_y", "b/p2_x", "b/none")]
    assert group_by_name(paths, tmp_path, r"p\d") == [[0, 1], [2]]
    assert group_by_name(paths, tmp_path, r"/(p)\d") == [[0, 1, 2]]
    assert group_by_name(paths, tmp_path, r"^(\w)/") == [[0], [1, 2, 3]]


# --- a test of images with several classes


def test_a_fifth_of_images_with_several_classes_and_every_class_is_learnt():
    generator = torch.Generator().manual_seed(0)
    for seed in range(60):
        count = int(torch.randint(20, 60, (), generator=generator))
        classes = [
            set(torch.randint(0, 6, (int(number),), generator=generator).tolist())
            for number in torch.randint(0, 4, (count,), generator=generator)
        ]
        together = [torch.randperm(count, generator=generator)[:2].tolist() for _ in range(2)]
        for_test = draw_mixed_test(classes, together, seed)
        tested = set().union(*(one for one, test in zip(classes, for_test, strict=True) if test))
        learnt = set().union(
            *(one for one, test in zip(classes, for_test, strict=True) if not test)
        )
        assert tested <= learnt
        assert 0.1 * count < for_test.sum() < 0.35 * count
        assert all(for_test[one] == for_test[other] for one, other in together)
        assert torch.equal(for_test, draw_mixed_test(classes, together, seed))


def test_classes_that_one_image_has_stay_in_training():
    classes = [{0}, {0}, {0}, {0}, {0, 1}, {2}]
    for seed in range(20):
        for_test = draw_mixed_test(classes, [], seed)
        assert for_test.tolist()[4:] == [False, False]
        assert for_test.sum() == 1


def test_no_image_to_spare_is_an_error():
    with pytest.raises(ValueError, match="none of the 3 images can be spared to test"):
        draw_mixed_test([{0}, {1}, {2}], [], 0)
    with pytest.raises(ValueError, match="none of the 3 images can be spared to test"):
        draw_mixed_test([{0}, {0}, {0}], [[0, 1, 2]], 0)
