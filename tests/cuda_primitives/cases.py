"""All cases of all primitives. Inputs have fixed seeds, so golden files stay comparable."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from . import definitions as d
from . import tensors
from .case import Case, aligned

WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
# (type, width, source of a, swizzle), as in kernels/wgmma.cu
WGMMA = [
    *(("bf16", n, "shared", 128) for n in WIDTHS),
    *(("bf16", 64, "shared", s) for s in (64, 32, 0)),
    *(("f16", 64, "shared", s) for s in (128, 64, 32, 0)),
    *(("bf16", n, "registers", 128) for n in (8, 64, 256)),
    ("bf16", 64, "registers", 0),
    ("f16", 64, "registers", 128),
]
FORMATS = {"f16": d.F16, "bf16": d.BF16, "tf32": d.F32}


def generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def words(g: np.random.Generator, *shape: int) -> np.ndarray:
    return g.integers(0, 1 << 32, shape, np.uint32)


@functools.cache
def all_cases() -> tuple[Case, ...]:
    parts = (
        warp,
        conversions,
        mma,
        stmatrix,
        mbarrier,
        tma_tiles,
        tma_im2col,
        tma_stores,
        cluster,
        wgmma,
        planes,
        conv,
    )
    found = itertools.chain.from_iterable(part() for part in parts)
    return tuple(replace(case, buffers=tuple(b if b is None else aligned(b) for b in case.buffers)) for case in found)


# ---- sm_80 -----------------------------------------------------------------------------------------------------------


def warp() -> Iterator[Case]:
    g = generator("warp")
    rows = words(g, 32, 4).view(np.uint16)
    for suffix, transposed in (("", False), ("_trans", True)):
        name = f"ldmatrix_x4{suffix}"
        yield Case(name, name, "sm_80", (rows, None), (), d.matrices_to_fragments(rows, transposed))

    source = words(g, 2, 32, 4)
    for name, valid in (("all", 0xFFFFFFFF), ("some", 0x5A0F33C1), ("none", 0)):
        lanes = (valid >> d.LANES & 1).astype(bool)
        expected = np.where(lanes[None, :, None], source, np.uint32(0))
        yield Case(f"cp_async-{name}", "cp_async", "sm_80", (source, None), (valid,), expected)

    values = words(g, 32)
    lanes = g.integers(0, 32, (32, 3), np.uint32)
    by_index = values[lanes]
    by_xor = np.stack([values[d.LANES ^ (1 << i)] for i in range(5)], 1)
    inputs = np.concatenate([values[:, None], lanes], 1)
    yield Case("shuffle", "shuffle", "sm_80", (inputs, None), (), np.concatenate([by_index, by_xor], 1))


def interesting_floats() -> np.ndarray:
    """float32 bits: every exponent with fractions at and around the ties of the narrow formats, and random bits."""
    exponents = np.arange(256, dtype=np.uint32) << 23
    fractions = {0, 0x7FFFFF}
    for kept in (7, 10):
        half = 1 << (22 - kept)
        for low in (0, half - 1, half, half + 1):  # below, at and above a tie, with an even and an odd last kept bit
            fractions |= {low, low | 2 * half, low | (0x7FFFFF & -2 * half)}
    positive = (exponents[:, None] | np.array(sorted(fractions), np.uint32)).reshape(-1)
    random = words(generator("floats"), 4096)
    bits = np.concatenate([positive, positive | 0x80000000, random]).astype(np.uint32)
    return bits[: len(bits) // 4 * 4]


def conversions() -> Iterator[Case]:
    narrow = np.arange(1 << 16, dtype=np.uint32)
    wide = interesting_floats()
    pairs = [f"cvt_rn_{relu}{kind}x2_f32" for relu in ("", "relu_") for kind in ("f16", "bf16")]
    inputs = dict.fromkeys(("cvt_rn_f16_f32", "cvt_rn_bf16_f32", *pairs, "cvt_rna_tf32_f32"), wide)
    inputs |= {"cvt_f32_f16": narrow, "cvt_f32_bf16": narrow, "sqrt_rn": wide, "rcp_rn": wide}
    for name, bits in inputs.items():
        expected = d.convert(name, bits).astype(np.uint32)
        compare = functools.partial(d.comparable, name)
        yield Case(name, name, "sm_80", (bits, None), (len(bits),), expected, comparable=compare)


def numbers(g: np.random.Generator, kind: str, *shape: int) -> np.ndarray:
    """Small integers, whose sums are exact in any order, or normally distributed values of many magnitudes."""
    if kind == "whole":
        return g.integers(-8, 9, shape).astype(np.float64)
    return g.standard_normal(shape) * 2.0 ** g.integers(-6, 7, shape)


def narrowed(values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Bits in the operands' type and their values. tf32 is float32 with the low 13 bits clear."""
    if kind == "tf32":
        bits = (d.encode(values, d.TF32) << 13).astype(np.uint32)
    else:
        bits = d.encode(values, FORMATS[kind]).astype(np.uint16)
    return bits, d.decode(bits, FORMATS[kind])


