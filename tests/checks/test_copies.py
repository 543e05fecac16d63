import itertools

import numpy as np
import pytest

from convattn.checks.copies import find_near, near_codes


def flip(code, bits):
    for bit in bits:
        code ^= 1 << int(bit)
    return code


def some_codes(seed, families=40, sizes=6):
    """Codes of 64 bits, most of them near to others: as hexadecimal numbers."""
    generator = np.random.default_rng(seed)
    codes = []
    for _ in range(families):
        centre = int(generator.integers(2**64, dtype=np.uint64))
        for _ in range(sizes):
            codes.append(flip(centre, generator.choice(64, generator.integers(0, 7), False)))
    return [f"{codes[place]:016x}" for place in generator.permutation(len(codes))]


def differing_bits(one, other):
    return bin(int(one, 16) ^ int(other, 16)).count("1")


def groups_by_hand(codes, most):
    """Every image is compared with every other, and what it reaches is walked to."""
    seen, groups = set(), []
    for start in range(len(codes)):
        if start in seen:
            continue
        group, waiting = {start}, [start]
        while waiting:
            place = waiting.pop()
            near = {
                k for k in range(len(codes)) if differing_bits(codes[k], codes[place]) <= most
            } - group
            group |= near
            waiting += near
        seen |= group
        groups.append(sorted(group))
    return [group for group in groups if len(group) > 1]


@pytest.mark.parametrize("most", [0, 1, 4, 7])
def test_groups_are_those_of_comparing_all_with_all(most):
    codes = some_codes(most)
    assert find_near(codes, most) == groups_by_hand(codes, most)


@pytest.mark.parametrize("most", [0, 3, 4, 10])
def test_no_near_pair_is_missed_wherever_the_bits_differ(most):
    generator = np.random.default_rng(0)
    for differing in range(most + 2):
        for _ in range(50):
            code = int(generator.integers(2**64, dtype=np.uint64))
            other = flip(code, generator.choice(64, differing, False))
            found = find_near([f"{code:016x}", f"{other:016x}"], most)
            assert found == ([[0, 1]] if differing <= most else [])


def test_pairs_are_those_of_comparing_all_with_all():
    codes = np.unique(np.array([int(one, 16) for one in some_codes(9)], np.uint64))
    found = {frozenset(pair) for pair in near_codes(codes, 4).tolist()}
    assert found == {
        frozenset(pair)
        for pair in itertools.combinations(range(len(codes)), 2)
        if bin(int(codes[pair[0]]) ^ int(codes[pair[1]])).count("1") <= 4
    }


def test_equal_codes_are_a_group_and_what_has_none_is_in_none():
    assert find_near(["00", None, "00", None, "ff" * 8, "00"]) == [[0, 2, 5]]
    assert find_near([None, None]) == find_near([]) == []
