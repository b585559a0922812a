import io
import resource
import struct
import time
import tracemalloc
import zlib

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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *extra):
    """A PNG of zeros in RGB whose header says so, with chunks of the caller's."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


ZEROS = zlib.compress(bytes(64 << 20), 9)  # 64 KiB that unpack to 64 MiB
HUGE = struct.pack("<HH", 65_535, 65_535)
BOMBS = {
    "png header": png(60_000, 60_000),
    "png of single pixels": png(1, 80_000_000),
    "png text": png(4, 4, chunk(b"zTXt", b"a\0\0" + ZEROS)),
    "png colour profile": png(4, 4, chunk(b"iCCP", b"a\0\0" + ZEROS)),
    "gif screen": b"GIF89a" + HUGE + b"\0\0\0," + bytes(4) + HUGE + b"\0\x02\x02\x44\x01\0;",
    "gif frame": b"GIF89a\4\0\4\0\0\0\0," + bytes(4) + HUGE + b"\0\x02\x02\x44\x01\0;",
    "bmp header": b"BM"
    + struct.pack("<IHHI", 54, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "ppm header": b"P6\n60000 60000\n255\n" + bytes(100),
}


def tiff(width, height, tile):
    """A TIFF, in one tile that unpacks to 64 MiB."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    tags |= {322: tile, 323: tile, 324: 8, 325: len(ZEROS)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = ZEROS + bytes(len(ZEROS) % 2)
    start = struct.pack("<I", 8 + len(data))
    return b"II*\0" + start + data + struct.pack("<H", len(tags)) + entries + bytes(4)


BOMBS["tiff header"] = tiff(60_000, 60_000, 64)
BOMBS["tiff tile"] = tiff(64, 64, 1 << 28)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_that_claims_to_be_enormous_is_refused_without_the_memory(bomb):
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage):
        decode(BOMBS[bomb])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert max(peak, 1024 * grown) < 48 << 20


@pytest.mark.parametrize("form", ["WEBP", "JPEG2000"])
def test_an_enormous_header_of_a_wavelet_or_web_image_is_refused(encode, form):
    data = encode(np.zeros((64, 64, 3), np.uint8), form, lossless=form == "WEBP")
    if form == "WEBP":
        place = data.index(b"VP8L") + 9
        size = int.from_bytes(data[place : place + 4], "little") & ~0xFFFFFFF
        size |= 16_382 | 16_382 << 14
        data = data[:place] + size.to_bytes(4, "little") + data[place + 4 :]
    else:
        assert struct.pack(">II", 64, 64) in data
        data = data.replace(struct.pack(">II", 64, 64), struct.pack(">II", 60_000, 60_000))
    with pytest.raises(BadImage):
        decode(data)


def test_a_side_longer_than_a_jpegs_can_be_is_refused(encode):
    assert decode(encode(Image.new("L", (65_535, 1)))).shape == (1, 65_535, 3)
    with pytest.raises(BadImage, match="65536 x 1 pixels are too many"):
        decode(encode(Image.new("L", (65_536, 1))))


@pytest.mark.parametrize("fast", [True, False])
def test_a_jpeg_of_endlessly_many_scans_is_refused(picture, encode, monkeypatch, fast):
    if not fast:
        monkeypatch.setattr(decoding, "simplejpeg", None)
    data = encode(picture(32, 32), "JPEG", progressive=True)
    assert 1 < data.count(b"\xff\xda") < 20 and decode(data).shape == (32, 32, 3)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match="more than 100 scans"):
        decode(data[:last] + data[last:-2] * 100 + data[-2:])


@pytest.mark.parametrize("fast", [True, False])
def test_what_follows_a_jpeg_is_not_taken_for_scans(picture, encode, monkeypatch, fast):
    if not fast:
        monkeypatch.setattr(decoding, "simplejpeg", None)
    thumbnail = b"\xff\xda" * 200
    for options in ({}, {"progressive": True}, {"exif": b"Exif\0\0" + thumbnail}):
        data = encode(picture(64, 64), "JPEG", **options)
        film = np.random.default_rng(0).bytes(10_000_000)
        assert film.count(b"\xff\xda") > 100
        begin = time.monotonic()
        np.testing.assert_array_equal(decode(data + film), decode(data))
        assert time.monotonic() - begin < 5


def test_pairs_of_bytes_are_counted_wherever_they_begin():
    rng = np.random.default_rng(0)
    for length in range(2, 200):
        data = rng.choice(np.frombuffer(b"\xff\xda\0", np.uint8), length).tobytes()
        assert decoding._count_pairs(data, b"\xff\xda") == data.count(b"\xff\xda")


def test_scans_and_segments_cannot_hide_from_being_counted(picture, encode):
    data = encode(picture(32, 32), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    hidden = b"\xff\x02\xff\xff"  # no segment: decoders look for the next marker behind it
    with pytest.raises(BadImage, match="more than 100 scans"):
        decode(data[:last] + hidden + data[last:-2] * 500 + data[-2:])
    comments = b"\xff\xfe\x00\x02" * 1_000_000
    begin = time.monotonic()
    with pytest.raises(BadImage, match="more than 100 scans"):
        decode(data[:2] + comments + data[2:] + b"\xff\xda" * 200)
    assert time.monotonic() - begin < 5


def test_the_decoder_says_what_it_is(monkeypatch):
    assert "simplejpeg" in decoding.describe_decoder()
    monkeypatch.setattr(decoding, "simplejpeg", None)
    assert decoding.describe_decoder().startswith("Pillow")
