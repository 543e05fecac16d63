"""Videos as images, one frame after the other, by PyAV of the extra ``video``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from convattn.data.reading import check_number_of_pixels, read_or_error
from convattn.exceptions import UnreadableImageError

VIDEO_EXTENSIONS: tuple[str, ...] = (
    *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv"),
)
"""Of files that are taken for videos."""

_QUARTER = 90  # degrees


@dataclass(frozen=True)
class NamedImage:
    """An image of a file or a frame of a video, or why there is none."""

    name: str
    """Path of the file; of a frame followed by # and its number, from 0."""
    stem: str
    """Name for files about it."""
    file_name: str
    """Name without folders; of a frame that of its drawing."""
    image: Image.Image | UnreadableImageError
    """Upright, in RGB."""


def is_video(path: Path) -> bool:
    """Whether a path is that of a video, by its extension.

    Args:
        path: Of a file or folder.
    """
    return path.suffix.lower() in VIDEO_EXTENSIONS and not path.is_dir()


def named_images(files: Sequence[Path], *, every: int = 1) -> Iterator[NamedImage]:
    """The images of files, and of videos among them the frames.

    Args:
        files: Images and videos.
        every: Of a video, one frame of this many is taken, the first one among them.

    Raises:
        UnreadableImageError: If a video cannot be read, or has no frame.
    """
    for file in files:
        if not is_video(file):
            yield NamedImage(str(file), file.stem, file.name, read_or_error(file))
            continue
        for number, image in read_frames(file, every=every):
            stem = f"{file.stem}_{number:06}"
            yield NamedImage(f"{file}#{number}", stem, f"{stem}.png", image)


def check_video(file: Path) -> None:
    """Refuse a video that cannot be read, before the work.

    Args:
        file: The video.

    Raises:
        UnreadableImageError: As ``read_frames``.
    """
    for _ in read_frames(file):
        return


def read_frames(file: Path, *, every: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """The frames of a video's first picture track, upright, in RGB, and their numbers from 0.

    Args:
        file: In a format of FFmpeg's.
        every: One frame of this many is given, the first one among them.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If it cannot be read, or has no frame.
        ValueError: If PyAV is not installed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give the path of a video")
    try:
        import av
    except ModuleNotFoundError:
        raise ValueError(
            f"{file} is a video, and PyAV, which reads videos, is not installed: pip install "
            "'convattn[video]', or give a folder of frames as images"
        ) from None
    number = -1
    with _one_sentence(file), av.open(str(file)) as container:
        tracks = container.streams.video
        if tracks:
            check_number_of_pixels((tracks[0].width, tracks[0].height), file)
            for number, frame in enumerate(container.decode(tracks[0])):
                if number % every == 0:
                    yield number, _upright(frame)
    if number < 0:
        raise UnreadableImageError(
            f"{file} has no frame: it is empty or holds sound alone; give a video with pictures"
        )


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    turns = round(frame.rotation / _QUARTER) % 4
    return image if not turns else image.rotate(turns * _QUARTER, expand=True)


@contextmanager
def _one_sentence(file: Path) -> Iterator[None]:
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        raise UnreadableImageError(
            f"{file} cannot be read as a video ({error.strerror}); give a whole one, for example "
            "MP4 of H.264"
        ) from error
