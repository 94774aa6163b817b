"""Measured results that outlive the machine: the numbers as JSON, the figure beside them, and what they ran on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lstm_utils.arguments import require
from lstm_utils.files import whole_file
from lstm_utils.measure import hardware

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_results(
    name: str,
    numbers: Mapping[str, Any],
    figure: Figure,
    device: torch.device | str = "cpu",
    folder: Path | str = "../results",
) -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.png``, whole or not at all: on a full disk, both stay as they were.

    Args:
        name: of the chapter, such as "10_gradient_clipping".
        numbers: what was measured, and the settings that led to it: numbers, strings, lists and mappings.
        figure: drawn from them.
        device: what it ran on, for the description of the hardware that is stored beside the numbers.
        folder: where to; the default is the repository's, seen from a running notebook.

    Returns:
        the paths of the two files.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a number is infinite or not a number, which JSON cannot hold, one is called "hardware", which would
            hide the description, ``name`` is no file name, or there is no such device.
        TypeError: a value is none of the kinds above.
    """
    require("name", name, str, "the name of a chapter")
    require("numbers", numbers, Mapping, "a mapping of names to numbers")
    require("folder", folder, str | Path, "a path")
    if not callable(getattr(figure, "savefig", None)):
        raise TypeError(f"figure must be a matplotlib figure, got {figure!r}")
    if not name or name != Path(name).name:
        raise ValueError(f"name must be that of a file, without a folder, got {name!r}")
    if "hardware" in numbers:
        raise ValueError(f"'hardware' is the name of the description, and numbers has it: {numbers['hardware']!r}")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {str(folder)!r} does not exist; run from notebooks/, or pass folder=")
    text = json.dumps({"hardware": asdict(hardware(device)), **numbers}, indent=1, allow_nan=False, ensure_ascii=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    numbers_path, picture_path = folder / f"{name}.json", folder / f"{name}.png"
    with whole_file(numbers_path) as numbers_half, whole_file(picture_path) as picture_half:
        numbers_half.write_text(f"{text}\n", encoding="utf-8", newline="\n")
        picture_half.write_bytes(picture.getvalue())
    return numbers_path, picture_path
