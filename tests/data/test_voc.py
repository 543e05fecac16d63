import pytest
from PIL import Image

from convattn.data import load_detection

WIDTH, HEIGHT = 40, 20


def thing(name="dog", box=(3, 4, 20, 17), difficult=0, more=""):
    left, top, right, bottom = box
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>{more}<bndbox>"
        f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>"
        "</object>"
    )


def add(root, stem, *objects, folder="Annotations", images="JPEGImages", name=None, **changes):
    """An image and its xml."""
    for inside in (root / folder, root / images):
        inside.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (sum(stem.encode()) % 251, len(stem), 9)).save(
        root / images / f"{stem}.jpg"
    )
    size = changes.get("size", f"<width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth>")
    source = changes.get("source", "")
    (root / folder / f"{stem}.xml").write_text(
        f"<annotation><filename>{name or stem + '.jpg'}</filename>{source}<size>{size}</size>"
        f"{''.join(objects)}</annotation>"
    )


def listed(root, **lists):
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    for split, stems in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))


@pytest.fixture
def make(tmp_path):
    """Writes a set with one training image of these objects, and gives its folder."""

    def make_voc(*objects, **changes):
        add(tmp_path, "000001", *objects, **changes)
        add(tmp_path, "000002", thing())
        listed(tmp_path, train=["000001"], val=["000002"])
        return tmp_path

    return make_voc


def load(root, **arguments):
    return load_detection("folder", root=root, format="voc", **arguments)


def boxes(source):
    return source.train[0][1]["boxes"].tolist()


# --- objects


def test_boxes_count_pixels_from_1_as_pascals_do(make):
    source = load(make(thing(), thing("cat", (1, 1, 40, 20)), thing("dog", (7, 7, 7, 7))))
    assert boxes(source) == [[2, 3, 20, 17], [0, 0, 40, 20], [6, 6, 7, 7]]
    assert source.class_names == ("cat", "dog")
    assert source.train[0][1]["labels"].tolist() == [2, 1, 2]
    assert "are taken to count pixels from 1, as Pascal's do" in source.notes[-1]


def test_boxes_count_from_0_where_one_begins_there(make):
    source = load(make(thing(), thing("dog", (0, 2, 40, 20))))
    assert boxes(source) == [[3, 4, 20, 17], [0, 2, 40, 20]]
    assert "object 2 (dog) of 000001.xml shows" in source.notes[-1]


def test_boxes_of_labelimg_count_from_0(tmp_path):
    source = "<source><database>Unknown</database></source>"
    for stem in ("a", "b"):
        add(tmp_path, stem, thing(), folder=".", images=".", source=source)
    found = load(tmp_path)
    assert boxes(found) == [[3, 4, 20, 17]]
    assert "as LabelImg and CVAT write them" in found.notes[-1]


def test_difficult_objects_are_crowds(make):
    source = load(make(thing(), thing("dog", (3, 4, 5, 6), difficult=1)))
    assert source.train[0][1]["iscrowd"].tolist() == [False, True]


def test_parts_of_an_object_are_no_objects_and_its_box_is_its_own(make):
    inner = thing("head", (9, 9, 10, 10)).replace("object>", "part>")
    source = load(make(thing(more=inner)))
    assert boxes(source) == [[2, 3, 20, 17]]


@pytest.mark.parametrize("file", ["labels.txt", "classes.txt", "labelmap.txt"])
def test_a_list_orders_the_classes(make, file):
    root = make(thing("cat"))
    tail = ":0,0,0::" if file == "labelmap.txt" else ""
    names = ("background", "dog", "cat", "bird")
    (root / file).write_text(
        "# label:colour\n" * bool(tail) + "".join(f"{n}{tail}\n" for n in names)
    )
    source = load(root)
    assert source.class_names == ("dog", "cat", "bird")
    (root / file).write_text("dog\n")
    with pytest.raises(
        ValueError, match=r"000001\.xml: object 1 \(cat\) is of a class that the list"
    ):
        load(root)


@pytest.mark.parametrize(
    ("object_", "message"),
    [
        (
            thing("cat", (30, 4, 10, 17)),
            r"object 2 \(cat\) has xmin=30, ymin=4, xmax=10, ymax=17; exp",
        ),
        (thing("cat", (3, 17, 10, 4)), "expected xmin below xmax and ymin below ymax"),
        (thing("cat", (3, 4, 99, 17)), "inside the image's 40 x 20 pixels"),
        (
            thing("cat", (3, 4, "x", 17)),
            "has xmin=3, ymin=4, xmax=x, ymax=17; expected four numbers",
        ),
        (thing("cat", (3, 4, "nan", 17)), "expected four numbers"),
        ("<object><name>cat</name></object>", "xmin=None, .*expected four numbers in bndbox"),
        (thing(""), "object 2 has no name; expected its class"),
    ],
)
def test_a_bad_object_is_named_or_skipped(make, object_, message):
    root = make(thing(), object_)
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert f"{root / 'Annotations' / '000001.xml'}: object 2" in str(caught.value)
    assert boxes(load(root, bad_annotations="skip")) == [[2, 3, 20, 17]]


