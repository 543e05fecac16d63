import pytest

from convattn.data.annotated import EntryFault
from convattn.data.folders import LeftOut
from convattn.data.listing import Listing, holds


@pytest.fixture
def listing(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "b/2.png", "b/2.txt", "train/deep/3.jpg", ".git/4.jpg"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text")
    return Listing(tmp_path, LeftOut())


def test_files_and_images_are_what_is_to_be_seen(listing):
    found = [listing.relative(path) for path in listing.files]
    assert found == ["a/1.jpg", "b/1.jpg", "b/2.png", "b/2.txt", "train/deep/3.jpg"]
    assert [listing.relative(path) for path in listing.images] == found[:3] + found[4:]
    assert listing.ending(".txt") == [str(listing.root / "b" / "2.txt")]
    assert str(listing.root / "b" / "2.txt") in listing


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2.png", "b/2.png"),
        ("b\\1.jpg", "b/1.jpg"),
        ("../../a/1.jpg", "a/1.jpg"),
        ("deep/3.jpg", "train/deep/3.jpg"),
        ("eep/3.jpg", None),
        ("4.jpg", None),
        ("2.txt", None),
        ("", None),
    ],
)
def test_an_image_is_found_by_the_end_of_its_path(listing, name, expected):
    found = listing.find(name, ())
    assert (found and listing.relative(found)) == expected


def test_folders_are_looked_into_in_turn(listing):
    a, b = listing.root / "a", listing.root / "b"
    with pytest.raises(EntryFault, match=r"'1\.jpg' may be a/1\.jpg or b/1\.jpg"):
        listing.find("1.jpg", ())
    with pytest.raises(EntryFault, match=r"may be a/1\.jpg or b/1\.jpg"):
        listing.find("1.jpg", ((a, b),))
    assert listing.find("1.jpg", ((b,), (a,))) == str(b / "1.jpg")
    assert listing.find("1.jpg", ((), ()), apart=(b,)) == str(a / "1.jpg")


def test_the_split_is_that_of_the_nearest_folder(listing):
    assert listing.split_of(listing.files[-1]) == "train"
    assert listing.split_of(listing.files[0]) is None


def test_words_of_a_file(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('{"images": 1, "shapes": 2}')
    assert holds(str(file), b'"images"', b'"shapes"')
    assert not holds(str(file), b'"images"', b'"annotations"')
    file.write_text("")
    assert not holds(str(file), b"images")
    assert not holds(str(tmp_path / "absent"), b"images")


@pytest.fixture
def capitals(tmp_path):
    for name in ("a/IMG_1.JPG", "b/IMG_2.JPG", "b/img_2.jpg", "c/IMG_3.PNG", "d/img_3.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("text")
    return Listing(tmp_path, LeftOut())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("img_1.jpg", "a/IMG_1.JPG"),
        ("A\\img_1.JPG", "a/IMG_1.JPG"),
        ("b/img_1.jpg", None),
        ("b/img_2.jpg", "b/img_2.jpg"),
        ("b/IMG_2.JPG", "b/IMG_2.JPG"),
        ("C/img_3.png", "c/IMG_3.PNG"),
    ],
)
def test_capitals_count_only_where_they_tell_images_apart(capitals, name, expected):
    found = capitals.find(name, ())
    assert (found and capitals.relative(found)) == expected


@pytest.mark.parametrize("name", ["Img_2.jpg", "Img_3.png"])
def test_two_images_that_differ_in_capitals_are_refused(capitals, name):
    with pytest.raises(EntryFault, match="may be"):
        capitals.find(name, ())


def test_a_stem_in_capitals_is_found(capitals):
    found = capitals.find_by_stem(str(capitals.root / "img_1.xml"), capitals.root, lambda _: [])
    assert capitals.relative(found) == "a/IMG_1.JPG"
