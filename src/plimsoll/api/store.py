"""Files of a run: each is written whole, or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from plimsoll.core.errors import InputError
from plimsoll.core.run import Status

if TYPE_CHECKING:
    from plimsoll.core.run import Run


def check_folder(field: str, folder: str | Path) -> None:
    """Whether `folder` could be made and written to; makes nothing. `field` is how the user gave it.

    Raises:
        InputError: it could not.
    """
    path = Path(folder)
    if not str(folder):
        raise InputError(field, folder, "give a folder; the one you are in is .")
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        pass  # named below, by the file that is in the way
    except (OSError, ValueError) as error:  # a name too long, or with a null in it
        raise _refused(field, folder, error) from None
    there = next((place for place in (path, *path.absolute().parents) if os.path.lexists(place)), path)
    if not there.is_dir():
        raise InputError(field, str(folder), f"{there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(field, str(folder), f"{there} cannot be written to; give another folder")


def check_file(field: str, file: str | Path) -> None:
    """Whether `file` could be written.

    Raises:
        InputError: it could not.
    """
    path = Path(file)
    try:
        found = path.lstat()
        if path.is_dir():
            raise InputError(field, str(file), "this is a folder; give a file")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise _refused(field, file, error) from None
    else:  # the file is moved into place: a device or a link would be gone for everybody
        if not stat.S_ISREG(found.st_mode):
            raise InputError(field, str(file), "this is a link or a device; give a file of its own")
    check_folder(field, path.parent)


def open_folder(field: str, folder: str | Path) -> Path:
    """The folder, made where it is missing. `field` is how the user gave it.

    Raises:
        InputError: it cannot be made or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(field, str(folder), f"the folder cannot be made ({reason}); give another folder") from error
    if not os.access(path, os.W_OK):
        raise InputError(field, str(folder), "the folder cannot be written to; give another folder")
    return path


def write_text(path: Path, text: str) -> None:
    """Write beside, then move into place: an interrupted write leaves no half file.

    Raises:
        InputError: the file cannot be written: a folder of its name is there, or no room is left.
    """
    try:
        _write_beside(path, text)
    except OSError as error:
        raise _refused("output", path, error) from error


def _refused(field: str, place: str | Path, error: OSError | ValueError) -> InputError:
    """What the system says of a place that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(field, str(place), f"it cannot be written ({reason}); give another place")


def _write_beside(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".plimsoll.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def requests_csv(run: Run) -> str:
    """One row a request; an empty field where a time never came."""
    import polars

    columns = {
        "request_id": range(len(run)),
        "arrival_s": run.arrival_s,
        "scheduled_s": run.scheduled_s,
        "first_token_s": run.first_token_s,
        "finish_s": run.finish_s,
        "prompt_tokens": run.prompt_tokens,
        "output_tokens": run.output_tokens,
        "preemptions": run.preemptions,
        "status": [Status(code).name.lower() for code in run.status.tolist()],
        "replica": run.replica,
        "cached_tokens": run.cached_tokens,
    }
    return polars.DataFrame(columns).fill_nan(None).write_csv(float_precision=9)
