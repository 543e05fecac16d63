"""What a classifier says of a folder's images as a table, which goes on where it was stopped.

Beside the table stand, until it is whole, its rows (``.part``), a lock, and a journal
(``.journal``): what was asked for, then after every batch what is done. A batch counts when its
line in the journal is whole; what was written behind it is cut off.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from convattn.classification import embeddings
from convattn.classification.predictions import NUM_RANKS
from convattn.classification.settings import transform_words, weights_sha256
from convattn.classification.streaming import (
    Batch,
    Classes,
    Pictures,
    classify_batches,
    in_chans_of,
)
from convattn.config import PredictConfig
from convattn.data.batches import list_images
from convattn.exceptions import Interrupted
from convattn.explanation.classes import pretrained_cfg
from convattn.files import replace_atomically
from convattn.modes import default_device
from convattn.progress import Progress
from convattn.text import csv_text, json_text, report, short_repr
from convattn.world import World, shared_work

# Worker processes of one that was killed hold its lock until they notice, within five seconds.
_SECONDS_OF_ORPHANS = 10
_REJECTED = 3  # place of the column


@dataclass(frozen=True, kw_only=True)
class PredictedTable:
    """A table that was written."""

    out: Path
    """The table."""
    embeddings: Path | None
    """Its embeddings; None if not asked for."""
    num_images: int
    """Image files that were found."""
    num_rows: int
    """Of these in the table; the others could not be read."""
    num_rejected: int
    """Rows that are marked as rejected."""


@dataclass(frozen=True, kw_only=True)
class _Done:
    """How far a table is."""

    images: int = 0
    rows: int = 0
    rejected: int = 0
    num_bytes: int
    """Of the table."""
    shape: Sequence[int] = ()
    """Of one embedding."""


def check_table(config: PredictConfig) -> None:
    """Refuse a taken place before the network is loaded.

    Args:
        config: Where the table goes, and its embeddings.

    Raises:
        FileExistsError: If there is something that is not to be gone on with.
    """
    _Table(config).check_free()


def write_table(model: nn.Module, place: Path, config: PredictConfig) -> PredictedTable:
    """Classify images into ``config.out``, or go on with what a stopped process has left of it.

    Rows are in the order of the images' paths, sorted as text. Columns of a network that gives an
    image one class: path, prediction, probability; rejected, if asked for; prediction2,
    probability2 and so on, the further likeliest classes. Of one that finds several: path,
    prediction (the classes that reach their thresholds, with ``;`` between them), probability
    (theirs alike), and probability_NAME of every class. Files that cannot be read have no row and
    are told on stderr. Processes that torchrun or srun has started share the images; the first
    joins what they write, the others return an empty account.

    Args:
        model: A classifier of timm's, ours among them.
        place: A folder of images, or an image.
        config: What is asked for; its ``out`` is a table.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        FileExistsError: If the table exists.
        ValueError: If there is no image that can be read, or what was left is of another network,
            other images, or was asked for otherwise.
        Interrupted: If the user stopped it, or another of the processes is gone.
    """
    classes = Classes.of(model)
    config = replace(config, reject_below=classes.find_rejected(config))
    table = _Table(config)
    table.check_free()
    paths = list_images(place, in_chans_of(pretrained_cfg(model)))
    with shared_work() as world:
        if world.count > 1:
            return _write_share(model, classes, paths, config, world)
        return _write(model, classes, paths, config)


def _write(
    model: nn.Module,
    classes: Classes,
    paths: Sequence[str],
    config: PredictConfig,
    *,
    may_be_empty: bool = False,
) -> PredictedTable:
    table = _Table(config)
    header = _csv([_header(classes, config)])
    with table.alone():
        table.open(_settings(model, classes, paths, config), header, len(paths))
        try:
            _fill(table, model, classes, paths)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the same command again goes on") from None
        return table.finish(len(paths), may_be_empty=may_be_empty)


def _write_share(
    model: nn.Module,
    classes: Classes,
    paths: Sequence[str],
    config: PredictConfig,
    world: World,
) -> PredictedTable:
    """Write this process's share beside the table; the first waits for all and joins them.

    Shares are whole batches, so that a row does not depend on the number of processes. Their names
    hold what the table depends on: those of another network or other images are not taken.
    """
    if config.embeddings is not None:
        raise ValueError(
            f"--embeddings are written by one process, and there are {world.count}: leave them "
            "out, or run `convattn predict` without torchrun or srun"
        )
    out = Path(str(config.out))
    settings = json_text(_settings(model, classes, paths, config))
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    shares = [_beside(out, f"{digest}-{one}-of-{world.count}.csv") for one in range(world.count)]
    images = world.share(len(paths), config.batch_size)
    if not shares[world.rank].exists():
        own = replace(config, out=str(shares[world.rank]))
        _write(model, classes, paths[images.start : images.stop], own, may_be_empty=True)
    world.all_say("written")
    if not world.is_first:
        return PredictedTable(
            out=out, embeddings=None, num_images=len(paths), num_rows=0, num_rejected=0
        )
    return _join(shares, out, len(paths))


def _join(shares: Sequence[Path], out: Path, num_images: int) -> PredictedTable:
    """Make a table of its shares, each of which has the header; they are removed."""
    contents = [share.read_bytes().partition(b"\n") for share in shares]
    rows = b"".join(content for _, _, content in contents)
    if not rows:
        raise _none_read(num_images)
    replace_atomically(out, contents[0][0] + b"\n" + rows)
    for share in shares:
        share.unlink()
    with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        head, *cells = csv.reader(file)
    rejects = "rejected" in head
    return PredictedTable(
        out=out,
        embeddings=None,
        num_images=num_images,
        num_rows=len(cells),
        num_rejected=sum(rejects and row[_REJECTED] == "true" for row in cells),
    )


def _none_read(num_images: int) -> ValueError:
    return ValueError(f"none of the {num_images:,} files could be read as an image")


def _settings(
    model: nn.Module, classes: Classes, paths: Sequence[str], config: PredictConfig
) -> dict[str, Any]:
    """What the bytes of a table depend on, in JSON's types."""
    names = "\0".join(paths).encode(errors="surrogateescape")
    thresholds = None if classes.thresholds is None else classes.thresholds.tolist()
    return {
        "weights_sha256": weights_sha256(model),
        "transform": transform_words(model),
        "classes": list(classes.names),
        "thresholds": thresholds,
        "num_images": len(paths),
        "paths_sha256": hashlib.sha256(names).hexdigest(),
        "embeddings": config.embeddings,
        "reject_below": config.reject_below,
        "batch_size": config.batch_size,
        "device": str(default_device(config.device)),
    }