def summed(kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The expected sums, and the bound on their error (None if exact)."""
    value, bound = d.product(a, b, c)
    return (value.astype(np.float32), None) if kind == "whole" else (value, bound)


def mma() -> Iterator[Case]:
    count = 8
    for dtype, kind in itertools.product(("f16", "bf16", "tf32"), ("whole", "random")):
        g = generator(f"mma-{dtype}-{kind}")
        depth = 8 if dtype == "tf32" else 16
        inputs, outputs, bounds = [], [], []
        for _ in range(count):
            a_bits, a = narrowed(numbers(g, kind, 16, depth), dtype)
            b_bits, b = narrowed(numbers(g, kind, 8, depth), dtype)
            c = numbers(g, kind, 16, 8).astype(np.float32)
            value, bound = summed(kind, a, b, c.astype(np.float64))
            padded_b = np.pad(d.fragment_b(b_bits), ((0, 0), (0, 2)))
            inputs.append((d.fragment_a(a_bits), padded_b, d.fragment_d(c)))
            outputs.append(d.fragment_d(value))
            bounds.append(None if bound is None else d.fragment_d(bound))
        a, b, c = (np.stack(part) for part in zip(*inputs, strict=True))
        expected = np.stack(outputs)
        bound = None if bounds[0] is None else np.stack(bounds)
        yield float_case(f"mma_{dtype}-{kind}", f"mma_{dtype}", "sm_80", (a, b, c, None), (count,), expected, bound)


def float_case(name, primitive, needs, buffers, numbers_, expected, bound) -> Case:
    """A case with float32 output; ``expected`` is rounded to float32."""
    return Case(name, primitive, needs, buffers, numbers_, expected.astype(np.float32), bound)


# ---- sm_90 -----------------------------------------------------------------------------------------------------------


def stmatrix() -> Iterator[Case]:
    fragments = words(generator("stmatrix"), 32, 4)
    for suffix, transposed in (("", False), ("_trans", True)):
        name = f"stmatrix_x4{suffix}"
        yield Case(name, name, "sm_90", (fragments, None), (), d.fragments_to_matrices(fragments, transposed))


def mbarrier() -> Iterator[Case]:
    for steps in (1, 2, 7):
        source = words(generator("mbarrier"), steps, 32, 4)
        expected = np.ascontiguousarray(source[:, ::-1])
        yield Case(f"mbarrier_ring-{steps}", "mbarrier_ring", "sm_90", (source, None), (steps,), expected)


def typed(dtype: str, g: np.random.Generator, *shape: int) -> np.ndarray:
    """Random bits: TMA does not interpret values."""
    item = np.uint32 if dtype == "float32" else np.uint16
    return g.integers(1, 1 << np.dtype(item).itemsize * 8, shape, item)


def tma_tile(name: str, dtype: str, tensor: np.ndarray, start, box, step=None, swizzle: int = 0) -> Case:
    rank = tensor.ndim
    step = step or (1,) * rank
    expected = d.swizzle(d.tile(tensor, start, box, step), swizzle)
    place = [*start, *[0] * (4 - rank), 0, 0]
    call = [*tensors.tiled(dtype, tensor, box, step, swizzle), *place, expected.nbytes]
    return Case(f"tma_load_{rank}d-{name}", f"tma_load_{rank}d", "sm_90", (tensor, None), tuple(call), expected)


def tma_tiles() -> Iterator[Case]:
    g = generator("tma_tiles")
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        flat = typed(dtype, g, 40, 256 // size)
        for width in (128, 64, 32, 0):
            row = (width or 48) // size
            yield tma_tile(f"{dtype}-{width}", dtype, flat, (row, 5), (row, 24), swizzle=width)
    # Borders: before, after, completely outside, and a row that is partly inside.
    flat = typed("bfloat16", g, 40, 72)
    for place, start in dict(before=(-16, -3), after=(40, 30), outside=(200, 3), below=(8, -30)).items():
        yield tma_tile(f"{place}", "bfloat16", flat, start, (64, 24), swizzle=128)
    cube = typed("bfloat16", g, 6, 9, 64)
    yield tma_tile("inside", "bfloat16", cube, (0, 2, 1), (64, 4, 3), swizzle=128)
    yield tma_tile("borders", "bfloat16", cube, (32, -2, 4), (64, 5, 4), swizzle=128)
    nhwc = typed("bfloat16", g, 3, 7, 9, 64)
    yield tma_tile("inside", "bfloat16", nhwc, (0, 2, 1, 1), (64, 4, 3, 2), swizzle=128)
    yield tma_tile("borders", "bfloat16", nhwc, (-8, -1, -1, 1), (32, 5, 4, 3), swizzle=64)
    yield tma_tile("larger-than-the-tensor", "bfloat16", nhwc, (0, -1, -1, 1), (64, 16, 11, 1), swizzle=128)
    yield tma_tile("steps", "bfloat16", nhwc, (0, -1, -1, 0), (64, 9, 7, 2), (1, 2, 2, 1), swizzle=128)
    yield tma_tile("steps-3", "bfloat16", nhwc, (16, 1, 0, 0), (16, 7, 7, 3), (1, 3, 2, 1), swizzle=32)


def tma_im2col() -> Iterator[Case]:
    g = generator("tma_im2col")
    x = typed("bfloat16", g, 3, 9, 7, 72)
    windows = {
        "3x3": d.Window((1, 1), (1, 1), (1, 1), (3, 3)),
        "stride-2": d.Window((2, 2), (1, 1), (1, 1), (3, 3)),
        "1x1-stride-2": d.Window((2, 2), (0, 0), (1, 1), (1, 1)),
        "dilated": d.Window((1, 1), (2, 2), (2, 2), (3, 3)),
        "uneven": d.Window((2, 1), (2, 1), (1, 1), (5, 3)),
    }
    for name, window in windows.items():
        p, q = window.output(x.shape[1:3])
        last = x.shape[0] * p * q
        taps = {(0, 0), (window.taps[0] - 1, window.taps[1] - 1), (window.taps[0] // 2, 0)}
        # From the first pixel, from the middle of a row across images, and past the last image.
        for first, tap in itertools.product((0, p * q - q // 2 - 1, last - 20), sorted(taps)):
            yield tma_window(f"{name}-{first}-tap-{tap[0]}-{tap[1]}", x, window, first, tap, 64, 64)
    window = windows["3x3"]
    for width, channel in ((64, 32), (32, 8), (0, 56)):  # the last one ends past the last channel
        yield tma_window(f"swizzle-{width}", x, window, 11, (2, 0), channel, (width or 48) // 2, width)


def tma_window(name, x, window, first, tap, channel, channels, width=128, pixels=64) -> Case:
    channel = 0 if channels == 64 and "swizzle" not in name else channel
    expected = d.swizzle(d.im2col(x, window, first, pixels, tap, slice(channel, channel + channels)), width)
    p, q = window.output(x.shape[1:3])
    image, row, col = first // (p * q), first // q % p, first % q
    place = [channel, col * window.stride[1] - window.pad[1], row * window.stride[0] - window.pad[0], image]
    offsets = [tap[1] * window.dilation[1], tap[0] * window.dilation[0]]
    call = [*tensors.im2col("bfloat16", x, window, channels, pixels, width), *place, *offsets, expected.nbytes]
    primitive = "tma_load_im2col_4d"
    return Case(f"{primitive}-{name}", primitive, "sm_90", (x, None), tuple(call), expected)


def tma_stores() -> Iterator[Case]:
    """Boxes that tile a tensor and reach past its end: every element is written once."""
    for rank, shape, box, width in (
        (2, (37, 136), (64, 16), 128),
        (2, (37, 136), (32, 16), 64),
        (2, (20, 40), (16, 8), 32),
        (2, (20, 40), (24, 8), 0),
        (3, (5, 9, 64), (64, 4, 2), 128),
        (4, (3, 5, 9, 64), (64, 5, 2, 2), 128),
        (4, (2, 3, 7, 64), (64, 16, 8, 1), 128),
    ):
        name = f"tma_store_{rank}d-{'x'.join(map(str, box))}-{width}"
        tensor = typed("bfloat16", generator(name), *shape)
        starts = list(itertools.product(*(range(0, n, b) for n, b in zip(shape[::-1], box, strict=True))))
        starts += [(*starts[-1][:-1], shape[0] + 3)] * (len(starts) % 2)  # a block stores two: pad with one outside
        step = (1,) * rank
        boxes = np.stack([d.swizzle(d.tile(tensor, start, box, step), width) for start in starts])
        places = np.array([[*start, *[0] * (4 - rank)] for start in starts], np.int32)
        call = [*tensors.tiled("bfloat16", tensor, box, step, width), len(starts), boxes.shape[1]]
        yield Case(name, f"tma_store_{rank}d", "sm_90", (boxes, places, None), tuple(call), tensor)


def cluster() -> Iterator[Case]:
    """Each block multicasts half of the data to both."""
    for steps in (1, 2, 7):
        tensor = words(generator("cluster"), 16 * steps, 16)
        chunks = tensor.reshape(steps, 64, 4)
        expected = np.ascontiguousarray(np.stack([chunks, chunks[:, ::-1]], 1))
        call = [*tensors.tiled("float32", tensor, (16, 8)), steps]
        yield Case(f"cluster_ring-{steps}", "cluster_ring", "sm_90", (tensor, None), tuple(call), expected)


# ---- sm_90a ----------------------------------------------------------------------------------------------------------


def wgmma() -> Iterator[Case]:
    for dtype, n, source, width in WGMMA:
        primitive = f"wgmma_{dtype}_n{n}_{source}_{width}"
        for kind, accumulate in (("whole", 1), ("random", 0), ("random", 1)):
            if kind == "random" and n != 64:
                continue
            g = generator(f"{primitive}-{kind}-{accumulate}")
            depth = (width or 64) // 2
            a_bits, a = narrowed(numbers(g, kind, 64, depth), dtype)
            b_bits, b = narrowed(numbers(g, kind, n, depth), dtype)
            c = numbers(g, kind, 64, n).astype(np.float32)
            value, bound = summed(kind, a, b, c * float(accumulate))
            buffers = (operand_a(a_bits, source, width), operand_b(b_bits, width), by_warps(c), None)
            name = f"{primitive}-{kind}{'-accumulate' if accumulate else ''}"
            bound = None if bound is None else by_warps(bound)
            yield float_case(name, primitive, "sm_90a", buffers, (accumulate,), by_warps(value), bound)


def planes() -> Iterator[Case]:
    """wgmma over 96 pixels from any start position, stored in planes of 16 bytes per pixel."""
    g = generator("planes")
    a_bits, a = narrowed(numbers(g, "whole", 64, 64), "bf16")
    b_bits, b = narrowed(numbers(g, "whole", 139, 64), "bf16")
    lying = np.ascontiguousarray(b_bits.reshape(139, 8, 8).transpose(1, 0, 2))
    for first in (0, 1, 7, 13, 43):
        value = by_warps((a @ b[first : first + 96].T).astype(np.float32))
        buffers = (operand_a(a_bits, "shared", 128), lying, None)
        yield float_case(f"wgmma_planes-{first}", "wgmma_planes", "sm_90a", buffers, (first,), value, None)


def by_warps(matrix: np.ndarray) -> np.ndarray:
    """A 64 x n accumulator in register order: each warp has 16 rows."""
    return np.concatenate([d.fragment_d(matrix[16 * w : 16 * w + 16]) for w in range(4)])


def operand_a(a: np.ndarray, source: str, width: int) -> np.ndarray:
    if source == "registers":
        steps = [a[:, k : k + 16] for k in range(0, a.shape[1], 16)]
        return np.stack([np.concatenate([d.fragment_a(s[16 * w : 16 * w + 16]) for w in range(4)]) for s in steps])
    return d.swizzle(a, width) if width else core_matrices(a, "k")


def operand_b(b: np.ndarray, width: int) -> np.ndarray:
    return d.swizzle(b, width) if width else core_matrices(b, "rows")


def core_matrices(matrix: np.ndarray, neighbours: str) -> np.ndarray:
    """Layout without swizzle: core matrices (8 adjacent rows of 16 bytes) ordered along K or along rows."""
    cores = matrix.reshape(matrix.shape[0] // 8, 8, matrix.shape[1] // 8, 8)  # (8 rows, row, 16 bytes, element)
    return np.ascontiguousarray(cores.transpose((0, 2, 1, 3) if neighbours == "k" else (2, 0, 1, 3)))


def conv() -> Iterator[Case]:
    """TMA, mbarriers, wgmma, stmatrix and TMA stores together. Integers, so every sum is exact."""
    for name, shape, k, stride in (
        ("one-tile", (2, 9, 7, 64), 64, 1),
        ("ragged", (1, 13, 12, 128), 72, 1),
        ("stride-2", (2, 16, 18, 64), 64, 2),
    ):
        g = generator(f"conv-{name}")
        x_bits, x = narrowed(g.integers(-2, 3, shape).astype(np.float64), "bf16")
        w_bits, w = narrowed(g.integers(-1, 2, (k, 3, 3, shape[3])).astype(np.float64), "bf16")
        window = d.Window((stride, stride), (1, 1), (1, 1), (3, 3))
        p, q = window.output(shape[1:3])
        m = shape[0] * p * q
        columns = [
            d.im2col(x, window, 0, m, (r, s), slice(0, shape[3])) for r, s in itertools.product(range(3), repeat=2)
        ]
        y = d.encode(np.concatenate(columns, 1) @ w.reshape(k, -1).T, d.BF16).astype(np.uint16)
        matrix = w_bits.reshape(k, -1)
        call = [
            *tensors.im2col("bfloat16", x_bits, window, 64, 128, 128),
            *tensors.tiled("bfloat16", matrix, (64, 64), swizzle=128),
            *tensors.tiled("bfloat16", y, (64, 64), swizzle=128),
            *(shape[3] // 64, p, q, stride, 1, -(-m // 128), -(-k // 64)),
        ]
        yield Case(f"conv-{name}", "conv", "sm_90a", (x_bits, matrix, None), tuple(call), y)
