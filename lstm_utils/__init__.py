"""Helpers of The Measured LSTM: shapes, counts, a readable LSTM, padding, training, deployment, a diagnosis, the audit.

The modules stand alone; what a reader takes home most often is exported here. Plotting (``lstm_utils.plotting``)
needs the ``notebooks`` extra and is imported by name.
"""

from lstm_utils.checkpointing import checkpointed_lstm, truncated_bptt
from lstm_utils.claims import audit
from lstm_utils.ctc import diagnose_ctc
from lstm_utils.diagnose import diagnose
from lstm_utils.exercises import check, error_of
from lstm_utils.findings import Diagnosis, Finding
from lstm_utils.gradients import GradientClipper, gradient_norms
from lstm_utils.initialization import init_lstm_
from lstm_utils.measure import compare_times, hardware, peak_memory, resolve_device, saved_bytes
from lstm_utils.onnx_export import export_onnx, quantize_onnx
from lstm_utils.pitfalls import find_pitfalls, pitfall
from lstm_utils.projection import FoldedProjection
from lstm_utils.quantization import NothingQuantizedError, quantize_lstm, saved_size
from lstm_utils.reference import ReferenceLSTM, lstm_cell
from lstm_utils.sequences import LengthBucketSampler, last_valid_step, masked_mean, run_packed, valid_mask
from lstm_utils.spec import LSTMShapes, LSTMSpec

__all__ = [
    "Diagnosis",
    "Finding",
    "FoldedProjection",
    "GradientClipper",
    "LSTMShapes",
    "LSTMSpec",
    "LengthBucketSampler",
    "NothingQuantizedError",
    "ReferenceLSTM",
    "audit",
    "check",
    "checkpointed_lstm",
    "compare_times",
    "diagnose",
    "diagnose_ctc",
    "error_of",
    "export_onnx",
    "find_pitfalls",
    "gradient_norms",
    "hardware",
    "init_lstm_",
    "last_valid_step",
    "lstm_cell",
    "masked_mean",
    "peak_memory",
    "pitfall",
    "quantize_lstm",
    "quantize_onnx",
    "resolve_device",
    "run_packed",
    "saved_bytes",
    "saved_size",
    "truncated_bptt",
    "valid_mask",
]
__version__ = "0.1.0"
