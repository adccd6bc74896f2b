import concurrent.futures
import io
import subprocess
import sys
import threading
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data import files, folders, pictures

# --------------------------------------------------------------- batches


def make_source(n=10, shape=(4, 6, 3), lazy=False):
  """Random images; the label of each is its index."""
  images = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
  if lazy:
    return data.LazySource(
      name="lazy",
      image_shape=shape,
      read=lambda i: (images[i], i),
      length=n,
      max_bytes=0,
    )
  labels = np.arange(n, dtype=np.int32)
  return data.ArraySource(
    name="array", image_shape=shape, images=images, labels=labels
  )


def labels_of(batches, steps):
  return np.concatenate([batches[step]["label"] for step in range(steps)])


def assert_same(a, b):
  np.testing.assert_array_equal(a["image"], b["image"])
  np.testing.assert_array_equal(a["label"], b["label"])


def test_batch_is_a_function_of_seed_and_step():
  source = make_source()
  one = data.batches(source, batch_size=4, seed=3, flip=True)
  two = data.batches(source, batch_size=4, seed=3, flip=True)
  forward = [one[step] for step in range(12)]
  for step in reversed(range(12)):
    np.random.default_rng().random()
    assert_same(two[step], forward[step])
    assert_same(one[step], forward[step])
  other = data.batches(source, batch_size=4, seed=4, flip=True)
  assert (labels_of(one, 12) != labels_of(other, 12)).any()


def test_the_order_is_pinned():
  # A run of today must be resumable with the libraries of tomorrow.
  batches = data.batches(make_source(5), batch_size=5, seed=0)
  assert labels_of(batches, 3).tolist() == [
    0,
    3,
    1,
    2,
    4,
    3,
    4,
    2,
    1,
    0,
    4,
    3,
    2,
    0,
    1,
  ]


@pytest.mark.parametrize("lazy", [False, True])
def test_sources_in_memory_and_lazy_give_the_same_batches(lazy):
  kept = make_source()
  batches = data.batches(make_source(lazy=lazy), batch_size=7, seed=0)
  reference = data.batches(kept, batch_size=7, seed=0)
  for step in range(4):
    assert_same(batches[step], reference[step])


@pytest.mark.parametrize("start", [0, 1, 7, 10**12])
def test_iterate_starts_anywhere(start):
  batches = data.batches(make_source(), batch_size=4, seed=0, flip=True)
  iterator = data.iterate(batches, start=start)
  for step in range(start, start + 20):
    assert_same(next(iterator), batches[step])


@pytest.mark.parametrize("order", ["by class", "in turn"])
def test_a_subset_has_all_classes_in_their_shares(order):
  labels = np.arange(1000, dtype=np.int32) % 10
  labels = np.sort(labels) if order == "by class" else labels
  images = np.arange(1000, dtype=np.uint8).reshape(1000, 1, 1, 1)
  whole = data.sources.in_memory("x", images, labels, tuple("abcdefghij"))
  some = data.subset(whole, 200)
  rows = np.arange(200)
  np.testing.assert_array_equal(some.gather(rows)["label"], some.labels)
  # Hypergeometric: 20 of each class, of standard deviation 3.8.
  assert np.abs(np.bincount(some.labels, minlength=10) - 20).max() < 15
  assert some.fingerprint != whole.fingerprint
  np.testing.assert_array_equal(
    some.gather(rows)["image"], data.subset(whole, 200).gather(rows)["image"]
  )
  assert data.subset(whole, 1000) is whole


