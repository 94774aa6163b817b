"""Files that are written whole or not at all: whatever fails, a half-written one never stands under its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lstm_utils.arguments import require


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """A place beside ``path`` to write to: what stands there takes the name ``path`` when the block ends.

    If the block fails, or is killed, an earlier file stays as it was. The place is hidden (``.NAME.PID`` with the
    ending of ``path``), and deleted unless the process is killed.

    Raises:
        TypeError: ``path`` is neither a text nor a path.
        IsADirectoryError: it is a folder.
        FileNotFoundError: the folder does not exist.
    """
    require("path", path, str | Path, "a path")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist; create it, or name another")
    half = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield half
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a text (as UTF-8) or bytes to ``path``, whole or not at all; see :func:`whole_file`.

    Raises:
        TypeError: the content is neither text nor bytes.
        OSError: from :func:`whole_file`.
    """
    require("content", content, str | bytes, "text or bytes")
    with whole_file(path) as half:
        half.write_bytes(content.encode() if isinstance(content, str) else content)