def _fill(table: _Table, model: nn.Module, classes: Classes, paths: Sequence[str]) -> None:
    config, start = table.config, table.done.images
    if start:
        report(f"goes on after {start:,} of {len(paths):,} images")
    batches = classify_batches(
        model,
        Pictures(paths[start:], pretrained_cfg(model)),
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=config.device,
        embeddings=config.embeddings is not None,
    )
    with Progress(len(paths), start) as progress:
        for batch in batches:
            own = paths[start : start + len(batch)]
            for error in filter(None, batch.errors):
                progress.tell(error)
            read = [path for path, error in zip(own, batch.errors, strict=True) if error is None]
            table.append(batch, list(_rows(read, batch, classes, config)))
            start += len(batch)
            progress.update(len(batch))


def _header(classes: Classes, config: PredictConfig) -> list[str]:
    first = ["path", "prediction", "probability"]
    if classes.thresholds is not None:
        return [*first, *(f"probability_{name}" for name in classes.names)]
    ranks = range(2, min(NUM_RANKS, len(classes.names)) + 1)
    further = [name for rank in ranks for name in (f"prediction{rank}", f"probability{rank}")]
    return [*first, *([] if config.reject_below is None else ["rejected"]), *further]


def _rows(
    paths: Sequence[str], batch: Batch, classes: Classes, config: PredictConfig
) -> Iterator[list[str]]:
    names = classes.names
    for path, shares in zip(paths, batch.probabilities, strict=True):
        values = shares.tolist()
        if classes.thresholds is not None:
            taken = classes.taken(shares)
            found = ";".join(names[one] for one in taken)
            yield [path, found, ";".join(f"{values[one]:.6f}" for one in taken)] + [
                f"{value:.6f}" for value in values
            ]
            continue
        first, *others = classes.ranked(shares)[:NUM_RANKS]
        mark = []
        if config.reject_below is not None:
            mark = ["true" if values[first] < config.reject_below else "false"]
        further = [cell for one in others for cell in (names[one], f"{values[one]:.6f}")]
        yield [path, names[first], f"{values[first]:.6f}", *mark, *further]


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    return csv_text(rows).encode(errors="surrogateescape")


