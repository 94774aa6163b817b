"""Records and reports that no machine measured, for tests of what checks, collects and shows them."""

import json
from dataclasses import asdict

from lstm_utils.measure import hardware
from lstm_utils.report import merge_records

SHAPES = ((1, 32), (16, 128))


def record(device="cpu", threads=1, hidden_size=64, quick=False, speed=1.0, called=None, **of_hardware):
    """The record of a run: OpenVINO is absent, int8 is the fastest at batch 1 and the slowest at batch 16."""
    seconds = {"eager fp32": (1e-3, 8e-3), "ONNX Runtime fp32": (5e-4, 4e-3), "ONNX Runtime int8": (1e-4, 9e-3)}
    ran = {"ran": True, "kernel": "a kernel", "cold_start_s": None, "max_error": 0.0}
    runtimes = {name: ran | {"precision": "float32", "bytes": 4000} for name in seconds}
    runtimes["ONNX Runtime int8"] |= {"precision": "int8", "bytes": 1000, "cold_start_s": 0.1, "max_error": 0.01}
    runtimes["OpenVINO fp32"] = {"ran": False, "reason": "openvino is not installed"}
    there = asdict(hardware("cpu")) | {"device": called or device.upper(), "threads": threads} | of_hardware
    return {
        "schema": 1,
        "hardware": there,
        "versions": {"torch": there["torch"], "onnxruntime": "1.2.3", "openvino": None},
        "settings": {
            "seed": 0,
            "device": device,
            "threads": threads,
            "input_size": 32,
            "hidden_size": hidden_size,
            "quick": quick,
        },
        "roofline": {
            "gemm_flops": {"float32": 1e11, "bfloat16": None},
            "bandwidth": 1e10,
            "cache_bandwidth": 1e11,
        },
        "runtimes": runtimes,
        "timings": [
            {
                "runtime": name,
                "batch_size": batch_size,
                "seq_len": seq_len,
                "median_s": median / speed,
                "low_s": 0.9 * median / speed,
                "high_s": 1.1 * median / speed,
                "flops": 8 * hidden_size * (32 + hidden_size) * batch_size * seq_len,
            }
            for name, medians in seconds.items()
            for (batch_size, seq_len), median in zip(SHAPES, medians, strict=True)
        ],
        "projection": [
            {
                "hidden_size": hidden_size,
                "proj_size": hidden_size // 2,
                "batch_size": 1,
                "kernel": "a kernel",
                "ratio": 1.5,
                "low": 1.4,
                "high": 1.6,
            }
        ],
    }


def report(*records):
    return merge_records(records or [record(), record(threads=2), record(hidden_size=256)])


def notebook(*code):
    """The text of a notebook: the parameters cell of chapter 14, then these cells, which write a record."""
    parameters = 'seed = 0\ndevice = "auto"\nquick = False\nthreads = 0\nhidden_size = 64\nrecord = ""'
    cells = [("parameters", parameters), *(("", text) for text in code)]
    return json.dumps(
        {
            "cells": [
                {
                    "cell_type": "code",
                    "id": f"cell-{index}",
                    "metadata": {"tags": [tag] if tag else []},
                    "source": text.splitlines(keepends=True),
                    "execution_count": None,
                    "outputs": [],
                }
                for index, (tag, text) in enumerate(cells)
            ],
            "metadata": {
                "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                "language_info": {"name": "python"},
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )


# A cell that writes the record of its run. It imports nothing of weight, so a run lasts a second.
WRITES = f"""import json, os
content = json.loads({json.dumps(record())!r})
content["hardware"]["threads"] = threads
content["settings"].update(device=device, threads=threads, hidden_size=hidden_size, quick=quick)
with open(record, "w") as file:
    json.dump(content, file)
print("kernel of", os.getppid())"""
