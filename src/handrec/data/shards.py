"""Pictures in WebDataset's archives (tar), on the disk or at URLs: pre-training at scale."""

import json
import tarfile
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander
from webdataset.writer import TarWriter

from handrec.data.boxes import Side
from handrec.data.crops import Box
from handrec.data.json_files import read_json
from handrec.data.streamed import StreamedImages
from handrec.data.streams import Annotation, Picture, Reader, Source
from handrec.errors import UserError

#: Beside the archives: how many pictures each has, ``{"000000.tar": 1000, ...}``.
INDEX = "shards.json"

#: What pictures in archives are called.
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
_SECONDS = 60  # a server may keep us waiting, before it answers and in the middle
_WAITS = (1.0, 4.0)  # seconds before a server that did not answer is asked again
_LOOKED_AT = (10, 100)  # archives, and pictures of each, that are to show whether any has keypoints
_PADDING = 1 << 20  # bytes behind an archive's end, at most

#: Servers that did not answer in spite of all waiting: for their next archive nobody waits.
_silent: set[str] = set()

#: Answers of a server that may be another one later: timeout, too many requests, faults of its own.
_PASSING = (408, 429, *range(500, 600))


class Shards(StreamedImages):
    """WebDataset archives of pictures.

    Members of one name form a sample: a picture, and a ``.json`` with any of ``box``
    (``[x1, y1, x2, y2]``), ``side`` (``left`` or ``right``) and ``keypoints`` (21 times ``[x, y,
    confidence]`` in the suite's order), in pixels with centres at integer + 0.5.

    Archives and pictures that cannot be read are left out and counted.

    Args:
        shards: folder of the archives, or one or several paths or URLs (http, https), which may
            have ranges in braces: ``https://host/hands-{0000..0099}.tar``; several are separated
            by ``::``.
        **options: see :class:`~handrec.data.streamed.StreamedImages`.
    """

    name = "shards"

    def __init__(self, shards: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.shards = shards

    @property
    def has_keypoints(self) -> bool:
        """Whether one of the first pictures has 2D keypoints; the look ends with one that has.

        Archives of which nothing can be read are not said to lack any: the training says why.
        """
        archives, pictures = _LOOKED_AT
        read = False
        for source in self.sources["train"][:archives]:
            for picture in islice(read_shard(source), pictures):
                if isinstance(picture, str):
                    continue
                read, points = True, picture.annotation.keypoints
                if points is not None and (points[:, 2] > 0).any():
                    return True
        return not read

    def find(self) -> list[Source]:
        """Return the archives."""
        if self.shards is None:
            raise UserError(
                "shards are not part of handrec: say --data.shards=FOLDER or a pattern such as"
                " 'data/hands-{0000..0099}.tar'"
            )
        folder = Path(self.shards).expanduser()
        if folder.is_dir():
            names = [str(path) for path in sorted(folder.glob("*.tar*"))]
            if not names:
                raise UserError(f"{folder}: no archives (*.tar) in it")
        else:
            names = expand_urls(self.shards)
        for name in names:
            scheme = urlparse(name).scheme
            if scheme not in ("", "http", "https"):
                raise UserError(f"{name}: {scheme} is not read, paths, http and https are")
            if not scheme and not Path(name).is_file():
                raise UserError(f"{name}: no such archive")
        return [Source(name, number) for number, name in enumerate(names)]

    def count(self, source: Source) -> int | None:
        """Return what the index beside an archive says, or what a look through it finds."""
        path = Path(source.name)
        if urlparse(source.name).scheme:
            return None
        index = path.parent / INDEX
        if index.is_file():
            content = read_json(index)
            number = content.get(path.name) if isinstance(content, dict) else None
            if not isinstance(number, int):
                raise UserError(f"{index}: says of {path.name} that it has {number!r} pictures")
            return number
        try:
            with tarfile.open(path) as archive:
                suffixes = [name.rpartition(".")[2].lower() for name in archive.getnames()]
        except (tarfile.TarError, EOFError, OSError):
            return 0
        return sum(suffix in _IMAGES for suffix in suffixes)

    def reader(self) -> Reader:
        """Return what reads an archive."""
        return read_shard


def read_shard(source: Source) -> Iterator[Picture | str]:
    """Yield the pictures of an archive, and a line for each that is none."""
    faults: list[str] = []

    def note(error: Exception) -> bool:
        stopped = isinstance(error, OSError | HTTPException)
        what = "broke off" if stopped else "damaged from here on, or no archive"
        # The reader of archives puts what it read from behind " @ ".
        faults.append(f"{source.name}: {what} ({_reason(error).partition(' @ <')[0]})")
        return True

    try:
        stream = _open(source.name)
    except (OSError, HTTPException, ValueError) as error:
        yield f"{source.name}: {_reason(error)}"
        return
    with stream:
        files = tar_file_expander([{"url": source.name, "stream": stream}], handler=note)
        samples = cast("Iterable[dict[str, Any]]", group_by_keys(files, handler=note))
        for frame, sample in enumerate(islice(samples, source.start, source.stop), source.start):
            yield _picture(sample, f"{source.name}: {sample['__key__']}", frame)
        if source.stop is None and (missing := _missing(stream)):
            faults = [f"{source.name}: ends too early, {missing:,} bytes did not come"]
    yield from faults[:1]  # others follow from it


def _open(name: str) -> BufferedIOBase:
    """Open a path or a URL; no command is run for it."""
    if not urlparse(name).scheme:
        return Path(name).open("rb")
    server = urlparse(name).netloc
    for wait in () if server in _silent else _WAITS:
        try:
            return _request(name)
        except HTTPError as error:
            if error.code not in _PASSING:
                raise
        except (URLError, HTTPException, ConnectionError):
            pass
        time.sleep(wait)
    try:
        stream = _request(name)
    except (OSError, HTTPException):  # URLError is an OSError
        _silent.add(server)
        raise
    _silent.discard(server)
    return stream


def _request(url: str) -> BufferedIOBase:
    """Ask a server for a file."""
    return cast("BufferedIOBase", urlopen(url, timeout=_SECONDS))


def _reason(error: Exception) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, HTTPError):  # the only one whose number says more
        return str(error)
    inner = getattr(error, "reason", None)
    said = inner if isinstance(inner, OSError) else error
    told = getattr(said, "strerror", None) or (said.args[0] if said.args else said)
    return str(told).partition("\n")[0]


