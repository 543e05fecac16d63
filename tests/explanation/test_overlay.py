import numpy as np
import pytest
from PIL import Image

from convattn.explanation.overlay import overlay


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_no_opacity_shows_the_image_itself(image):
    heat = np.random.default_rng(1).random((40, 60), np.float32)
    assert overlay(image, heat, opacity=0).tobytes() == image.tobytes()


def test_the_hottest_place_has_the_hottest_colour(image):
    heat = np.zeros((40, 60), np.float32)
    heat[10, 20] = 5
    shown = np.asarray(overlay(image, heat, opacity=1)).astype(int)
    np.testing.assert_allclose(shown[10, 20], [252, 255, 164], atol=1)  # inferno's last
    assert shown[30, 50].sum() < shown[10, 20].sum()


def test_what_was_not_seen_is_dark(image):
    heat = np.ones((40, 60), np.float32)
    shown = np.asarray(overlay(image, heat, region=(20, -5, 50, 45))).astype(float)
    own = np.asarray(image).astype(float)
    for columns in (slice(0, 20), slice(50, 60)):
        np.testing.assert_allclose(shown[:, columns], 0.35 * own[:, columns], atol=0.51)
    assert not np.allclose(shown[:, 20:50], 0.35 * own[:, 20:50], atol=5)


def test_no_heat_at_all_is_no_error(image):
    assert overlay(image, np.zeros((40, 60), np.float32)).size == (60, 40)


@pytest.mark.parametrize("opacity", [-0.1, 1.5])
def test_an_opacity_out_of_range_is_told(image, opacity):
    with pytest.raises(ValueError, match=f"opacity={opacity}; expected 0"):
        overlay(image, np.zeros((40, 60), np.float32), opacity=opacity)
