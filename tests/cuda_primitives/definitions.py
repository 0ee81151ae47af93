"""The instructions' definitions in numpy, from the text of the PTX ISA (9.0). Words are uint32."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

LANES = np.arange(32)
GROUP, MEMBER = LANES // 4, LANES % 4  # "groupID" and "threadID_in_group" of the ISA's fragment layouts


# ---- numbers ---------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    exponent: int  # bits
    fraction: int

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent) - 1) << self.fraction

    @property
    def least(self) -> int:
        """The exponent of the smallest normal number and of subnormals."""
        return 2 - (1 << (self.exponent - 1))


F32, F16, BF16, TF32 = Format(8, 23), Format(5, 10), Format(8, 7), Format(8, 10)


def decode(bits: np.ndarray, form: Format) -> np.ndarray:
    """Values as float64, which represents all formats exactly."""
    bits = bits.astype(np.int64)
    exponent = bits >> form.fraction & ((1 << form.exponent) - 1)
    fraction = bits & ((1 << form.fraction) - 1)
    normal = exponent > 0
    magnitude = (fraction + normal * (1 << form.fraction)) * 2.0 ** (
        np.maximum(exponent, 1) - 1 + form.least - form.fraction
    )
    special = exponent == (1 << form.exponent) - 1
    magnitude = np.where(special, np.where(fraction > 0, np.nan, np.inf), magnitude)
    return np.where(bits >> (form.exponent + form.fraction) & 1, -magnitude, magnitude)


def encode(values: np.ndarray, form: Format, ties: str = "even") -> np.ndarray:
    """Bits of the nearest value. ``ties``: to "even", or "away" from zero. NaN gets all bits set except the sign."""
    size = np.abs(values)
    finite = np.where(np.isfinite(size), size, 0)
    exponent = np.where(finite > 0, np.frexp(finite)[1].astype(np.int64) - 1, form.least)
    exponent = np.maximum(exponent, form.least)
    units = finite * 2.0 ** (form.fraction - exponent)
    units = np.rint(units) if ties == "even" else np.floor(units + 0.5)
    # The leading one of a normal number adds 1 to the exponent field, as does a fraction rounded up to 2.
    bits = ((exponent - form.least) << form.fraction) + units.astype(np.int64)
    bits = np.where(np.isinf(size), form.infinity, np.minimum(bits, form.infinity))
    bits |= np.signbit(values).astype(np.int64) << (form.exponent + form.fraction)
    nan = (1 << (form.exponent + form.fraction)) - 1
    return np.where(np.isnan(values), nan, bits)


def one_nan(bits: np.ndarray, form: Format) -> np.ndarray:
    """The same bits with one canonical NaN, because the NaN payload is not always defined."""
    bits = bits.astype(np.int64)
    size = bits & ((1 << (form.exponent + form.fraction)) - 1)
    return np.where(size > form.infinity, (1 << (form.exponent + form.fraction)) - 1, bits)


def convert(name: str, words: np.ndarray) -> np.ndarray:
    """``name``: the instruction. ``words``: its inputs, 16-bit ones in the low half."""
    if name in ("cvt_f32_f16", "cvt_f32_bf16"):
        return encode(decode(words & 0xFFFF, F16 if name.endswith("_f16") else BF16), F32)
    v = decode(words, F32)
    if name in ("sqrt_rn", "rcp_rn"):
        with np.errstate(divide="ignore", invalid="ignore"):
            # float64 has more than twice float32's precision plus two bits, so double rounding is harmless.
            return encode(np.sqrt(v) if name == "sqrt_rn" else 1 / v, F32)
    if name == "cvt_rna_tf32_f32":  # the ISA does not define the result for NaN; an H200 keeps its upper bits
        return np.where(np.isnan(v), words >> 13, encode(v, TF32, "away")) << 13
    narrow = BF16 if "bf16" in name else F16
    low, high = encode(v, narrow), encode(-v, narrow)
    if "relu" in name:
        low, high = np.where(v < 0, 0, low), np.where(v > 0, 0, high)
    return low | high << 16 if "x2" in name else low


def comparable(name: str, words: np.ndarray) -> np.ndarray:
    """Results of ``convert`` without the bits that the ISA leaves undefined."""
    if name in ("cvt_f32_f16", "cvt_f32_bf16", "sqrt_rn", "rcp_rn"):
        return one_nan(words, F32)
    if name == "cvt_rna_tf32_f32":  # the low 13 bits are not defined
        return words.astype(np.int64) >> 13
    narrow = BF16 if "bf16" in name else F16
    if "relu" in name:  # the sign of zero is not defined
        low, high = words & 0xFFFF, words >> 16
        words = np.where(low == 0x8000, 0, low) | np.where(high == 0x8000, 0, high) << 16
    return one_nan(words & 0xFFFF, narrow) | one_nan(words.astype(np.int64) >> 16, narrow) << 16


# ---- a warp's matrices -----------------------------------------------------------------------------------------------


def matrices_to_fragments(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """ldmatrix.x4: 32 rows of eight 16-bit elements, 8 rows per matrix -> words (lane, matrix)."""
    matrices = rows.reshape(4, 8, 8)
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    pairs = matrices[:, GROUP[:, None], MEMBER[:, None] * 2 + [0, 1]].astype(np.uint32)  # (matrix, lane, half)
    return np.ascontiguousarray((pairs[..., 0] | pairs[..., 1] << 16).T)


def fragments_to_matrices(words: np.ndarray, transposed: bool) -> np.ndarray:
    """stmatrix.x4: the inverse of ldmatrix.x4."""
    rows = np.zeros((4, 8, 8), np.uint16)
    for half in (0, 1):
        rows[:, GROUP, MEMBER * 2 + half] = (words >> 16 * half & 0xFFFF).astype(np.uint16).T
    return np.ascontiguousarray(rows.transpose(0, 2, 1) if transposed else rows).reshape(32, 8)


def pack(matrix: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Words of the 16-bit elements (row, col) and (row, col + 1)."""
    return matrix[rows, cols].astype(np.uint32) | matrix[rows, cols + 1].astype(np.uint32) << 16


