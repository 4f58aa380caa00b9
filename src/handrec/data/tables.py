"""Splits of synthetic data as tables on the disk: how they are made, named and fetched."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from handrec.data.appearance.base import Look
from handrec.data.scenes import Scenes
from handrec.errors import UserError

#: Scenes are sampled and drawn so many at a time; a split's seed and the block's number seed each.
BLOCK = 512

#: Prefix of the columns of looks, and of what was drawn, in a table's file.
_LOOK, _DRAWN = "look.", "drawn."
_FINGERPRINT = "sha256"


class Drawn(NamedTuple):
    """Pictures as they are kept.

    Attributes:
        picture: ``(B, 4, H, W)`` RGB and mask, 8 bits.
        visibility: ``(B, 21)`` of the joints, 0 or 1.
    """

    picture: Tensor
    visibility: Tensor


class SceneBatch(NamedTuple):
    """What travels to the device.

    Attributes:
        scenes: the scenes.
        look: one for each scene; empty if they were drawn before.
        drawn: their pictures if they were drawn before, else empty.
        number: of each scene in its data set.
    """

    scenes: Scenes
    look: Look
    drawn: Drawn
    number: Int[Tensor, " b"]


class Block(NamedTuple):
    """Some rows of a table.

    Attributes:
        scenes: a row each.
        look: fewer rows where scenes share looks: scene ``i`` of ``n`` has row ``i * looks // n``.
        drawn: pictures of the scenes, or None where they are drawn when they are needed.
    """

    scenes: Scenes
    look: Look
    drawn: Drawn | None


class SceneTable(Dataset[SceneBatch]):
    """The scenes of a split; a whole batch is fetched at once, by its indices.

    Args:
        columns: of the file.
        fingerprint: of what the split is, see :func:`build`.
        first: number of the first scene and sequence in the data set.
    """

    def __init__(self, columns: Mapping[str, Tensor], fingerprint: str, first: int = 0) -> None:
        self.fingerprint, self.first = fingerprint, first
        self.scenes = Scenes(*(columns[name] for name in Scenes._fields))
        self.look = {
            name.removeprefix(_LOOK): column
            for name, column in columns.items()
            if name.startswith(_LOOK)
        }
        self.drawn = Drawn(*(columns.get(_DRAWN + name, torch.empty(0)) for name in Drawn._fields))

    @classmethod
    def of(cls, scenes: Scenes, look: Look) -> "SceneTable":
        """Return a table that was not drawn."""
        return cls(scenes._asdict() | {_LOOK + name: column for name, column in look.items()}, "")

    @classmethod
    def read(cls, path: Path, first: int = 0) -> "SceneTable":
        """Return the table of a file, mapped into memory.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                fingerprint = (file.metadata() or {}).get(_FINGERPRINT, "")
            return cls(load_file(path), fingerprint, first)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}): delete it and start again") from error

    def __len__(self) -> int:
        return len(self.scenes.pose)

    def __getitems__(self, indices: Sequence[int]) -> SceneBatch:
        """Return the scenes of the given indices as one batch."""
        return self.rows(torch.as_tensor(indices))

    def rows(self, index: Int[Tensor, " b"]) -> SceneBatch:
        """Return the scenes of the given rows as one batch."""
        scenes = Scenes(*(column[index] for column in self.scenes))
        look = {}
        for name, column in self.look.items():
            look[name] = column[index * len(column) // len(self)]
        drawn = Drawn(*(column[index] if column.numel() else column for column in self.drawn))
        return SceneBatch(
            scenes._replace(sequence=scenes.sequence + self.first), look, drawn, index + self.first
        )


class Chained(Dataset[SceneBatch]):
    """Two tables as one; in a batch the rows of the first come first.

    Args:
        first: its rows are numbered from 0.
        second: its rows are numbered on.
    """

    def __init__(self, first: SceneTable, second: SceneTable) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitems__(self, indices: Sequence[int]) -> SceneBatch:
        """Return the scenes of the given indices as one batch."""
        rows, count = torch.as_tensor(indices), len(self.first)
        own = rows < count
        return join([self.first.rows(rows[own]), self.second.rows(rows[~own] - count)])

    def column(self, name: str) -> Int[Tensor, " n"]:
        """Return ``sequence`` or ``frame`` of all rows."""
        tables = (self.first, self.second)
        columns = [getattr(table.scenes, name) for table in tables]
        if name == "sequence":
            columns = [c + table.first for c, table in zip(columns, tables, strict=True)]
        return torch.cat(columns)


def join(batches: Sequence[SceneBatch]) -> SceneBatch:
    """Return batches as one, in order."""
    one, *_ = batches
    return SceneBatch(
        Scenes(*map(torch.cat, zip(*(batch.scenes for batch in batches), strict=True))),
        {name: torch.cat([batch.look[name] for batch in batches]) for name in one.look},
        Drawn(*map(torch.cat, zip(*(batch.drawn for batch in batches), strict=True))),
        torch.cat([batch.number for batch in batches]),
    )


def block_seed(*parts: object) -> int:
    """Return a seed that depends on all parts, and on nothing else on any machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def key_of(facts: Mapping[str, Any]) -> str:
    """Return a short name for what a table's content depends on; another fact, another name."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(
    path: Path, blocks: Iterator[Block], count: int, facts: Mapping[str, Any], what: str
) -> str:
    """Write a table and return its fingerprint; the file appears only when it is complete.

    The fingerprint, kept in the file, is the SHA-256 of all scenes and looks and of ``facts``: the
    same for cached and uncached pictures of any size.

    Args:
        path: of the file.
        blocks: the rows, in order.
        count: of the blocks.
        facts: what else the pictures depend on, such as the appearance's name and version.
        what: is being made, for the progress bar.
    """
    columns: dict[str, list[Tensor]] = {}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for block in track(blocks, total=count, description=what, transient=True):
        rows = block.scenes._asdict() | {_LOOK + name: x for name, x in block.look.items()}
        for name in sorted(rows):
            digest.update(f"{name}{tuple(rows[name].shape)}".encode())
            digest.update(rows[name].contiguous().numpy().tobytes())
        if block.drawn is not None:  # then nobody asks for looks again
            rows = block.scenes._asdict()
            rows |= {_DRAWN + name: x for name, x in block.drawn._asdict().items()}
        for name, column in rows.items():
            columns.setdefault(name, []).append(column)
    table = {name: torch.cat(parts).contiguous() for name, parts in columns.items()}
    fingerprint = digest.hexdigest()
    _save(path, lambda file: save_file(table, file, {_FINGERPRINT: fingerprint}))
    return fingerprint


def _save(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside its place, then move it there.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write the synthetic data to {path.parent}: {error}") from error
    finally:
        with suppress(OSError):  # its folder may be what could not be made
            partial.unlink(missing_ok=True)