@pytest.mark.parametrize("size", ["", "<width>0</width><height>0</height>", "<width>x</width>"])
def test_the_image_tells_its_size_where_the_xml_does_not(make, size):
    source = load(make(thing(), size=size))
    assert (source.train.samples[0].height, source.train.samples[0].width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>", "defines a document type"),
        ("<annotation><object>", "is no xml"),
        ("<svg></svg>", "holds <svg>; expected <annotation>"),
        ("", "is no xml"),
    ],
)
def test_a_bad_xml_is_named_or_skipped(make, content, message):
    root = make(thing())
    add(root, "000003", thing())
    listed(root, train=["000003", "000001"])
    (root / "Annotations" / "000001.xml").write_text(content)
    with pytest.raises(ValueError, match=rf"000001\.xml: {message}"):
        load(root)
    source = load(root, bad_annotations="skip")
    assert [name[-10:] for name in source.train.names] == ["000003.jpg"]
    assert source.skipped["unreadable xml"] == 1


# --- layouts


def test_lists_say_which_images_in_their_order(make):
    root = make(thing())
    add(root, "000003", thing())
    add(root, "000004", thing())
    listed(root, train=["000003  1", "000001 -1"], test=["000004"])
    (root / "ImageSets" / "Main" / "dog_train.txt").write_text("000004 1\n")
    source = load(root)
    assert [name[-5:] for name in source.train.names] == ["3.jpg", "1.jpg"]
    assert [name[-5:] for name in source.test.names] == ["2.jpg"]  # val before test
    assert source.skipped_names["list beside the splits"] == ("ImageSets/Main/test.txt",)
    assert source.skipped_names["image that no list and xml names"] == ("JPEGImages/000004.jpg",)


def test_trainval_trains_where_there_is_test_alone(make):
    root = make(thing())
    (root / "ImageSets" / "Main" / "train.txt").rename(root / "ImageSets" / "Main" / "trainval.txt")
    (root / "ImageSets" / "Main" / "val.txt").rename(root / "ImageSets" / "Main" / "test.txt")
    source = load(root)
    assert (len(source.train), len(source.test)) == (1, 1)


@pytest.mark.parametrize("depth", ["VOC2007", "VOCdevkit/VOC2012"])
def test_the_folder_of_the_archive_is_found(tmp_path, depth):
    for stem in ("1", "2"):
        add(tmp_path / depth, stem, thing())
    listed(tmp_path / depth, train=["1"], val=["2"])
    assert len(load_detection("folder", root=tmp_path).train) == 1


def test_two_years_are_refused(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        add(tmp_path / year, "1", thing())
    with pytest.raises(ValueError, match="holds VOC2007 and VOC2012; give one of them as root"):
        load(tmp_path)


def test_roboflows_folders_hold_images_and_xml(tmp_path):
    for number, split in enumerate(("train", "valid", "test")):
        add(tmp_path, f"{number}_jpg.rf.0a", thing(), folder=split, images=split)
    source = load_detection("folder", root=tmp_path)
    assert [name[-14:] for name in source.test.names] == ["1_jpg.rf.0a.jpg"[-14:]]
    assert source.skipped["folder beside the splits"] == 1


def test_a_wrong_filename_is_told_and_the_stem_taken(make):
    source = load(make(thing(), name="C:\\photos\\DSC1.JPG"))
    assert source.train.names[0].endswith("000001.jpg")
    assert any("1 xml files" in note and "says DSC1.JPG" in note for note in source.notes)


def test_the_filename_finds_an_image_that_is_called_otherwise(make):
    root = make(thing(), name="photo.jpg")
    (root / "JPEGImages" / "000001.jpg").rename(root / "JPEGImages" / "photo.jpg")
    assert load(root).train.names[0].endswith("photo.jpg")


@pytest.mark.parametrize(
    ("stems", "reason", "message"),
    [
        (["000001", "9"], "missing xml", "line 2 lists '9', and no 9.xml is there"),
        (["000001", "000001"], "repeated image", "line 2 lists '000001', as line 1 does"),
    ],
)
def test_a_bad_list_is_named_or_skipped(make, stems, reason, message):
    root = make(thing())
    listed(root, train=stems)
    with pytest.raises(ValueError, match=rf"Main/train\.txt: {message}"):
        load(root)
    source = load(root, bad_annotations="skip")
    assert (len(source.train), source.skipped) == (1, {reason: 1})


def test_a_missing_image_is_named(make):
    root = make(thing())
    (root / "JPEGImages" / "000001.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"000001\.xml: has no image: none in \S+ is called 000001"
    ):
        load(root)


def test_two_images_of_one_name_are_refused(make):
    root = make(thing())
    (root / "JPEGImages" / "000001.png").write_bytes((root / "JPEGImages/000001.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"'000001' may be \S+000001\.jpg or \S+000001\.png; name"):
        load(root)