def fragment_a(a: np.ndarray) -> np.ndarray:
    """A row-major 16x16 (16-bit) or 16x8 (tf32) operand -> words (lane, 4)."""
    if a.dtype == np.uint32:
        return np.stack([a[GROUP + r, MEMBER + c] for c in (0, 4) for r in (0, 8)], 1)
    return np.stack([pack(a, GROUP + r, MEMBER * 2 + c) for c in (0, 8) for r in (0, 8)], 1)


def fragment_b(b: np.ndarray) -> np.ndarray:
    """A column-major operand, given as its columns (8, k) -> words (lane, 2)."""
    if b.dtype == np.uint32:
        return np.stack([b[GROUP, MEMBER], b[GROUP, MEMBER + 4]], 1)
    return np.stack([pack(b, GROUP, MEMBER * 2), pack(b, GROUP, MEMBER * 2 + 8)], 1)


def fragment_d(d: np.ndarray) -> np.ndarray:
    """A 16 x n accumulator, n a multiple of 8 -> values (lane, n / 2)."""
    cols = [j + MEMBER * 2 + c for j in range(0, d.shape[1], 8) for c in (0, 1, 0, 1)]
    rows = [GROUP + r for _ in range(0, d.shape[1], 8) for r in (0, 0, 8, 8)]
    return np.ascontiguousarray(d[np.stack(rows, 1), np.stack(cols, 1)])


class Product(NamedTuple):
    """a @ b.T + c without rounding, and a bound on the error of its float32 sum in any order."""

    value: np.ndarray
    bound: np.ndarray


def product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Product:
    """Operands in float64. Tensor cores align products to the largest and may truncate below its last bit. The bound
    allows 2^-23 of the sum of magnitudes for each term."""
    terms = a.shape[1] + 1
    size = np.abs(a) @ np.abs(b).T + np.abs(c)
    return Product(a @ b.T + c, terms * 2.0**-23 * size)


# ---- shared memory and TMA -------------------------------------------------------------------------------------------


def swizzle(data: np.ndarray, width: int) -> np.ndarray:
    """A box as stored at an aligned address of shared memory. In the i-th line of 128 bytes, 16-byte piece c is at
    position c ^ (i mod 8), c ^ (i mod 4) or c ^ (i mod 2) for a swizzle of 128, 64 or 32 bytes."""
    flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if not width:
        return flat
    pieces = flat.reshape(-1, 16)
    index = np.arange(len(pieces))
    line, piece = index // 8, index % 8
    placed = np.empty_like(pieces)
    placed[line * 8 + (piece ^ line % (width // 16))] = pieces
    return placed.reshape(-1)


def tile(tensor: np.ndarray, start: tuple[int, ...], box: tuple[int, ...], step: tuple[int, ...]) -> np.ndarray:
    """The box at ``start``, zero outside the tensor. Tuples are innermost first, as for TMA; ``tensor`` is C order."""
    axes = [s + np.arange(0, b, t) for s, b, t in reversed(list(zip(start, box, step, strict=True)))]  # outermost first
    inside = [(x >= 0) & (x < n) for x, n in zip(axes, tensor.shape, strict=True)]
    picked = tensor[np.ix_(*(np.clip(x, 0, n - 1) for x, n in zip(axes, tensor.shape, strict=True)))]
    return np.where(functools.reduce(np.logical_and.outer, inside), picked, 0).astype(tensor.dtype)


class Window(NamedTuple):
    """A convolution's geometry, each as (h, w)."""

    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    taps: tuple[int, int]

    def output(self, size: tuple[int, int]) -> tuple[int, int]:
        return tuple(
            (n + 2 * p - d * (t - 1) - 1) // s + 1
            for n, s, p, d, t in zip(size, self.stride, self.pad, self.dilation, self.taps, strict=True)
        )


def im2col(x: np.ndarray, window: Window, first: int, pixels: int, tap: tuple[int, int], channels: slice) -> np.ndarray:
    """Rows of the im2col matrix of x (NHWC): the inputs of filter tap ``tap`` for output pixels from ``first`` on."""
    n, h, w, _ = x.shape
    p, q = window.output((h, w))
    rows = np.zeros((pixels, channels.stop - channels.start), x.dtype)
    for i in range(pixels):
        image, row, col = (first + i) // (p * q), (first + i) // q % p, (first + i) % q
        y = row * window.stride[0] - window.pad[0] + tap[0] * window.dilation[0]
        z = col * window.stride[1] - window.pad[1] + tap[1] * window.dilation[1]
        if image < n and 0 <= y < h and 0 <= z < w:
            found = x[image, y, z, channels]
            rows[i, : len(found)] = found
    return rows
