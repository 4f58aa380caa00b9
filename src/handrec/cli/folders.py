"""Folders that commands write to."""

from pathlib import Path

from handrec.errors import UserError


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there.

    Raises:
        UserError: it cannot be made; said before the work whose results go there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: a file is where this folder should be made") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder ({error.strerror})") from error
