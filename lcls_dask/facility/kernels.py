"""The compiled loops of the time-of-flight simulation: electrons, and what the digitizer makes of them."""

import math

import numpy as np
from numba import njit

from ..tof.kernels.fex import skip, sparsify
from .generators import HITS, NOISE, generator, next_integer, normal, poisson, uniform


@njit(cache=True, nogil=True)
def draw_hits(seed, first, n, rate, lines, beam, spectrometer, amplitude, offset, time, height, line, energy, photon):
    """Draw the electrons of events ``first`` to ``first + n``.

    Parameters
    ----------
    rate : (channels, lines) float64
        Mean number of electrons at the mean pulse energy.
    lines : (lines, 3) float64
        Kinetic energy [eV], its standard deviation [eV], 1 where it follows the photon energy; energy 0 is
        the background, spread evenly over the gate.
    beam : (4,) float64
        Mean pulse energy [mJ], SASE modes, photon energy [eV], its standard deviation [eV].
    spectrometer : (4,) float64
        Flight path [mm], time of the light [ns], timing jitter [ns], latest time [ns].
    amplitude : (3,) float64
        Least pulse height, mean above it [ADU], and shape of its gamma distribution (an integer).
    offset : (n * channels + 1,) int64
    time, height, line : (capacity,)
        Out: arrival [ns], pulse height [ADU] and line of each hit, by (event, channel), then time.
    energy, photon : (n,) float64
        Out: pulse energy [mJ] and photon energy [eV].

    Returns
    -------
    int
        Events drawn before the capacity ran out.
    """
    channels, kinds = rate.shape
    total = np.zeros(channels)
    for c in range(channels):
        for k in range(kinds):
            total[c] += rate[c, k]
    count = 0
    offset[0] = 0
    for i in range(n):
        if count + 64 * channels > len(time):
            return i
        state = generator(seed, first + i, HITS)
        modes = int(beam[1])
        pulse = 0.0  # a SASE pulse of M modes has a gamma-distributed energy
        for _ in range(modes):
            pulse -= math.log(uniform(state)) / modes
        energy[i] = beam[0] * pulse
        photon[i] = beam[2] + beam[3] * normal(state)
        for c in range(channels):
            begin = count
            electrons = min(poisson(state, total[c] * pulse), 64)
            for _ in range(electrons):
                pick, k = uniform(state) * total[c], 0
                while k < kinds - 1 and pick >= rate[c, k]:
                    pick -= rate[c, k]
                    k += 1
                kinetic = lines[k, 0] + lines[k, 1] * normal(state) + lines[k, 2] * (photon[i] - beam[2])
                if lines[k, 0] == 0.0:
                    t = spectrometer[1] + uniform(state) * (spectrometer[3] - spectrometer[1])
                else:
                    # t = t0 + L / v(E), v = 0.593097 mm/ns at 1 eV
                    t = spectrometer[1] + spectrometer[0] / (0.5930970 * math.sqrt(kinetic))
                    t += spectrometer[2] * normal(state)
                h = 0.0
                for _ in range(int(amplitude[2])):
                    h -= math.log(uniform(state))
                h = amplitude[0] + amplitude[1] * h / amplitude[2]
                if t >= spectrometer[3]:
                    continue
                at = count
                while at > begin and time[at - 1] > t:
                    time[at], height[at], line[at] = time[at - 1], height[at - 1], line[at - 1]
                    at -= 1
                time[at], height[at], line[at] = t, h, k
                count += 1
            offset[i * channels + c + 1] = count
    return n