@pytest.mark.parametrize("n,batch_size", [(10, 4), (10, 5), (7, 3), (3, 8)])
def test_each_epoch_visits_each_example_once(n, batch_size):
  batches = data.batches(make_source(n), batch_size=batch_size, seed=0)
  epochs = 12
  labels = labels_of(batches, -(-epochs * n // batch_size))
  rows = labels[: epochs * n].reshape(epochs, n)
  np.testing.assert_array_equal(
    np.sort(rows, axis=1), np.broadcast_to(np.arange(n), rows.shape)
  )
  assert len({tuple(row) for row in rows}) > epochs // 3


def test_seeds_do_not_share_epochs():
  # As they would if epoch e of seed s were drawn from s + e.
  source = make_source(1000)
  zero = labels_of(data.batches(source, batch_size=1000, seed=0), 4)
  one = labels_of(data.batches(source, batch_size=1000, seed=1), 4)
  assert (zero[1000:] == one[:-1000]).mean() < 0.05


def test_permutations_are_uniform():
  # 6 orders of 3 examples; chi-square with 5 degrees of freedom has mean 5
  # and standard deviation sqrt(10).
  batches = data.batches(make_source(3), batch_size=3, seed=0)
  orders = [tuple(batches[step]["label"].tolist()) for step in range(3000)]
  counts = np.array([orders.count(order) for order in set(orders)])
  assert len(counts) == 6
  assert ((counts - 500) ** 2 / 500).sum() < 5 + 5 * np.sqrt(10)


@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_parts_of_processes_are_the_batch(process_count):
  source = make_source(50)
  kwargs = {"batch_size": 12, "seed": 1, "flip": True}
  whole = data.batches(source, **kwargs)
  parts = [
    data.batches(source, process_index=i, process_count=process_count, **kwargs)
    for i in range(process_count)
  ]
  for step in range(10):
    images = [part[step]["image"] for part in parts]
    assert all(len(image) == 12 // process_count for image in images)
    labels = [part[step]["label"] for part in parts]
    union = {"image": np.concatenate(images), "label": np.concatenate(labels)}
    assert_same(union, whole[step])
  first_epoch = [labels_of(part, 4) for part in parts]
  assert len(set(np.concatenate(first_epoch).tolist())) == 48


def test_values_are_bytes_over_127_5_minus_1():
  images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  source = data.ArraySource(
    name="ramp",
    image_shape=(16, 16, 1),
    images=images,
    labels=np.zeros(1, np.int32),
  )
  batch = data.batches(source, batch_size=1, seed=0)[0]
  assert batch["image"].dtype == np.float32
  assert batch["label"].dtype == np.int32
  expected = (np.arange(256) / 127.5 - 1).astype(np.float32)
  np.testing.assert_array_equal(batch["image"].ravel(), expected)
  assert batch["image"].min() == -1
  assert batch["image"].max() == 1


def test_flips_are_mirror_images_half_of_the_time():
  source = make_source(100, (2, 3, 1))
  originals = source.images / 127.5 - 1
  batches = data.batches(source, batch_size=250, seed=0, flip=True)
  mirrored = []
  for step in range(8):
    images, labels = batches[step]["image"], batches[step]["label"]
    same = np.isclose(images, originals[labels]).all((1, 2, 3))
    mirror = np.isclose(images, originals[labels][:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirror).all()
    mirrored.append(mirror)
  mirrored = np.concatenate(mirrored)
  stderr = 0.5 / np.sqrt(len(mirrored))
  assert abs(mirrored.mean() - 0.5) < 5 * stderr
  # A flip belongs to the visit, not to the example.
  epochs = mirrored.reshape(20, 100)
  assert abs((epochs[:-1] ^ epochs[1:]).mean() - 0.5) < 5 * stderr
  plain = data.batches(source, batch_size=250, seed=0)
  np.testing.assert_array_equal(plain[3]["label"], batches[3]["label"])
  # The source itself is left alone.
  np.testing.assert_array_equal(source.images / 127.5 - 1, originals)


def test_an_error_in_a_thread_is_the_original_one():
  def read(index):
    raise ValueError(f"cannot read {index}")

  source = data.LazySource(
    name="bad", image_shape=(1, 1, 1), read=read, length=3
  )
  iterator = data.iterate(data.batches(source, batch_size=2, seed=0))
  with pytest.raises(ValueError) as info:
    next(iterator)
  # Grain adds a note about its traceback, which str does not show.
  assert str(info.value) in ("cannot read 0", "cannot read 1", "cannot read 2")


def test_lazy_source_reads_once_if_it_may_keep():
  calls = []

  def read(index):
    calls.append(index)
    return np.full((2, 2, 1), index, np.uint8), index

  kwargs = {"name": "x", "image_shape": (2, 2, 1), "read": read, "length": 9}
  for max_bytes, expected in [(9 * 4, 9), (9 * 4 - 1, 27)]:
    calls.clear()
    source = data.LazySource(max_bytes=max_bytes, **kwargs)
    batches = data.batches(source, batch_size=9, seed=0)
    for step in range(3):
      batch = batches[step]
      np.testing.assert_allclose(
        batch["image"][:, 0, 0, 0], batch["label"] / 127.5 - 1, atol=1e-6
      )
    assert len(calls) == expected


def test_source_is_a_sequence():
  source = make_source(3)
  assert source[-1]["label"] == 2
  assert [example["label"] for example in source] == [0, 1, 2]
  assert source[np.int64(1)]["image"].shape == (4, 6, 3)
  with pytest.raises(IndexError, match="index 3 of a source with 3"):
    source[3]


@pytest.mark.parametrize(
  "kwargs,match",
  [
    ({"batch_size": 10, "process_count": 3}, "10.*multiple of the 3"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"process_index": 2, "process_count": 2}, "process_index is 2.*0 to 1"),
    ({"process_count": 0}, "process_count is 0"),
    ({"seed": -1}, "seed is -1"),
  ],
)
def test_bad_arguments_of_batches(kwargs, match):
  one_line(
    match,
    lambda: data.batches(
      make_source(), **{"batch_size": 4, "seed": 0, **kwargs}
    ),
  )


def test_bad_start():
  batches = data.batches(make_source(), batch_size=2, seed=0)
  one_line("start is -1", lambda: data.iterate(batches, start=-1))


def one_line(match, function):
  """Asserts that ``function`` raises a ValueError of one line."""
  with pytest.raises(ValueError, match=match) as info:
    function()
  assert "\n" not in str(info.value)
  assert len(str(info.value)) < 600


# -------------------------------------------------------------- pictures


def encode(array, fmt="PNG", mode=None, **kwargs):
  """The bytes of a picture file."""
  picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
  if mode:
    picture = picture.convert(mode)
  file = io.BytesIO()
  picture.save(file, fmt, **kwargs)
  return file.getvalue()


def write(folder, files):
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return folder


def write_zip(path, files):
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return path


def load_one(tmp_path, content, name="a.png", **kwargs):
  return data.load(write(tmp_path, {name: content}), **kwargs)[0]["image"]


RAMP = (np.arange(12, dtype=np.uint8) * 20).reshape(3, 4)
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


def palette(transparent):
  picture = Image.new("P", (2, 1))
  picture.putpalette([10, 20, 30, 40, 50, 60])
  picture.putdata([0, 1])
  return encode(picture, **({"transparency": 1} if transparent else {}))


def alpha_ramp():
  # Half-transparent black over white is the middle grey, 255 - alpha.
  rgba = np.zeros((1, 4, 4), np.uint8)
  rgba[0, :, 3] = [0, 100, 128, 255]
  return encode(rgba)


def grey_alpha():
  la = np.zeros((1, 2, 2), np.uint8)
  la[0] = [[7, 255], [7, 0]]
  bands = [Image.fromarray(la[..., i]) for i in range(2)]
  return encode(Image.merge("LA", bands))


@pytest.mark.parametrize(
  "content,expected",
  [
    (encode(RAMP), RAMP[..., None]),
    (encode(COLOUR), COLOUR),
    (encode(COLOUR, "BMP"), COLOUR),
    (encode(COLOUR, "TIFF"), COLOUR),
    (encode(COLOUR, "WEBP", lossless=True), COLOUR),
    (alpha_ramp(), np.repeat([[[255], [155], [127], [0]]], 3, axis=-1)),
    (grey_alpha(), np.array([[[7], [255]]])),
    (palette(False), np.array([[[10, 20, 30], [40, 50, 60]]])),
    (palette(True), np.array([[[10, 20, 30], [255, 255, 255]]])),
    (
      # 16 bits: 257 k stands for k; rounded, not cut off.
      encode(np.array([[0, 257, 385, 386, 65535]], np.uint16)),
      np.array([[[0], [1], [1], [2], [255]]]),
    ),
    (
      encode(Image.fromarray(RAMP > 100)),
      np.where(RAMP > 100, 255, 0)[..., None],
    ),
    (
      encode(RAMP, transparency=100),
      np.where(RAMP == 100, 255, RAMP)[..., None],
    ),
  ],
  ids=[
    "grey",
    "colour",
    "bmp",
    "tiff",
    "webp",
    "alpha",
    "grey-alpha",
    "palette",
    "palette-transparent",
    "16-bit",
    "1-bit",
    "grey-transparent",
  ],
)
def test_decoding(tmp_path, content, expected):
  name = "a.png"  # the extension need not be that of the contents
  np.testing.assert_array_equal(load_one(tmp_path, content, name), expected)


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_exif_orientation(tmp_path, fmt):
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned a quarter clockwise
  image = load_one(tmp_path, encode(RAMP, fmt, exif=exif))
  np.testing.assert_array_equal(image[..., 0], np.rot90(RAMP, -1))


def test_first_frame_of_a_gif(tmp_path):
  frames = [Image.new("L", (2, 2), grey) for grey in (50, 200)]
  content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
  image = load_one(tmp_path, content, "a.gif", channels=1)
  np.testing.assert_array_equal(image, np.full((2, 2, 1), 50))


def test_jpeg_is_close(tmp_path):
  smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
  image = load_one(tmp_path, encode(smooth, "JPEG", quality=95), "A.JPG")
  np.testing.assert_allclose(image.astype(int), smooth, atol=3)


def test_channels(tmp_path):
  grey = load_one(tmp_path, encode(RAMP), channels=3)
  np.testing.assert_array_equal(grey, np.repeat(RAMP[..., None], 3, axis=-1))
  assert load_one(tmp_path, encode(COLOUR), channels=1).shape == (3, 4, 1)
  # Grey among colour becomes colour.
  source = data.load(write(tmp_path, {"b.png": encode(RAMP)}))
  assert source.image_shape == (3, 4, 3)


def test_centre_crop_by_hand(tmp_path):
  # 8 x 12 in blocks of 2 x 2: one BOX halving gives the 4 x 6 block values,
  # the short side then is 4 as asked, and columns 1..4 are the centre.
  blocks = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
  picture = np.kron(blocks, np.ones((2, 2), np.uint8))
  image = load_one(tmp_path, encode(picture), size=4)
  np.testing.assert_array_equal(image[..., 0], blocks[:, 1:5])
  # Halving averages: a board of 0 and 200 becomes 100.
  board = np.indices((8, 8)).sum(0) % 2 * np.uint8(200)
  image = load_one(tmp_path, encode(board.astype(np.uint8)), size=4)
  np.testing.assert_array_equal(image[..., 0], np.full((4, 4), 100))


def test_size_that_is_not_square(tmp_path):
  # The height is already right, so only columns are cut off.
  image = load_one(tmp_path, encode(RAMP), size=(3, 2))
  np.testing.assert_array_equal(image[..., 0], RAMP[:, 1:3])
  image = load_one(tmp_path, encode(RAMP), size=(2, 4))
  np.testing.assert_array_equal(image[..., 0], RAMP[0:2])


def test_size_larger_than_the_picture(tmp_path):
  flat = np.full((3, 5, 3), 90, np.uint8)
  image = load_one(tmp_path, encode(flat), size=16)
  np.testing.assert_array_equal(image, np.full((16, 16, 3), 90))


# --------------------------------------------------------- folders and zips


CLASSES = {
  "dog/b.png": encode(COLOUR + 1),
  "dog/a.png": encode(COLOUR),
  "cat/deep/er/c.png": encode(COLOUR + 2),
  "__MACOSX/cat/c.png": b"resource fork",
  "cat/._c.png": b"resource fork",
  "cat/notes.txt": b"no picture",
}


def assert_classes(source):
  assert source.class_names == ("cat", "dog")
  assert source.num_classes == 2
  assert source.image_shape == (3, 4, 3)
  assert [example["label"] for example in source] == [0, 1, 1]
  assert source[0]["label"].dtype == np.int32
  images = np.stack([example["image"] for example in source])
  expected = np.stack([COLOUR + 2, COLOUR, COLOUR + 1])
  np.testing.assert_array_equal(images, expected)
  assert images.dtype == np.uint8


def test_folder_and_zip_are_the_same(tmp_path):
  folder = data.load(write(tmp_path / "pets", CLASSES))
  archive = data.load(write_zip(tmp_path / "pets.ZIP", CLASSES))
  assert_classes(folder)
  assert_classes(archive)
  assert folder.fingerprint == archive.fingerprint
  assert len(folder.fingerprint) == 16
  less = {name: CLASSES[name] for name in ("dog/a.png", "dog/b.png")}
  other = data.load(write(tmp_path / "dogs", less))
  assert other.class_names == ("dog",)
  assert other.fingerprint != folder.fingerprint


def test_a_zip_may_be_read_in_threads(tmp_path):
  # As zip programs write it: a time of each member in an extra field, which
  # Python 3.12 and 3.13 may skip from where another thread reads.
  rng = np.random.default_rng(0)
  contents = [rng.bytes(800) for _ in range(4000)]
  path = tmp_path / "many.zip"
  with zipfile.ZipFile(path, "w") as archive:
    for k, content in enumerate(contents):
      member = zipfile.ZipInfo(f"{k:04}.png")
      member.extra = b"UT\x05\x00\x01\x00\x00\x00\x00"
      archive.writestr(member, content)
  found, _ = files.find(path)
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    assert list(pool.map(lambda file: file.open().read(), found)) == contents


def test_zip_of_the_folder_itself(tmp_path):
  wrapped = {f"pets/{name}": content for name, content in CLASSES.items()}
  assert_classes(data.load(write_zip(tmp_path / "pets.zip", wrapped)))


@pytest.mark.parametrize("kwargs", [{}, {"size": (3, 4), "channels": 3}])
def test_folder_too_large_for_memory_is_read_lazily(tmp_path, kwargs):
  for path in (
    write(tmp_path / "pets", CLASSES),
    write_zip(tmp_path / "pets.zip", CLASSES),
  ):
    source = data.load(path, max_bytes=3 * 36 - 1, **kwargs)
    assert isinstance(source, data.LazySource)
    assert_classes(source)
    iterator = data.iterate(data.batches(source, batch_size=6, seed=0))
    for _ in range(10):
      assert sorted(next(iterator)["label"]) == [0, 0, 1, 1, 1, 1]
  assert isinstance(data.load(path, max_bytes=3 * 36), data.ArraySource)


def test_unlabelled_folder(tmp_path):
  source = data.load(write(tmp_path, {"a.png": encode(RAMP)}))
  assert source.num_classes == 0
  assert source.class_names == ()
  assert source[0]["label"] == 0
  assert source.name == tmp_path.name


def test_what_a_run_in_the_folder_has_drawn_is_no_data(tmp_path):
  path = write(tmp_path, dict(CLASSES))
  before = data.load(path)
  run = path / "runs" / "first"
  (run / "samples").mkdir(parents=True)
  for name in ("config.json", "data.json", "versions.json"):
    (run / name).write_text("{}")
  picture = next(p for p in path.rglob("*") if p.is_file() and p.suffix)
  (run / "samples" / f"a{picture.suffix}").write_bytes(picture.read_bytes())
  with pytest.warns(UserWarning, match="are left out: runs/first$"):
    after = data.load(path)
  assert after.fingerprint == before.fingerprint
  # Named itself, the folder of samples is one like any other.
  assert len(data.load(run / "samples")) == 1


NOISE = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
TRUNCATED = encode(np.kron(NOISE, np.ones((9, 9, 1), np.uint8)))[:90]


@pytest.mark.parametrize("max_bytes", [2**31, 0])
@pytest.mark.parametrize("kwargs", [{}, {"size": 3, "channels": 3}])
@pytest.mark.parametrize(
  "bad", [b"", b"no picture", TRUNCATED], ids=["empty", "text", "truncated"]
)
def test_broken_pictures_are_left_out_on_demand(
  tmp_path, bad, kwargs, max_bytes
):
  path = write(tmp_path, {**CLASSES, "dog/bad.png": bad})
  with pytest.warns(UserWarning, match="left out 1 of 4.*: dog/bad.png$"):
    source = data.load(path, skip_broken=True, max_bytes=max_bytes, **kwargs)
  assert len(source) == 3
  assert [example["label"] for example in source] == [0, 1, 1]
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    if max_bytes or not kwargs:
      one_line("dog/bad.png", lambda: data.load(path, **kwargs)[2])
    else:
      source = data.load(path, max_bytes=0, **kwargs)
      batches = data.batches(source, batch_size=4, seed=0)
      one_line("dog/bad.png", lambda: next(data.iterate(batches)))


def test_after_an_error_no_other_picture_is_read(tmp_path, monkeypatch):
  path = write(tmp_path, {f"{k:02}.png": encode(COLOUR) for k in range(16)})
  begun, ending, seen = threading.Event(), threading.Event(), []

  class Pool(concurrent.futures.ThreadPoolExecutor):
    def shutdown(self, *args, **options):
      ending.set()
      super().shutdown(*args, **options)

  def read(index, _):
    seen.append(index)
    if index == 0:
      begun.wait(10)
      raise OSError("damaged")
    begun.set()  # the first of another thread's pictures
    ending.wait(10)

  monkeypatch.setattr(folders.os, "cpu_count", lambda: 2)
  monkeypatch.setattr(folders.concurrent.futures, "ThreadPoolExecutor", Pool)
  listed = files.find(path, skip_broken=False)[0]
  with pytest.raises(ValueError, match="00.png: damaged"):
    folders._each(read, listed, skip_broken=False)
  assert not any(index % 2 for index in seen)  # threads get two at a time


def linked(folder, name, target):
  (folder / name).symlink_to(target)
  return folder


def with_flag(path, offset, value):
  """Sets a number in both headers of a .zip's only file."""
  content = bytearray(path.read_bytes())
  content[content.index(b"PK\x01\x02") + offset] = value
  content[content.index(b"PK\x03\x04") + offset - 2] = value
  path.write_bytes(content)
  return path


def damaged_zip(tmp_path):
  path = write_zip(tmp_path / "x.zip", {"a.png": encode(COLOUR)})
  content = bytearray(path.read_bytes())
  content[60] ^= 255  # inside the picture, so that its checksum is wrong
  path.write_bytes(content)
  return path


BAD_PICTURES = {
  "empty folder": (lambda p: p, {}, "no pictures in"),
  "no picture": (
    lambda p: write(p, {"a.png": b"text"}),
    {},
    "a.png: not a picture.*repair or remove it$",
  ),
  "truncated": (lambda p: write(p, {"a.png": TRUNCATED}), {}, "a.png"),
  "all broken": (
    lambda p: write(p, {"a.png": b"text"}),
    {"skip_broken": True},
    "none of the 1 pictures",
  ),
  "32 bits": (
    lambda p: write(p, {"a.tif": encode(RAMP.astype(np.float32), "TIFF")}),
    {},
    "a.tif: its pixels are 32-bit",
  ),
  "sizes": (
    lambda p: write(p, {"a.png": encode(RAMP), "b.png": encode(RAMP.T)}),
    {},
    "a.png is 3 x 4, b.png is 4 x 3.*make them one size$",
  ),
  "top and classes": (
    lambda p: write(p, {"a.png": encode(RAMP), "c/b.png": encode(RAMP)}),
    {},
    r"top \(a.png\).*\(c\)",
  ),
  "text as zip": (
    lambda p: write(p, {"x.zip": b"text"}) / "x.zip",
    {},
    "x.zip: File is not a zip",
  ),
  "empty zip": (
    lambda p: write_zip(p / "x.zip", {}),
    {},
    "no pictures in .*x.zip: it is empty$",
  ),
  "nested zip": (
    lambda p: write_zip(p / "x.zip", {"a/pets.zip": b"", "b.txt": b""}),
    {},
    r"it holds .txt \(1\), .zip \(1\); unpack the archive that",
  ),
  "array in a folder": (
    lambda p: write(p, {"x.npz": b"", "LICENSE": b""}),
    {},
    r"it holds .npz \(1\), no suffix \(1\); arrays are read of a .npz",
  ),
  "password": (
    lambda p: with_flag(write_zip(p / "x.zip", {"a.png": encode(RAMP)}), 8, 1),
    {},
    "x.zip needs a password.*: unpack it and name the folder$",
  ),
  "deflate64": (
    lambda p: with_flag(write_zip(p / "x.zip", {"a.png": encode(RAMP)}), 10, 9),
    {},
    "x.zip is packed in a way of its own.*: unpack it",
  ),
  "splits": (
    lambda p: write(
      p, {"set/train/cat/a.png": encode(RAMP), "set/Val/b.png": encode(RAMP)}
    ),
    {},
    "the folders Val, train, which are parts.*: name one of .*/set/train$",
  ),
  "splits in a zip": (
    lambda p: write_zip(
      p / "x.zip", {"test/a.png": encode(RAMP), "train/b.png": encode(RAMP)}
    ),
    {},
    "parts of a data set.*: unpack it and name one of them, such as train$",
  ),
  "dangling link": (
    lambda p: linked(write(p, CLASSES), "dog/c.png", "nowhere"),
    {},
    r"cannot be read: dog/c.png \(No such file or directory\); repair or rem",
  ),
  "link to a folder that is away": (
    lambda p: linked(write(p, CLASSES), "fox", "/nowhere/foxes"),
    {"size": 3, "channels": 3, "max_bytes": 0},
    r"cannot be read: fox \(No such file or directory\)",
  ),
  "link to itself": (
    lambda p: linked(write(p, CLASSES), "self.png", "self.png"),
    {},
    r"cannot be read: self.png \(Too many levels of symbolic links\)",
  ),
  "damaged zip": (damaged_zip, {}, "cannot read picture a.png"),
  "no zip": (lambda p: p / "x.zip", {}, "no file .*x.zip"),
  "other file": (
    lambda p: write(p, {"a.png": encode(RAMP)}) / "a.png",
    {},
    "a.png is a file of a kind",
  ),
  "size": (lambda p: p, {"size": 0}, "size is 0"),
  "size of a part": (
    lambda p: p,
    {"size": 32.5},
    "size is 32.5: must be a pos",
  ),
  "sizes of parts": (lambda p: p, {"size": (8, 0.5)}, r"size is \(8, 0.5\)"),
  "size of many gigabytes": (
    lambda p: p,
    {"size": 100_000},
    "size is 100000 x 100000, more than the .*: name a smaller one",
  ),
  "class in Latin-1": (
    lambda p: write(p, {"caf\udce9/a.png": encode(RAMP)}),
    {},
    r"has the folder b'caf\\xe9', whose name is not UTF-8: rename it",
  ),
  "class of two lines": (
    lambda p: write(p, {"ca\nt/a.png": encode(RAMP)}),
    {},
    r"has the folder 'ca\\nt', whose name has a control character: rename it",
  ),
  "data of two lines": (
    lambda p: write(p / "a\nb", {"a.png": encode(RAMP)}),
    {},
    r"/a\\nb' has a control character: rename it",
  ),
  "picture of two lines": (
    lambda p: write(p, {"a\n\x1b[1mb.png": b"no picture"}),
    {},
    r"cannot read picture a\\n\\x1b\[1mb.png: not a picture",
  ),
  "true size": (lambda p: p, {"size": True}, "size is True"),
  "no name": (lambda p: "", {}, "name of the data is empty"),
  "sizes of three": (lambda p: p, {"size": (1, 2, 3)}, r"size is \(1, 2, 3\)"),
  "channels": (lambda p: p, {"channels": 2}, "channels is 2"),
  "split": (lambda p: p, {"split": "test"}, "split is 'test'"),
}


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_bad_pictures(tmp_path, case):
  make, kwargs, match = BAD_PICTURES[case]
  path = make(tmp_path)
  one_line(match, lambda: data.load(path, **kwargs))


@pytest.mark.parametrize(
  ("name", "option"), [("no picture", "skip_broken"), ("sizes", "size")]
)
def test_an_error_names_the_option_apart(tmp_path, name, option):
  make, kwargs, _ = BAD_PICTURES[name]
  with pytest.raises(data.Unfit) as info:
    data.load(make(tmp_path), **kwargs)
  assert info.value.option == option
  assert f"{option}=" not in str(info.value)


def test_links_in_a_circle_are_walked_once(tmp_path):
  folder = linked(write(tmp_path / "pets", CLASSES), "cat/up", "..")
  linked(folder, "dog/too", "../cat")
  linked(folder, "dog/notes.txt", "nowhere")
  source = data.load(folder)
  assert_classes(source)
  assert source.left_out == (
    ".txt (1), dead links (1), hidden (2), links to the same folder (2)"
  )


def test_links_lead_to_other_folders(tmp_path):
  write(tmp_path / "elsewhere", {"a.png": encode(COLOUR)})
  folder = linked(
    write(tmp_path / "pets", {"cat/a.png": encode(COLOUR + 1)}),
    "dog",
    tmp_path / "elsewhere",
  )
  assert data.load(folder).class_names == ("cat", "dog")


def test_what_cannot_be_listed_is_left_out_on_demand(tmp_path, monkeypatch):
  folder = linked(write(tmp_path, CLASSES), "fox", "/nowhere/foxes")
  list_folder = files.os.scandir

  def scandir(path):
    if path.name == "deep":  # the tests may run as root, who may all
      raise PermissionError(13, "Permission denied")
    return list_folder(path)

  monkeypatch.setattr(files.os, "scandir", scandir)
  match = r"cat/deep \(Permission denied\), fox \(No such|fox .*, cat/deep"
  one_line(match, lambda: data.load(folder))
  with pytest.warns(UserWarning, match=f"left out {match}"):
    assert data.load(folder, skip_broken=True).class_names == ("dog",)


def test_backslashes_of_windows_are_folders(tmp_path):
  windows = {name.replace("/", "\\"): c for name, c in CLASSES.items()}
  path = write_zip(tmp_path / "pets.zip", {"pets\\": b""})
  with zipfile.ZipFile(path, "a") as archive:
    for name, content in windows.items():
      archive.writestr(f"pets\\{name}", content)
  assert_classes(data.load(path))


def test_the_last_of_two_files_of_one_name_counts(tmp_path):
  path = write_zip(tmp_path / "x.zip", {"a.png": encode(COLOUR)})
  with (
    pytest.warns(UserWarning, match="Duplicate name"),
    zipfile.ZipFile(path, "a") as archive,
  ):
    archive.writestr("a.png", encode(COLOUR + 1))
  (only,) = data.load(path)
  np.testing.assert_array_equal(only["image"], COLOUR + 1)


@pytest.mark.parametrize(
  ("suffix", "kind"),
  [
    (".jfif", "JPEG"), (".ppm", "PPM"), (".pgm", "PPM"), (".jp2", "JPEG2000"),
    (".tga", "TGA"), (".avif", "AVIF"), (".pcx", "PCX"), (".dib", "DIB"),
  ],
)  # fmt: skip
def test_what_pillow_reads_is_read(tmp_path, suffix, kind):
  smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
  image = load_one(tmp_path, encode(smooth, kind), f"A{suffix.upper()}")
  np.testing.assert_allclose(image.astype(int), smooth, atol=3)


def test_what_pillow_does_not_decode_is_no_picture():
  known = pictures.extensions()
  assert not {".pdf", ".eps", ".mpg", ".h5", ".wmf", ".txt", ""} & known
  assert {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif"} <= known


def test_grey_of_16_bits_in_a_pgm(tmp_path):
  # 12 bits say so in this kind of file, and are scaled.
  content = b"P5 2 1 4095\n" + np.array([0, 4095], ">u2").tobytes()
  image = load_one(tmp_path, content, "a.pgm")
  np.testing.assert_array_equal(image[..., 0], [[0, 255]])


@pytest.mark.parametrize("max_bytes", [2**31, 0])
@pytest.mark.parametrize("peak", [4095, 255, 0])
def test_data_that_are_nearly_black_are_warned_of(tmp_path, peak, max_bytes):
  wide = np.array([[0, peak // 2, peak]], np.uint16)
  write(tmp_path, {f"{i}.png": encode(wide) for i in range(40)})
  with pytest.warns(
    UserWarning, match="no value exceeds .* 12-bit data in 16-bit"
  ):
    data.load(tmp_path, max_bytes=max_bytes)
  # One picture that uses the range is enough where all are looked at.
  write(tmp_path, {"7.png": encode(wide * 0 + 65535)})
  data.load(tmp_path)


@pytest.mark.parametrize(
  ("array", "given"),
  [
    (np.uint16([0, 4095]), None),
    (np.float32([0, 1]), (0, 255)),
    (np.float64([-1, -0.9]), np.array([-1, 1])),
  ],
)
def test_arrays_that_are_nearly_black_are_warned_of(array, given, tmp_path):
  np.save(tmp_path / "a.npy", np.tile(array, (3, 2, 1)))
  with pytest.warns(UserWarning, match="no value exceeds"):
    data.load(tmp_path / "a.npy", range=given)


def test_a_summary_says_what_was_found(tmp_path):
  folder = write(tmp_path / "pets", {**CLASSES, "README": b"", "b.txt": b""})
  for max_bytes in (2**31, 0):
    source = data.load(folder, max_bytes=max_bytes)
    assert data.summary(source) == (
      "pets: 3 images of 3 x 4 x 3; 2 classes: cat (1), dog (2); left out:"
      " .txt (2), hidden (2), no suffix (1)"
    )
  _, dogs = data.hold_out(source, 2)
  assert data.summary(dogs).endswith("2 classes: cat (0), dog (1)")
  many = {f"{i:03}/a.png": encode(COLOUR) for i in range(12)}
  source = data.load(write(tmp_path / "many", many))
  assert data.summary(source).endswith("008 (1), 009 (1) and 2 more")


# ----------------------------------------------------------------- arrays


def test_digits():
  source = data.load("digits")
  assert len(source) == 1797
  assert source.image_shape == (8, 8, 1)
  assert source.num_classes == 10
  assert source.class_names == tuple("0123456789")
  assert source.name == "digits"
  images = np.stack([example["image"] for example in source])
  assert images.dtype == np.uint8
  assert set(np.unique(images)) == {round(v * 255 / 16) for v in range(17)}
  labels = np.array([example["label"] for example in source])
  assert np.bincount(labels).tolist() == [
    178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
  ]  # fmt: skip
  assert data.load("digits").fingerprint == source.fingerprint
  resized = data.load("digits", size=16, channels=3)
  assert resized.image_shape == (16, 16, 3)
  assert resized.fingerprint != source.fingerprint


IMAGES = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


@pytest.mark.parametrize(
  "keys", [("images", "labels"), ("x", "y"), ("arr_0", "arr_1")]
)
def test_npz(tmp_path, keys):
  path = tmp_path / "x.npz"
  np.savez(path, **dict(zip(keys, (IMAGES, np.array([0, 2])), strict=True)))
  source = data.load(path)
  np.testing.assert_array_equal(source[1]["image"], IMAGES[1])
  assert source[1]["label"] == 2
  assert source.class_names == ("0", "1", "2")
  assert source.image_shape == (3, 4, 3)


def test_npy(tmp_path):
  path = tmp_path / "x.npy"
  np.save(path, IMAGES[..., 0])
  source = data.load(str(path))
  assert source.image_shape == (3, 4, 1)
  assert source.num_classes == 0
  assert type(source[0]["image"]) is np.ndarray
  np.testing.assert_array_equal(source[1]["image"][..., 0], IMAGES[1, ..., 0])
  assert data.load(path, size=2).image_shape == (2, 2, 1)
  np.save(path, np.tile(IMAGES, (1, 2, 2, 2)))
  assert data.load(path).image_shape == (6, 8, 6)
  assert data.load(path, size=(3, 2))[0]["image"].shape == (3, 2, 6)
  one_line("channels is 3.* have 6", lambda: data.load(path, channels=3))


CHANNELS_FIRST = np.zeros((2, 3, 32, 32), np.uint8)


def test_labels_that_count_from_one(tmp_path):
  np.savez(tmp_path / "x.npz", images=IMAGES, labels=np.array([4, 1]))
  with pytest.warns(UserWarning, match="from 1 to 4, none of class 0: if its"):
    source = data.load(tmp_path / "x.npz")
  assert data.summary(source).endswith(
    "5 classes: 0 (0), 1 (1), 2 (0), 3 (0), 4 (1)"
  )


def test_arrays_that_are_not_read_are_left_out(tmp_path):
  np.savez(tmp_path / "x.npz", images=IMAGES, label=np.array([0, 1]))
  assert data.summary(data.load(tmp_path / "x.npz")) == (
    "x.npz: 2 images of 3 x 4 x 3; left out: label"
  )


def test_a_folder_named_digits(tmp_path, monkeypatch):
  write(tmp_path / "digits", {"a.png": encode(COLOUR)})
  monkeypatch.chdir(tmp_path)
  with pytest.warns(UserWarning, match="folder of that name is './digits'"):
    assert len(data.load("digits")) == 1797
  assert len(data.load("./digits")) == 1


LABELS = np.zeros(2, int)
BAD_ARRAYS = {
  "floats": ({"images": IMAGES / 127.5 - 1}, "float64.*name it as range="),
  "two axes": ({"images": IMAGES[0, 0]}, r"\[4, 3\]"),
  "none": ({"images": IMAGES[:0]}, r"holds no images: .* \[0, 3, 4, 3\]$"),
  "channels first": (
    {"images": CHANNELS_FIRST},
    r"\[2, 3, 32, 32\].*images.transpose\(0, 2, 3, 1\)",
  ),
  "grey first": (
    {"images": CHANNELS_FIRST[:, :1, :16]},
    r"\[2, 1, 16, 32\].*transpose\(0, 2, 3, 1\)",
  ),
  "six channels first": (
    {"images": np.tile(CHANNELS_FIRST, (1, 2, 1, 1))},
    r"\[2, 6, 32, 32\].*transpose\(0, 2, 3, 1\)",
  ),
  "small channels first": (
    {"images": CHANNELS_FIRST[:, :, :4, :4]},
    r"\[2, 3, 4, 4\].*transpose\(0, 2, 3, 1\)",
  ),
  "images last": (
    {"images": CHANNELS_FIRST.transpose(2, 3, 1, 0).repeat(9, axis=-1)},
    r"\[32, 32, 3, 18\].*transpose\(3, 0, 1, 2\)",
  ),
  "one picture": (
    {"images": CHANNELS_FIRST[0].transpose(1, 2, 0)},
    r"\[32, 32, 3\].*one \[H, W, C\].*images\[None\]",
  ),
  "no images": ({"pictures": IMAGES}, "pictures.*name the images"),
  "objects": ({"images": np.array([{}, {}])}, "Python objects"),
  "few labels": ({"images": IMAGES, "labels": LABELS[:1]}, r"integers \[2\]"),
  "float labels": ({"images": IMAGES, "labels": LABELS * 1.0}, "float64"),
  "negative": ({"images": IMAGES, "labels": LABELS - 1}, "from -1 to -1"),
  "huge": ({"images": IMAGES, "labels": LABELS + 10**9}, "from 1000000000"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path, case):
  arrays, match = BAD_ARRAYS[case]
  path = tmp_path / "x.npz"
  np.savez(path, **arrays)
  one_line(f"x.npz .*{match}|x.npz: .*{match}", lambda: data.load(path))


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_bad_array_files(tmp_path, name):
  path = tmp_path / name
  one_line(f"no file .*{name}", lambda: data.load(path))
  path.write_bytes(b"text")
  one_line(f"cannot read .*{name}", lambda: data.load(path))
  other = {".npz": ".npy", ".npy": ".npz"}[path.suffix]
  save = np.savez if other == ".npz" else np.save
  save(path.with_suffix(other), IMAGES)
  path.with_suffix(other).rename(path)
  one_line(f"cannot read .*{name}", lambda: data.load(path))


def test_pickles_are_not_run(tmp_path):
  class Bomb:
    def __reduce__(self):
      return sys.exit, ("a pickle was run",)

  path = tmp_path / "x.npy"
  np.save(path, np.array([Bomb()]), allow_pickle=True)
  one_line("never loaded", lambda: data.load(path))


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
  "name,near",
  [
    ("digit", "'digits'"),
    ("cifar_10", "'cifar10'"),
    ("tfds:cifr10", "'cifar10'"),
    ("no/such/folder", ""),
    ("what is this?", ""),
  ],
)
def test_unknown_name(name, near):
  shown = name.removeprefix("tfds:").replace("?", r"\?")
  one_line(f"'{shown}'.*{near}.*folder or .zip.*TFDS", lambda: data.load(name))


def test_import_is_light():
  code = (
    "import sys, diffusion_jax.data as data; data.load;"
    "heavy = {'tensorflow', 'tensorflow_datasets', 'sklearn'};"
    "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
