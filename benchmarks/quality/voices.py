"""Parents that others trained: two generations of silero-vad, which tell speech from noise.

The data folder holds two wheels (``pip download --no-deps silero-vad==5.1.2`` and ``6.2.3``), and ``speech.wav``, any
16-bit recording or synthesis of speech of a quarter of an hour (``espeak-ng -f TEXT -w speech.wav``).
"""

from __future__ import annotations

import io
import wave
import zipfile
from pathlib import Path

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor, nn

from quality.data import Data, Source, found, shuffled

WHEELS = tuple(Source((f"silero_vad-{version}-py3-none-any.whl",), None) for version in ("5.1.2", "6.2.3"))
SPEECH = Source(("speech.wav",), None)
RATE, STEP, BEFORE, FRAMES = 16_000, 512, 64, 24  # samples of a frame and of what it sees before it
TRAIN, VALIDATION, TEST = 512, 200, 500
LOUD = 0.1  # of the recording's loudness, above which a frame counts as speech
PARTS = {
    "spectrum.weight": "stft.forward_basis_buffer",
    **{f"encoder.{k}.{key}": f"encoder.{k}.reparam_conv.{key}" for k in range(4) for key in ("weight", "bias")},
    **{f"memory.{key}": f"decoder.rnn.{key}" for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    **{f"out.{key}": f"decoder.decoder.2.{key}" for key in ("weight", "bias")},
}


class Voice(nn.Module):
    """silero-vad's network for 16 kHz, on frames of shape (n, frames, 576) in a row; logits of noise and of speech.

    Its TorchScript has no source to trace; this computes the same, checked against it when it is loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        sizes = [(129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)]
        self.encoder = nn.ModuleList(nn.Conv1d(a, b, 3, stride=stride, padding=1) for a, b, stride in sizes)
        self.memory = nn.LSTMCell(128, 128)
        self.out = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = nn.functional.pad(x.flatten(0, 1), (0, BEFORE), mode="reflect")
        real, imaginary = self.spectrum(frames[:, None]).split(129, dim=1)
        h = (real.square() + imaginary.square()).sqrt()
        for layer in self.encoder:
            h = torch.relu(layer(h))
        state, logits = None, []
        for step in h.squeeze(-1).unflatten(0, x.shape[:2]).unbind(dim=1):
            state = self.memory(step, state)
            logits.append(self.out(torch.relu(state[0])[..., None])[..., 0])
        speech = torch.stack(logits, dim=1)
        return torch.cat([torch.zeros_like(speech), speech], dim=-1)


@torch.no_grad()
def published(folder: Path, index: int) -> Voice:
    """The older or the newer generation: values out of TorchScript, which also says what it must compute."""
    with zipfile.ZipFile(found(folder, WHEELS[index])) as wheel:
        script = torch.jit.load(io.BytesIO(wheel.read("silero_vad/data/silero_vad.jit")), map_location="cpu")
    state = script.state_dict()
    network = Voice().eval()
    network.load_state_dict({name: state[f"_model.{theirs}"] for name, theirs in PARTS.items()})
    x = 0.1 * torch.randn(2, 5, BEFORE + STEP, generator=torch.Generator().manual_seed(0))
    x[:, 1:, :BEFORE] = x[:, :-1, -BEFORE:]
    script.reset_states()
    theirs = torch.cat([script(frame[:, BEFORE:], RATE) for frame in _silent_before(x).unbind(dim=1)], dim=1)
    torch.testing.assert_close(network(_silent_before(x)).softmax(dim=-1)[..., 1], theirs, atol=1e-4, rtol=1e-3)
    return network


def _silent_before(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0, :BEFORE] = 0
    return x


def voices(folder: Path) -> Data:
    """Stretches of speech with pauses, in noise of many levels; targets say in which frames there is speech."""
    speech = _recording(found(folder, SPEECH))
    length = FRAMES * STEP
    count = min(len(speech) // length, TRAIN + VALIDATION + TEST)
    generator = torch.Generator().manual_seed(0)
    clean = speech[: count * length].view(count, FRAMES, STEP)
    begins, ends = torch.randint(0, FRAMES, (2, count, 1), generator=generator)
    frames = torch.arange(FRAMES)
    clean = torch.where(((frames >= begins) & (frames < ends))[..., None], 0.0, clean)
    spoken = clean.square().mean(dim=-1).sqrt() > LOUD * speech.square().mean().sqrt()
    noise = torch.randn(clean.shape, generator=generator) * speech.square().mean().sqrt()
    heard = clean + noise * 10 ** (-0.25 - 2 * torch.rand(count, 1, 1, generator=generator))
    before = torch.cat([torch.zeros(count, 1, BEFORE), heard[:, :-1, -BEFORE:]], dim=1)
    everything = shuffled(torch.cat([before, heard], dim=-1), spoken.long())
    test, rest = (
        int(count * TEST / (TRAIN + VALIDATION + TEST)),
        int(count * (TEST + VALIDATION) / (TRAIN + VALIDATION + TEST)),
    )
    return Data(everything.take(slice(rest, None)), everything.take(slice(test, rest)), everything.take(slice(test)), 2)


def _recording(path: Path) -> Tensor:
    with wave.open(str(path)) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, file.getnchannels())
        sound = resample_poly(raw.mean(axis=1) / 2**15, RATE, file.getframerate())
    return torch.from_numpy(sound).float()
