"""Files that are written whole or not at all: whatever fails, a half-written one never stands under its name."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lstm_utils.arguments import require


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """A place beside ``path`` to write to: what stands there takes the name ``path`` when the block ends.

    If the block fails, or is killed, an earlier file stays as it was. The place is hidden (``.NAME.HOST.PID`` with the
    ending of ``path``), and deleted unless the process is killed; then the next writer of ``path`` deletes it.

    Raises:
        TypeError: ``path`` is neither a text nor a path.
        IsADirectoryError: it is a folder.
        FileNotFoundError: the folder does not exist.
        OSError: it cannot be written, as on a full disk; the message names ``path``.
    """
    require("path", path, str | Path, "a path")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist; create it, or name another")
    # The host is named since folders are shared, and its processes are not known elsewhere.
    beginning = f".{path.stem}.{platform.node()}."
    for other in path.parent.iterdir():
        writer = other.name.removeprefix(beginning).removesuffix(path.suffix)
        if other.name == f"{beginning}{writer}{path.suffix}" and writer.isdecimal() and not _is_running(int(writer)):
            with suppress(OSError):  # the user of that process may have been another one
                other.unlink()
    half = path.with_name(f"{beginning}{os.getpid()}{path.suffix}")
    try:
        yield half
        half.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # a write that fails does not know its file
            error.filename = str(path)
        raise
    finally:
        half.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # there, signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of somebody else; no number of a process
        return True
    return True


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a text (as UTF-8) or bytes to ``path``, whole or not at all; see :func:`whole_file`.

    Raises:
        TypeError: the content is neither text nor bytes.
        OSError: from :func:`whole_file`.
    """
    require("content", content, str | bytes, "text or bytes")
    with whole_file(path) as half:
        half.write_bytes(content.encode() if isinstance(content, str) else content)
