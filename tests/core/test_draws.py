import numpy as np
import pytest

import pcct_core as pc
from pcct_core.draws import draw_words, index_below, philox, seed_draws

SPEC = pc.GraphSpec("knn", 5, pc.Residual(pc.Matern52(0.3), inducing=8))


def points(n=50, seed=0):
    return np.random.default_rng(seed).random((n, 3))


def word(number):
    return np.uint64(number)


@pytest.mark.jitless
@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(key, counter, expected):
    assert tuple(int(part) for part in philox(word(key[0] | key[1] << 32), *map(word, counter))) == expected


@pytest.mark.jitless
def test_draw_words_differ_by_row_block_and_stream():
    words = [
        int(value)
        for key in (1, 2**63)
        for row in (0, 7)
        for block in (0, 1, 2**31)
        for value in draw_words(word(key), row, block)
    ]
    assert len(set(words)) == len(words) == 24


@pytest.mark.jitless
@pytest.mark.parametrize("count", [1, 2, 3, 1000, 2**31])
def test_index_below_is_the_high_part_of_the_product(count):
    values = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, *np.random.default_rng(count).integers(0, 2**63, 50).tolist()]
    assert [int(index_below(word(value), count)) for value in values] == [value * count >> 64 for value in values]


def test_all_indices_come_equally_often():
    draws = [index_below(word(value), 7) for block in range(3500) for value in draw_words(word(5), 3, block)]
    counts = np.bincount(draws, minlength=7)
    assert np.square(counts - 1000).sum() / 1000 < 22.5  # chi-squared with 6 degrees of freedom: one in a thousand


class TestSeedDraws:
    def test_the_same_input_gives_the_same_draws(self):
        assert seed_draws(points(), SPEC, b"s" * 16) == seed_draws(points(), SPEC, b"s" * 16)
        assert seed_draws(points(), SPEC, None) == seed_draws(points(), SPEC, None)

    def test_points_their_order_type_and_shape_specification_and_secret_all_count(self):
        X = points()
        swapped = X.copy()
        swapped[[3, 4]] = swapped[[4, 3]]
        other = pc.GraphSpec("knn", 5, pc.Residual(pc.Matern52(0.3000001), inducing=8))
        inputs = [
            (X, SPEC, None),
            (X, SPEC, b""),
            (X, SPEC, b"one secret"),
            (X, SPEC, b"another"),
            (X, other, None),
            (swapped, SPEC, None),
            (X.astype(np.float32), SPEC, None),
            (X.reshape(75, 2), SPEC, None),
        ]
        draws = [seed_draws(*given) for given in inputs]
        assert len({each.seed for each in draws}) == len(inputs)
        assert len({int(each.stream(name)) for each in draws for name in ("lessons", "audit 0", "audit 1")}) == 24

    def test_the_origin_names_the_secret_without_telling_it(self):
        assert seed_draws(points(), SPEC, None).origin == "public"
        one, other = (seed_draws(points(), SPEC, secret).origin for secret in (b"one secret", b"another"))
        assert one.startswith("secret:")
        assert one != other
        assert b"one secret".hex() not in one
        assert one == seed_draws(points(seed=1), SPEC, b"one secret").origin


def test_choose_returns_different_numbers_of_the_stream():
    draws = seed_draws(points(), SPEC, None)
    chosen = draws.choose("lessons", 20, 100)
    assert len(set(chosen.tolist())) == 20
    assert 0 <= chosen.min() <= chosen.max() < 100
    np.testing.assert_array_equal(draws.choose("lessons", 20, 100), chosen)
    assert sorted(draws.choose("lessons", 200, 100).tolist()) == list(range(100))
    assert draws.choose("others", 20, 100).tolist() != chosen.tolist()
