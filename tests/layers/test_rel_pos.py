import pytest
import torch

from convattn.layers.rel_pos import RelativeTables, coord_position, resample_table, sine_position


def test_table_of_its_own_size_is_untouched():
    table = torch.randn(13, 4)
    assert resample_table(table, 13) is table


@pytest.mark.parametrize(("rows", "wanted"), [(13, 25), (7, 9), (1, 9), (3, 5)])
def test_enlarging_keeps_centre_and_ends(rows, wanted):
    table = torch.randn(rows, 4, dtype=torch.float64)
    out = resample_table(table, wanted)
    assert out.shape == (wanted, 4)
    torch.testing.assert_close(out[wanted // 2], table[rows // 2])
    torch.testing.assert_close(out[[0, -1]], table[[0, -1]])


@pytest.mark.parametrize(("rows", "wanted"), [(55, 27), (63, 31), (13, 7), (9, 1)])
def test_shrinking_is_symmetric_and_uses_every_row(rows, wanted):
    table = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    out = resample_table(table, wanted)
    flipped = resample_table(table.flip(0), wanted).flip(0)
    torch.testing.assert_close(flipped, out, rtol=0, atol=1e-5)
    ones = resample_table(torch.ones_like(table), wanted)
    torch.testing.assert_close(ones, torch.ones_like(out), rtol=0, atol=1e-6)
    out.sum().backward()
    assert (table.grad > 0).all()


def test_resampling_equals_a_loop_over_offsets():
    table = torch.randn(7, 3, dtype=torch.float64)
    out = resample_table(table, 11)
    for i, offset in enumerate(range(-5, 6)):
        place = 3 + offset * 3 / 5
        low = min(int(place), 5)
        expected = table[low] * (low + 1 - place) + table[low + 1] * (place - low)
        torch.testing.assert_close(out[i], expected, rtol=0, atol=1e-6)


def test_tables_begin_with_the_paper_s_spread():
    torch.manual_seed(0)
    tables = RelativeTables(25, (500, 400))
    assert tables.height.shape == (999, 25)
    assert tables.width.shape == (799, 25)
    assert tables.height.std().item() == pytest.approx(0.2, rel=0.02)
    assert tables.height.mean().item() == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("channels", [3, 8, 10])
def test_sine_equals_the_formula(channels):
    code = sine_position(channels, (3, 5), trained_size=(3, 5))
    waves = channels // 4
    assert code.shape == (channels, 3, 5)
    for i in range(waves):
        rate = 10_000 ** (-i / waves)
        for y in range(3):
            for x in range(5):
                expected = [
                    torch.tensor(v).float() for v in (y * rate, y * rate, x * rate, x * rate)
                ]
                expected = [f(v) for f, v in zip((torch.sin, torch.cos) * 2, expected, strict=True)]
                got = code[[i, waves + i, 2 * waves + i, 3 * waves + i], y, x]
                torch.testing.assert_close(got, torch.stack(expected))
    assert not code[4 * waves :].any()


def test_sine_of_a_larger_map_is_stretched():
    small = sine_position(8, (4, 4), trained_size=(4, 4))
    large = sine_position(8, (12, 12), trained_size=(4, 4))
    torch.testing.assert_close(large[:, 1::3, 1::3], small)


def test_coordinates_are_symmetric_and_know_their_radius():
    x, y, r = coord_position((2, 4))
    torch.testing.assert_close(x[0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    torch.testing.assert_close(y[:, 0], torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(r, (x**2 + y**2).sqrt())
