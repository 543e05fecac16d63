"""Bytes of files as bad disks, editors and attackers leave them, from a fixed seed."""

import random

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
