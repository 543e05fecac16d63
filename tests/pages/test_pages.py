import base64
import io

from PIL import Image

from convattn.pages import Picture, embed, render


def test_a_picture_is_whole_and_no_larger_than_asked():
    data = embed(Image.new("RGBA", (300, 150), (250, 0, 0, 255)), 100)
    content = base64.b64decode(data.removeprefix("data:image/jpeg;base64,"))
    image = Image.open(io.BytesIO(content))
    assert image.size == (100, 50)
    red, green, blue = image.getpixel((50, 25))
    assert red > 240
    assert max(green, blue) < 15


def test_whatever_comes_from_outside_is_escaped():
    page = render("tests.pages", "page.html", {"text": "<b>\x1b\udcff", "numbers": [1, 3]}).decode()
    assert "<b>" not in page
    assert page.count("&lt;b&gt;\\x1b\\udcff") == 5  # title, cell, alt, caption, listed name


def test_bars_are_as_high_as_their_numbers():
    page = render("tests.pages", "page.html", {"text": "", "numbers": [1, 2]}).decode()
    assert 'height="34.00"' in page
    assert 'height="68.00"' in page


def test_a_picture_needs_no_detail():
    assert Picture(data="data:,", caption="a").detail == ""