@njit(cache=True, nogil=True)
def _render(samples, pulse, low, high, base, noise, phase, time, height, begin, end, sigma, reach):
    """Digitised samples low to high of one channel: negative Gaussian pulses on the cores' baselines."""
    step = math.exp(-1.0 / (sigma * sigma))
    pulse[: high - low] = 0.0
    for j in range(begin, end):
        a = max(low, math.floor(time[j]) - reach)
        b = min(high, math.floor(time[j]) + reach + 2)
        if a >= b:
            continue
        x = a - time[j]  # g(x + 1) = g(x) r(x) and r(x + 1) = r(x) step, so that a sample costs no exponential
        value = height[j] * math.exp(-0.5 * x * x / (sigma * sigma))
        ratio = math.exp(-(x + 0.5) / (sigma * sigma))
        for i in range(a - low, b - low):
            pulse[i] += value
            value *= ratio
            ratio *= step
    quiet, stretch = base[low:high], noise[phase + low : phase + high]
    for i in range(high - low):
        samples[i] = min(max(quiet[i] + stretch[i] - np.int32(pulse[i] + 0.5), 0), 4095)


@njit(cache=True, nogil=True)
def _header(words, at, samples, stream, event):
    """A 16-byte stream header."""
    words[at] = samples & 0xFFFF
    words[at + 1] = (samples >> 16) & 0x1FFF
    words[at + 2] = 0
    words[at + 3] = stream << 8
    words[at + 4] = (event * 7) & 0xFFFF  # phase of the sample clock
    words[at + 5] = event & 0x1F
    words[at + 6] = words[at + 7] = 0
    return at + 8


@njit(cache=True, nogil=True)
def pack_hsd(
    seed, first, n, channel, channels, offset, time, height, base, noise, gate, sigma, band, prescale, words, ends
):
    """Digitise one channel of n events: FEX windows, and the whole waveform of every `prescale`-th event.

    Parameters
    ----------
    offset, time, height
        Of the hits; times in samples.
    base : (gate,) int32
        Baseline of each sample [ADU]: the interleaved cores differ.
    noise : (2**k + gate,) int32
        Normal noise drawn beforehand. A waveform takes a stretch of it that begins anywhere, so the noise is
        white within a waveform, but stretches come again after some 2**k waveforms.
    gate : int
        Samples of the whole waveform, a multiple of 4.
    sigma : float
        Width of a pulse [samples].
    band : (4,) int64
        ymin, ymax, xpre, xpost.
    words : (capacity,) uint16
        Out: the channel's streams, event behind event.
    ends : (n + 1,) int64
        Out: where each event begins in `words`.

    Returns
    -------
    int
        Events packed before the capacity ran out.
    """
    reach = int(5.0 * sigma)  # beyond it the largest pulse is under half an ADU
    samples, pulse = np.empty(gate, np.int32), np.empty(gate)
    mask = np.uint64(len(noise) - gate - 1)
    ymin, ymax, xpre, xpost = band
    # of literal numbers in calls each loop would be compiled once more
    at, none = np.int64(0), np.int64(0)
    ends[0] = 0
    for e in range(n):
        if at + 4 * gate + 64 > len(words):
            return e
        event = first + e
        phase = int(next_integer(generator(seed, event * channels + channel, NOISE)) & mask)
        begin, end = offset[e * channels + channel], offset[e * channels + channel + 1]
        if event % prescale == 0:
            at = _header(words, at, gate, none, event)
            _render(samples, pulse, none, gate, base, noise, phase, time, height, begin, end, sigma, reach)
            for i in range(gate):
                words[at + i] = samples[i]
            at += gate
        head = at
        at, used = at + 8, none
        j = begin
        while j < end:
            # hits whose windows may touch are digitised together
            last = j
            low = max(0, (int(time[j]) - reach - xpre) // 4 * 4 - 4)
            while last + 1 < end and time[last + 1] - time[last] < 2 * reach + xpre + xpost + 16:
                last += 1
            high = min(gate, (int(time[last]) + reach + xpost) // 4 * 4 + 8)
            if high > low:
                _render(samples, pulse, low, high, base, noise, phase, time, height, j, last + 1, sigma, reach)
                at, used = sparsify(samples[: high - low], low, used, ymin, ymax, xpre, xpost, words, at)
            j = last + 1
        if used < gate:
            at = skip(words, at, gate - used)
        _header(words, head, at - head - 8, np.int64(1), event)
        ends[e + 1] = at
    return n