class _Table:
    """The files of a table while it grows.

    Attributes:
        done: How far it is; known once it is open.
    """

    done: _Done

    def __init__(self, config: PredictConfig) -> None:
        assert config.out is not None
        self.config = config
        self.out = Path(config.out)
        self.part = _beside(self.out, "part")
        self.journal = _beside(self.out, "journal")
        self.files = {self.part: self.out}
        """Parts and what they become, the table last."""
        self.embeddings = self.vectors = None
        if config.embeddings is not None:
            self.embeddings = Path(config.embeddings)
            self.vectors = _beside(self.embeddings, "part")
            self.files = {self.vectors: self.embeddings, **self.files}

    def check_free(self) -> None:
        """Refuse a taken place.

        Raises:
            FileExistsError: If there is something that is not to be gone on with.
        """
        begun = self.journal.exists()
        for part, file in self.files.items():
            if file.exists() and (part.exists() or not begun):
                flag = "out" if file == self.out else "embeddings"
                raise FileExistsError(
                    f"{file} exists and is never overwritten; give another --{flag}"
                )
            if part.exists() and not begun:
                raise FileExistsError(
                    f"{part} exists without the {self.journal.name} of a table that could be gone "
                    "on with; move it away"
                )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes out.

        Raises:
            ValueError: If another one writes the table.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        file = _beside(self.out, "lock")
        lock = FileLock(file, timeout=_SECONDS_OF_ORPHANS)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.out} is being written by another process; wait for it, or give another "
                "--out"
            ) from None
        try:
            yield
        finally:
            lock.release()
            file.unlink(missing_ok=True)

    def open(self, settings: Mapping[str, Any], header: bytes, num_images: int) -> None:
        """Begin, or go back to the last whole batch.

        Args:
            settings: What was asked for.
            header: First line of the table.
            num_images: That there are.

        Raises:
            FileExistsError: If it exists.
            ValueError: If it was begun otherwise, or its parts are gone.
        """
        self.check_free()
        if self.journal.exists():
            self.done = self._read_journal(settings)
        else:
            self.done = _Done(num_bytes=len(header))
            lines = _line(settings) + _line(asdict(self.done))
            replace_atomically(self.journal, lines)
        if not self.done.images:
            self._begin(header)
        elif self.done.images < num_images or self.part.exists():
            self._cut()

    def _read_journal(self, settings: Mapping[str, Any]) -> _Done:
        lines = self.journal.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        try:
            before, done = json.loads(whole[0]), _Done(**json.loads(whole[-1]))
        except (IndexError, TypeError, ValueError):
            raise ValueError(
                f"{self.journal} is not what convattn predict leaves; delete it to begin anew"
            ) from None
        os.truncate(self.journal, sum(map(len, whole)))
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{self.out} was begun with {name} {short_repr(before.get(name))}, which now "
                    f"is {short_repr(value)}; bring that back, or delete {self.journal} and "
                    f"{' and '.join(map(str, self.files))} to begin anew"
                )
        return done

    def _begin(self, header: bytes) -> None:
        self.part.write_bytes(header)
        if self.vectors is not None:
            self.vectors.parent.mkdir(parents=True, exist_ok=True)
            embeddings.begin(self.vectors)

    def _cut(self) -> None:
        """Cut off what was written behind the last whole batch."""
        done = self.done
        wanted = {self.part: done.num_bytes}
        # The embeddings get their name before the table does.
        if self.vectors is not None and not self.files[self.vectors].exists():
            wanted[self.vectors] = embeddings.num_bytes((done.rows, *done.shape))
        for part, num_bytes in wanted.items():
            if not part.exists() or part.stat().st_size < num_bytes:
                raise ValueError(
                    f"{part} is not what {self.journal} tells of; delete the journal and the parts "
                    "to begin anew"
                )
            os.truncate(part, num_bytes)

    def append(self, batch: Batch, rows: Sequence[Sequence[str]]) -> None:
        """Add the rows of the next batch.

        Args:
            batch: What was said of it.
            rows: Of the table.
        """
        if self.vectors is not None and batch.features is not None:
            embeddings.append(self.vectors, batch.features)
        content, done = _csv(rows), self.done
        with self.part.open("ab") as file:
            file.write(content)
        rejects = self.config.reject_below is not None
        self.done = _Done(
            images=done.images + len(batch),
            rows=done.rows + len(rows),
            rejected=done.rejected + sum(rejects and row[_REJECTED] == "true" for row in rows),
            num_bytes=done.num_bytes + len(content),
            shape=done.shape if batch.features is None else list(batch.features.shape[1:]),
        )
        with self.journal.open("ab") as file:
            file.write(_line(asdict(self.done)))

    def finish(self, num_images: int, *, may_be_empty: bool) -> PredictedTable:
        """Give the files their names.

        Args:
            num_images: That there were.
            may_be_empty: Whether a table without rows is one.

        Raises:
            ValueError: If none could be read, and some should have been.
        """
        done = self.done
        if not done.rows and not may_be_empty:
            for part in (*self.files, self.journal):
                part.unlink(missing_ok=True)
            raise _none_read(num_images)
        for part, file in self.files.items():
            if not part.exists():
                continue  # a process that was killed has come this far
            self.check_free()
            if part == self.vectors:
                embeddings.finish(part, (done.rows, *done.shape), file.suffix)
            part.replace(file)
        self.journal.unlink()
        return PredictedTable(
            out=self.out,
            embeddings=self.embeddings,
            num_images=num_images,
            num_rows=done.rows,
            num_rejected=done.rejected,
        )


def _beside(file: Path, what: str) -> Path:
    return file.with_name(f"{file.name}.{what}")


def _line(values: Mapping[str, Any]) -> bytes:
    return (json_text(values) + "\n").encode()
