"""Ways to damage files and their content, for the tests of formats and the fuzzer."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

ODD = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        0.5,
        -0.0,
        1e308,
        "",
        "3",
        "x" * 300,
        [],
        [[]],
        {},
        {"a": 1},
    ),
    *([1, [2]], [None], [True], [-1], ["1"], [[1, 2], [3]], [[[[1]]]], [1e400], {"0": [0]}, [{}]),
)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut, flipped, doubled, overwritten or spliced in, up to four times."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(6)
        if kind == 0:
            del out[at:]
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.randint(1, 40)]
        elif kind == 3:
            piece = out[at : at + rng.randint(1, 40)]
            out[at:at] = piece * rng.randint(1, 4)
        elif kind == 4:
            out[at : at + 8] = rng.choice((b"\xff" * 8, b"\x00" * 8, b"-9999999", b"[[[[[[[[", b"1e400,00"))
        else:
            out[at:at] = rng.choice(
                (b"NaN", b"-1", b"null", b"{", b"]", b'"', b"\n", b"\xef\xbb\xbf", b"&a *a")
            )
    return bytes(out)


def mutate(value: Any, rng: random.Random) -> Any:
    """The JSON value with one node replaced by something odd, left out or doubled."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(list(keys))
        copy = value.copy()
        kind = rng.randrange(8)
        if kind == 0:
            copy.pop(key)
        elif kind == 1 and isinstance(copy, list):
            copy.insert(key, copy[key])
        elif kind == 2 and isinstance(copy, dict):
            copy[rng.choice(("layers", "rank", "01", "-1", "0"))] = copy[key]
        else:
            copy[key] = mutate(copy[key], rng)
        return copy
    return rng.choice(ODD)


def odd_content(value: Any, rng: random.Random) -> Any:
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        copy = value.copy()
        key = rng.choice(list(copy) if isinstance(copy, dict) else list(range(len(copy))))
        if rng.random() < 0.15:
            copy.pop(key)
        else:
            copy[key] = odd_content(copy[key], rng)
        return copy
    return odd_tensor(rng) if rng.random() < 0.6 else rng.choice(ODD)


def odd_array(rng: random.Random) -> np.ndarray:
    shape = tuple(rng.choice((0, 1, 3, 8)) for _ in range(rng.randint(0, 4)))
    dtype = rng.choice(("i1", "i8", "u8", "f2", "f8", "?", "c8", "U3", "S2", "M8[s]", "V4", "i4,f4"))
    array = np.zeros(shape, dtype=dtype)
    if array.dtype.kind in "iuf" and rng.random() < 0.7:
        array = np.asarray(array + array.dtype.type(rng.choice((1, 3, 100))))
    if array.dtype.kind == "f" and array.size and rng.random() < 0.5:
        array.flat[-1] = rng.choice((np.nan, np.inf, -1))
    return array


def odd_tensor(rng: random.Random) -> Any:
    import torch

    shape = tuple(rng.choice((0, 1, 2, 6, 8)) for _ in range(rng.randint(0, 4)))
    kinds = (torch.int32, torch.int64, torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float64)
    tensor = torch.ones(shape, dtype=rng.choice((*kinds, torch.complex64)))
    return rng.choice(
        (
            tensor,
            -torch.ones(shape),
            torch.full(shape, float("nan")),
            tensor.to_sparse() if shape else tensor,
            torch.ones(1, dtype=torch.int32).expand(10**5, 10**5, 61),
            torch.ones(6, 8).t(),
            torch.ones(shape, device="meta"),
            torch.nn.Parameter(torch.ones(6, 8)),
        )
    )
