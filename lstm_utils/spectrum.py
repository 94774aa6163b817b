"""What a recognizer of speech reads: log-mel spectrograms."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from lstm_utils.arguments import require_tensor

SAMPLE_RATE, BANDS = 22_050, 80
FLOOR_DB = -100.0
SIZE = 1024  # samples of a Fourier transform
MIRRORED = SIZE // 2  # at both ends


@cache
def mel_filters(bands: int = BANDS, bins: int = 513) -> Tensor:
    """Triangular filters (bins, bands), evenly spaced on the mel scale from 0 Hz to half the sample rate."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    away = edges - torch.linspace(0, SAMPLE_RATE / 2, bins, dtype=torch.float64)[:, None]
    rising, falling = -away[:, :-2] / edges.diff()[:-1], away[:, 2:] / edges.diff()[1:]
    return torch.minimum(rising, falling).clamp(min=0).float()


def log_mel(waveform: Tensor) -> Tensor:
    """Log-mel spectrogram in dB, (samples,) → (T, 80): Hann windows of 25 ms, one every 20 ms.

    Args:
        waveform: floats, about -1 to 1, 22,050 a second; more than 512 of them.

    Raises:
        TypeError: it is no tensor of floats.
        ValueError: it is not one row of samples, too short, or has samples that are not finite or far too large.
    """
    require_tensor("waveform", waveform)
    if not waveform.is_floating_point():
        raise TypeError(f"waveform must hold floats, about -1 to 1, got {waveform.dtype}; divide integers by 2**15")
    if waveform.dim() != 1 or len(waveform) <= MIRRORED:
        raise ValueError(f"waveform must be one row of more than {MIRRORED} samples, got {tuple(waveform.shape)}")
    samples = waveform.float()
    spectrum = torch.stft(samples, SIZE, 441, 551, torch.hann_window(551), return_complex=True).abs() ** 2
    power = spectrum.T @ mel_filters()
    if not bool(power.isfinite().all()):  # a loud sample is only wrong once its square is
        largest = waveform[waveform.abs().argmax()].item()  # nan, if there is one
        raise ValueError(f"waveform must hold finite samples, about -1 to 1, got {largest:g} of {waveform.dtype}")
    return 10 * power.clamp(min=10 ** (FLOOR_DB / 10)).log10()
