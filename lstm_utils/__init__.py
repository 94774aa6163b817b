"""Helpers of The Measured LSTM: shapes, counts, a readable LSTM, measurements and the audit.

The modules stand alone; what a reader takes home most often is exported here. Plotting (``lstm_utils.plotting``)
needs the ``notebooks`` extra and is imported by name.
"""

from lstm_utils.claims import audit
from lstm_utils.exercises import check, error_of
from lstm_utils.measure import compare_times, hardware, resolve_device
from lstm_utils.reference import ReferenceLSTM, lstm_cell
from lstm_utils.spec import LSTMShapes, LSTMSpec

__all__ = [
    "LSTMShapes",
    "LSTMSpec",
    "ReferenceLSTM",
    "audit",
    "check",
    "compare_times",
    "error_of",
    "hardware",
    "lstm_cell",
    "resolve_device",
]
__version__ = "0.1.0"
