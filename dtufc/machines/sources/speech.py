"""Speech with transcripts: ``source/<split>.txt`` lists WAV files below ``source/``, a line each::

    clips/1089-134686-0000.wav    He hoped there would be stew for dinner

File and transcript are parted by a tab. The name of a sample is the file's, without folders and ending.
A WAV file has 16-bit samples at the model's rate (16 kHz); of several channels the mean is taken.
"""

import wave
from functools import partial
from pathlib import Path

import numpy as np

from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources.lists import read_lines
from dtufc.machines.sources.source import Utterance, Utterances

HOLDS = "a WAV file below source/ and its transcript, with a tab between"


class Speech(Utterances):
    def inputs(self, split: Split) -> list[Path]:
        path = self.list_path(split)
        return [path] if path.is_file() else []

    def utterances(self, split: Split) -> list[Utterance]:
        path = self.list_path(split)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; each line names {HOLDS}")
        found: dict[str, Utterance] = {}
        for number, line in read_lines(path, HOLDS, ""):
            file, tab, text = line.partition("\t")
            name = Path(file).stem
            if not tab or not text.strip():
                raise UserError(f"{path}:{number}: expected {HOLDS}")
            if name in found:
                raise UserError(f"{path}:{number}: {name} is there twice")
            found[name] = Utterance(name, text.strip(), partial(read_wave, self.folder / file))
        chosen = list(found.values())[: self.counts.get(split)]
        if len(chosen) < self.counts.get(split, 1):
            raise UserError(f"{path}: {len(chosen)} lines, counts asks for {self.counts[split]}")
        return chosen


def read_wave(path: Path, rate: int) -> np.ndarray:
    """A WAV file -> (samples,) float32 in -1..1.

    Raises:
        FileNotFoundError: no such file.
        UserError: it is no WAV file of 16-bit samples at this rate; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, found = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise UserError(f"{path}: not a readable WAV file ({error})") from error
    if width != 2 or found != rate:
        raise UserError(
            f"{path}: {8 * width} bits at {found} Hz, expected 16 bits at {rate} Hz; "
            f"ffmpeg -i IN -ar {rate} -sample_fmt s16 OUT.wav makes such a file"
        )
    return np.frombuffer(data, "<i2").reshape(-1, channels).mean(1).astype(np.float32) / 32768
