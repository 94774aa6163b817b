"""Helpers of The Measured LSTM: shapes, counts, a readable LSTM, padding, a diagnosis, measurements and the audit.

The modules stand alone; what a reader takes home most often is exported here. Plotting (``lstm_utils.plotting``)
needs the ``notebooks`` extra and is imported by name.
"""

from lstm_utils.claims import audit
from lstm_utils.ctc import diagnose_ctc
from lstm_utils.diagnose import diagnose
from lstm_utils.exercises import check, error_of
from lstm_utils.findings import Diagnosis, Finding
from lstm_utils.measure import compare_times, hardware, resolve_device
from lstm_utils.pitfalls import find_pitfalls, pitfall
from lstm_utils.reference import ReferenceLSTM, lstm_cell
from lstm_utils.sequences import LengthBucketSampler, last_valid_step, masked_mean, run_packed, valid_mask
from lstm_utils.spec import LSTMShapes, LSTMSpec

__all__ = [
    "Diagnosis",
    "Finding",
    "LSTMShapes",
    "LSTMSpec",
    "LengthBucketSampler",
    "ReferenceLSTM",
    "audit",
    "check",
    "compare_times",
    "diagnose",
    "diagnose_ctc",
    "error_of",
    "find_pitfalls",
    "hardware",
    "last_valid_step",
    "lstm_cell",
    "masked_mean",
    "pitfall",
    "resolve_device",
    "run_packed",
    "valid_mask",
]
__version__ = "0.1.0"