def _missing(stream: BufferedIOBase) -> int:
    """Return how many bytes a server announced and did not send: an archive may not show it."""
    if not hasattr(stream, "length"):
        return 0
    try:
        at_end = len(stream.read(_PADDING)) < _PADDING
    except (OSError, HTTPException):
        return 0
    return (stream.length or 0) if at_end else 0


def _picture(sample: dict[str, Any], where: str, frame: int) -> Picture | str:
    """Return the picture of a sample, or what is wrong with it."""
    encoded = next((sample[suffix] for suffix in _IMAGES if suffix in sample), None)
    if encoded is None:
        return f"{where}: no picture among {', '.join(k for k in sample if not k.startswith('__'))}"
    if "json" not in sample:
        return Picture(encoded, where, frame)
    try:
        return Picture(encoded, where, frame, read_annotation(json.loads(sample["json"])))
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        return f"{where}.json: {error}"


def read_annotation(content: Any) -> Annotation:
    """Return what a sample's ``.json`` says.

    Raises:
        ValueError: it is not as :class:`Shards` describes it.
    """
    if not isinstance(content, dict):
        raise ValueError("not a dictionary")
    side = content.get("side", "right")
    if side not in ("right", "left"):
        raise ValueError(f"side is {side!r}")
    box: Box | None = None
    if content.get("box") is not None:
        corners = np.array(content["box"], dtype=float)
        if corners.shape != (4,) or not np.isfinite(corners).all():
            raise ValueError(f"box is {content['box']}, expected [x1, y1, x2, y2]")
        if (corners[2:] <= corners[:2]).any():
            raise ValueError(f"box of zero area: {content['box']}")
        box = cast(Box, tuple(corners.tolist()))
    keypoints = None
    if content.get("keypoints") is not None:
        keypoints = np.array(content["keypoints"], dtype=float)
        if keypoints.shape != (21, 3) or not np.isfinite(keypoints).all():
            raise ValueError("keypoints are not 21 times [x, y, confidence]")
    return Annotation(box, cast(Side, side), keypoints)


def describe(annotation: Annotation) -> dict[str, Any]:
    """Return what :func:`read_annotation` reads."""
    content: dict[str, Any] = {"side": annotation.side}
    if annotation.box is not None:
        content["box"] = list(annotation.box)
    if annotation.keypoints is not None:
        content["keypoints"] = annotation.keypoints.tolist()
    return content


def write_shards(
    root: Path, samples: Iterable[tuple[str, bytes, dict[str, Any]]], per_shard: int = 1000
) -> dict[str, int]:
    """Write samples as archives, with their index; return it.

    Args:
        root: folder to write to; empty or not there.
        samples: suffix and bytes of each picture, and its ``.json`` (empty for none).
        per_shard: pictures of an archive.
    """
    if root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root} is not empty")
    root.mkdir(parents=True, exist_ok=True)
    index: dict[str, int] = {}
    stream = iter(samples)
    number = 0
    while chunk := list(islice(stream, per_shard)):
        name = f"{len(index):06d}.tar"
        with TarWriter(str(root / name), encoder=False, mtime=0, user="", group="") as archive:
            for suffix, encoded, content in chunk:
                sample: dict[str, Any] = {"__key__": f"{number:09d}", suffix: encoded}
                if content:
                    sample["json"] = json.dumps(content).encode()
                archive.write(sample)
                number += 1
        index[name] = len(chunk)
    (root / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")
    return index
