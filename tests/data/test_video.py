import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.data.video import is_video, named_images, read_frames
from convattn.exceptions import UnreadableImageError

SHADES = (10, 60, 110, 160, 210)


def frames(size=(48, 32)):
    """Grey images of rising brightness, a bright corner at the upper left."""
    for shade in SHADES:
        pixels = np.full((size[1], size[0], 3), shade, np.uint8)
        pixels[: size[1] // 2, : size[0] // 2] = 255
        yield Image.fromarray(pixels)


def write_video(file, images, codec="mpeg4"):
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = None
        for image in images:
            if stream is None:
                stream = container.add_stream(codec, rate=10)
                stream.width, stream.height = image.size
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return file


def brightness(image):
    """Of the lower right quarter."""
    pixels = np.asarray(image)
    return pixels[pixels.shape[0] // 2 :, pixels.shape[1] // 2 :].mean()


def test_every_frame_comes_in_order(tmp_path):
    found = list(read_frames(write_video(tmp_path / "clip.mp4", frames())))
    assert [number for number, _ in found] == [0, 1, 2, 3, 4]
    assert [image.size for _, image in found] == [(48, 32)] * 5
    assert [brightness(image) for _, image in found] == pytest.approx(SHADES, abs=6)


def test_one_frame_of_so_many_is_taken(tmp_path):
    file = write_video(tmp_path / "clip.mp4", frames())
    (tmp_path / "still.png").write_bytes(b"none")
    found = list(named_images([file, tmp_path / "still.png"], every=2))
    assert [one.name for one in found[:3]] == [f"{file}#{number}" for number in (0, 2, 4)]
    assert [one.stem for one in found] == ["clip_000000", "clip_000002", "clip_000004", "still"]
    assert [brightness(one.image) for one in found[:3]] == pytest.approx(SHADES[::2], abs=6)
    assert isinstance(found[3].image, UnreadableImageError)


def test_a_video_that_lies_on_its_side_is_turned(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    file = write_video(tmp_path / "clip.mp4", frames())
    decode = av.container.InputContainer.decode

    class Turned:
        rotation = -90  # clockwise, as a telephone held upright notes it

        def __init__(self, frame):
            self.to_image = frame.to_image

    class Container:
        def __init__(self, container):
            self.container, self.streams = container, container.streams

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.container.close()

        def decode(self, stream):
            return map(Turned, decode(self.container, stream))

    opened = av.open
    monkeypatch.setattr(av, "open", lambda path: Container(opened(path)))
    _, image = next(read_frames(file))
    assert image.size == (32, 48)
    pixels = np.asarray(image)
    assert pixels[:24, 16:].mean() > 240  # the upper left corner has come to the upper right
    assert pixels[24:].mean() < 20


def test_sound_alone_has_no_frame(tmp_path):
    av = pytest.importorskip("av")
    file = tmp_path / "sound.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate, sound.time_base, sound.pts = 8000, Fraction(1, 8000), 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(UnreadableImageError, match=r"sound\.mkv has no frame: it is empty or"):
        list(read_frames(file))


def test_a_damaged_video_is_told(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "clip.mp4").write_bytes(b"no video" * 99)
    with pytest.raises(UnreadableImageError, match=r"clip\.mp4 cannot be read as a video \(Inv"):
        list(read_frames(tmp_path / "clip.mp4"))


def test_a_video_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"clip\.mp4 does not exist"):
        next(read_frames(tmp_path / "clip.mp4"))


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(ValueError, match=r"PyAV, .* pip install 'convattn\[video\]'"):
        next(read_frames(tmp_path / "clip.mp4"))


def test_videos_are_told_by_their_extension(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    assert is_video(Path("CLIP.MP4"))
    assert not is_video(Path("image.png"))
    assert not is_video(tmp_path / "folder.mp4")
