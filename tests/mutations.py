"""Bytes of files as bad disks, editors and attackers leave them, from a fixed seed."""

import copy
import json
import random
from typing import Any

_WORDS = (
    b"null", b"-1", b"[]", b"{}", b'""', b"true", b"1e999", b"NaN", b"99999999999999999999",
    b"\xff\xfe", b"\x00", b"'", b'"', b",", b"\n", b"<", b"../../x", b"1e-400", b"[[[[[[[[",
)  # fmt: skip


def mutate(content: bytes, seed: int) -> bytes:
    """The content with one to three changes.

    Args:
        content: Of a whole file.
        seed: The same gives the same.
    """
    draw = random.Random(seed)
    found = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(found) + 1)
        end = min(len(found), place + draw.choice((1, 2, 5, 40, 1_000)))
        kind = draw.randrange(7)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del found[place:end]
        elif kind == 2:
            del found[place:]
        elif kind == 3:
            found[place:place] = found[place:end]
        elif kind == 4:
            found[place:end] = draw.randbytes(end - place)
        else:
            found[place : place + draw.choice((0, 1, 4))] = draw.choice(_WORDS)
    return bytes(found)


_VALUES = (
    None, True, -1, 0, 1e-320, 10**12, 10**30, -1e308, float("nan"), float("inf"), "", "x", "..",
    "/etc/passwd", "\x1b[31m", "\udcff", "9" * 5_000, [], [[]], {}, {"": None}, [None] * 3,
    "cuda:99",
)  # fmt: skip


def mutate_json(content: bytes, seed: int) -> bytes:
    """JSON text with one or two values replaced, removed or renamed.

    Args:
        content: JSON of an object or a list.
        seed: The same gives the same.
    """
    draw = random.Random(seed)
    found = json.loads(content)
    for _ in range(draw.randint(1, 2)):
        places = list(_places(found))
        if not places:
            break
        inside, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind == 0:
            del inside[key]
        elif kind == 1 and isinstance(inside, dict):
            inside[f"{key}s"] = inside.pop(key)
        elif kind == 2:
            inside[key] = [copy.deepcopy(inside[key])] * 2
        else:
            inside[key] = copy.deepcopy(draw.choice(_VALUES))
    return json.dumps(found).encode()


def _places(value: Any) -> Any:
    """Every container and key inside a value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
