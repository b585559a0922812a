import io

import numpy as np
import pytest
from PIL import Image

from xtra_jax.data import decode as decoding
from xtra_jax.data.decode import BadImage, decode

SHAPES = [(1, 1), (8, 8), (17, 33), (48, 64)]


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_are_pillows_to_the_last_bit(picture, encode, shape, subsampling, progressive):
    image = picture(*shape)
    data = encode(image, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode(data), pillow(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_in_every_colour_space_are_pillows(picture, encode, mode):
    image = Image.fromarray(picture(40, 30)).convert(mode)
    data = encode(image, "JPEG", keep_rgb=mode == "RGB")
    np.testing.assert_array_equal(decode(data), pillow(data))


def test_jpegs_need_no_simplejpeg(picture, encode, monkeypatch):
    data = encode(picture(40, 30), "JPEG")
    fast = decode(data)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    np.testing.assert_array_equal(decode(data), fast)


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF", "GIF"])
def test_lossless_formats_give_back_what_was_stored(encode, form):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(decode(encode(image, form)), image)


def test_webp_is_read(picture, encode):
    data = encode(picture(20, 30), "WEBP", lossless=True)
    np.testing.assert_array_equal(decode(data), picture(20, 30))


def test_greyscale_is_repeated_over_the_channels(encode):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(decode(encode(grey)), np.stack([grey] * 3, axis=-1))


def test_sixteen_bit_greyscale_keeps_its_high_byte(encode):
    levels = np.array([[0, 255, 256], [0x1234, 0x80FF, 0xFFFF]], np.uint16)
    expected = np.array([[0, 0, 1], [0x12, 0x80, 0xFF]], np.uint8)
    for form in ("PNG", "TIFF"):
        pixels = decode(encode(levels, form))
        np.testing.assert_array_equal(pixels, np.stack([expected] * 3, axis=-1))


def test_colours_under_transparency_are_used_as_they_are(encode):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[2:, :, 3] = 255
    np.testing.assert_array_equal(decode(encode(pixels)), pixels[..., :3])


def test_palettes_are_looked_up_with_and_without_transparency(encode):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    expected = [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    np.testing.assert_array_equal(decode(encode(image)), expected)
    np.testing.assert_array_equal(decode(encode(image, transparency=1)), expected)


def test_bilevel_images_become_black_and_white(encode):
    image = Image.fromarray(np.eye(4, dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(decode(encode(image))[..., 1], np.eye(4) * 255)


def test_exif_orientation_is_not_applied(picture, encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(8, 16)
    assert decode(encode(image, "JPEG", exif=exif)).shape == (8, 16, 3)
    assert decode(encode(image, "PNG", exif=exif)).shape == (8, 16, 3)


def test_the_first_frame_of_an_animation_counts(encode):
    frames = [Image.new("L", (5, 5), level) for level in (40, 200)]
    for form in ("GIF", "TIFF"):
        data = encode(frames[0], form, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(decode(data), np.full((5, 5, 3), 40))


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_image_are_a_bad_image(data):
    with pytest.raises(BadImage):
        decode(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_truncated_image_is_a_bad_image(picture, encode, form):
    data = encode(picture(64, 64), form)
    with pytest.raises(BadImage):
        decode(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_raise_anything_else(picture, encode):
    rng = np.random.default_rng(0)
    outcomes = set()
    for form in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        good = encode(picture(32, 32), form)
        for _ in range(40):
            data = bytearray(good)
            for place in rng.integers(len(data), size=8):
                data[place] = rng.integers(256)
            try:
                pixels = decode(bytes(data))
                assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
                outcomes.add("decoded")
            except BadImage:
                outcomes.add("refused")
    assert outcomes == {"decoded", "refused"}


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_too_many_pixels_are_a_bad_image(encode, monkeypatch, form):
    data = encode(np.zeros((10, 11, 3), np.uint8), form)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 110)
    assert decode(data).shape == (10, 11, 3)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 109)
    with pytest.raises(BadImage, match="11 x 10 pixels are too many"):
        decode(data)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(encode):
    bomb = encode(Image.new("1", (20_000, 20_000)))
    with pytest.raises(BadImage):
        decode(bomb)


@pytest.mark.parametrize("samples", [np.float32(0.5), np.int32(1 << 20)])
def test_samples_without_a_stated_range_are_a_bad_image(encode, samples):
    image = Image.fromarray(np.full((4, 4), samples))
    with pytest.raises(BadImage, match="no stated range"):
        decode(encode(image, "TIFF"))


def test_formats_that_run_other_programs_are_refused():
    with pytest.raises(BadImage):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
