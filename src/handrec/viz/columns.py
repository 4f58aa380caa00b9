"""An npz file that grows row by row: columns lie on the disk, not in memory."""

import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy


class ColumnFile:
    """Columns of equal length, each row of a column of one shape; written as npz when closed.

    Args:
        path: of the npz file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: dict[str, tuple[IO[bytes], np.dtype[Any], tuple[int, ...]]] = {}
        self._rows = 0

    def append(self, **row: Any) -> None:
        """Append a row; the first one says which columns there are."""
        for name, value in row.items():
            array = np.asarray(value)
            if self._rows == 0:
                # Closed, and with that removed, by close().
                empty: IO[bytes] = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115
                self._columns[name] = empty, array.dtype, array.shape
            file, dtype, shape = self._columns[name]
            if array.shape != shape:
                raise ValueError(f"column {name}: a row of shape {array.shape}, others {shape}")
            file.write(array.astype(dtype).tobytes())
        self._rows += 1

    def close(self) -> None:
        """Write the npz file; without a row, an empty one."""
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, (file, dtype, shape) in self._columns.items():
                header = {
                    "descr": npy.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": (self._rows, *shape),
                }
                with file, archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                    npy.write_array_header_1_0(out, header)
                    file.seek(0)
                    while block := file.read(2**20):
                        out.write(block)
        self._columns = {}
