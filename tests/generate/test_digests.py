"""The compact set of digests against Python's own."""

import random
from hashlib import blake2b

from components.generate.digests import FIRST_SLOTS, Digests


def test_it_holds_what_a_set_holds() -> None:
    rng = random.Random(0)
    digests, expected = Digests(), dict[bytes, int]()
    for _ in range(20 * FIRST_SLOTS):
        digest = blake2b(rng.randrange(10 * FIRST_SLOTS).to_bytes(8), digest_size=8).digest()
        assert digests.add(digest) is (digest not in expected)
        expected.setdefault(digest, len(expected))
    assert len(digests) == len(expected) > 8 * FIRST_SLOTS
    assert all(digests.place(digest) == place for digest, place in expected.items())


def test_neighbours_are_told_apart() -> None:
    digests = Digests()
    alike = [(number * 2**40).to_bytes(8, "little") for number in range(100)]  # in one slot
    assert all(map(digests.add, alike)) and not any(map(digests.add, alike))
    assert [digests.place(digest) for digest in alike] == list(range(100))
    assert digests.place((100 * 2**40).to_bytes(8, "little")) == -1
