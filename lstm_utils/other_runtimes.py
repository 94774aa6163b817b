"""ONNX Runtime and OpenVINO for one ``nn.LSTM``: what each writes and loads, as :mod:`lstm_utils.torch_runtimes`."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from lstm_utils.torch_runtimes import Artefact, Call, Order, UnavailableError, listed


def _needs(extra: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UnavailableError(f'{package} is not installed: pip install "lstm-utils[{extra}]"')


def load_onnx(path: str, threads: int) -> Any:
    """A session of ONNX Runtime; it needs no PyTorch."""
    import os

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or the import writes an identifier and sends messages
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(["output"], {name: x})[0]


def build_onnx(order: Order, int8: bool = False) -> Artefact:
    """ONNX Runtime, with the file of chapter 13."""
    order.refuse_gpu()
    _needs("notebooks", "onnx", "onnxruntime")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from lstm_utils.onnx_export import export_onnx, quantize_onnx

    path = order.folder / "lstm.onnx"
    export_onnx(order.lstm, order.x, path)
    if int8:
        path = quantize_onnx(path, order.folder / "int8.onnx").path

    def kernel(_: Call) -> str:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(order.folder / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(["output"], {session.get_inputs()[0].name: order.x.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return listed(event["args"]["op_name"] for event in events if "op_name" in event.get("args", {}))

    return Artefact((path,), load_onnx, {"path": str(path), "threads": order.num_threads}, kernel, numpy=True)


def load_openvino(path: str, threads: int, precision: str) -> Any:
    """A request of OpenVINO; it needs no PyTorch."""
    import sys

    # The import writes an identifier and sends a message, unless the package that does so cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    # One core, kept to the end: a core that goes can leave this thread the signal stack that it has just freed, and the
    # next signal that Python handles, such as that of a worker of a DataLoader, then ends the process.
    core = vars(openvino).get("kept_core") or vars(openvino).setdefault("kept_core", openvino.Core())
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(path, "CPU", settings).create_infer_request()
    return lambda x, request=request: request.infer({0: x}, share_inputs=True)[0]


def build_openvino(order: Order, precision: str = "f32") -> Artefact:
    """OpenVINO, converted from the module itself."""
    order.refuse_gpu()
    _needs("openvino", "openvino")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    core = vars(openvino).get("kept_core") or vars(openvino).setdefault("kept_core", openvino.Core())  # see above
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnavailableError("OpenVINO finds no bfloat16 arithmetic in this CPU")
    path = order.folder / "lstm.xml"
    openvino.save_model(openvino.convert_model(order.lstm, example_input=order.x), path, compress_to_fp16=False)

    def kernel(_: Call) -> str:
        compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision})
        ran = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        return listed(f"{info['layerType'].value} {info['primitiveType'].value}" for info in ran)

    arguments = {"path": str(path), "threads": order.num_threads, "precision": precision}
    return Artefact((path, path.with_suffix(".bin")), load_openvino, arguments, kernel, numpy=True)
