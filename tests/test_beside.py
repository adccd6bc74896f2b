"""Masks and text embeddings of each example, beside the pictures."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (4, 8, 12, 3), np.uint8)


def folder(path, arrays, suffix="png", names="abcd"):
  path.mkdir()
  for name, array in zip(names, arrays, strict=True):
    Image.fromarray(array).save(path / f"{name}.{suffix}")
  return path


def masks(tmp_path, **kwargs):
  # The first channel of its picture, which is how a test tells whose it is.
  return folder(tmp_path / "masks", PICTURES[..., 0], **kwargs)


def attached(tmp_path, named, **options):
  source = data.load(folder(tmp_path / "pets", PICTURES), **options)
  crop = options.get("random_crop", False)
  return data.beside.attach_named(source, named, random_crop=crop)


def refused(match, function):
  with pytest.raises(ValueError, match=match) as error:
    function()
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["folder", "npy"])
@pytest.mark.parametrize("random_crop", [False, True])
def test_a_mask_is_cut_and_mirrored_as_its_picture(tmp_path, kind, random_crop):
  path = masks(tmp_path)
  if kind == "npy":
    path = tmp_path / "masks.npy"
    np.save(path, PICTURES[..., 0])
  source = attached(
    tmp_path, {"mask": path}, size=(5, 6), random_crop=random_crop
  )
  batches = data.batches(source, batch_size=3, seed=1, flip=True)
  for step in range(6):
    batch = batches[step]
    assert batch["mask"].shape == (3, 5, 6, 1)
    # Channels are resized one by one, so that the mask is the first.
    np.testing.assert_allclose(
      batch["mask"], batch["image"][..., :1], atol=1.01 / 127.5
    )
  known = source.known(np.array([2, 0]))
  assert known["mask"].dtype == np.float32
  _, held = data.hold_out(source, 2)
  one = held.known(np.array([0]))["mask"]
  np.testing.assert_array_equal(one, source.known(np.array([1]))["mask"])


def test_masks_are_found_by_their_names(tmp_path):
  order = PICTURES[::-1, ..., 0]
  path = folder(tmp_path / "masks", [*order, order[0]], "bmp", "dcbae")
  source = attached(tmp_path, {"mask": path})
  image = source.gather(np.arange(4))["image"]
  np.testing.assert_array_equal(
    source.known(np.arange(4))["mask"], source.values.floats(image[..., :1])
  )
  assert "with mask" in data.summary(source)
  other = folder(tmp_path / "other", PICTURES[..., 1])
  plain = data.load(tmp_path / "pets")
  prints = {
    data.beside.attach_named(plain, {"mask": one}).fingerprint
    for one in (path, other)
  }
  assert len(prints | {plain.fingerprint}) == 3


def test_a_text_embedding_is_the_mean_of_its_tokens(tmp_path):
  tokens = RNG.normal(size=(4, 5, 3)).astype(np.float32)
  np.save(tmp_path / "text.npy", tokens)
  np.save(tmp_path / "pooled.npy", tokens[:, 0])
  source = attached(
    tmp_path,
    {"text": tmp_path / "text.npy", "first": tmp_path / "pooled.npy"},
  )
  np.testing.assert_allclose(
    source.vectors["text"], tokens.mean(axis=1), atol=1e-6
  )
  np.testing.assert_array_equal(source.vectors["first"], tokens[:, 0])


def test_what_does_not_fit_is_refused(tmp_path):
  few = folder(tmp_path / "few", PICTURES[:3, ..., 0], names="abx")
  source = data.load(folder(tmp_path / "pets", PICTURES))

  def attach(**named):
    return data.beside.attach_named(source, named)

  refused(
    "mask has no picture for 2 of 4 .* such as c", lambda: attach(mask=few)
  )
  np.save(tmp_path / "few.npy", PICTURES[:3])
  refused(
    "mask has 3 pictures, pets 4 examples",
    lambda: attach(mask=tmp_path / "few.npy"),
  )
  refused("cannot be named 'label'", lambda: attach(label=tmp_path / "pets"))
  tokens = np.zeros((4, 2, 3), np.float32)
  tokens[1, 1, 0] = np.nan
  np.save(tmp_path / "text.npy", tokens)
  refused(
    "text of example 1 is no finite number",
    lambda: attach(text=tmp_path / "text.npy"),
  )
  np.save(tmp_path / "text.npy", np.zeros((3, 2, 3), np.float32))
  refused(
    "has 3 rows, pets 4 examples",
    lambda: attach(text=tmp_path / "text.npy"),
  )
  (tmp_path / "bad.npy").write_bytes(b"text")
  refused("cannot read .*bad.npy", lambda: attach(mask=tmp_path / "bad.npy"))
  small = data.load(tmp_path / "pets", size=4)
  refused(
    "mask has pictures of 4 x 4, pets of 8 x 12",
    lambda: data.beside.attach(source, {"mask": small}),
  )
  crops = data.load(tmp_path / "pets", size=(8, 12), random_crop=True)
  refused(
    "cut anew each time", lambda: data.beside.attach(source, {"mask": crops})
  )


def test_names_that_are_not_one_for_one_are_refused(tmp_path):
  source = data.load(folder(tmp_path / "pets", PICTURES))
  path = masks(tmp_path)
  Image.fromarray(PICTURES[0, ..., 1]).save(path / "a.bmp")
  found = data.load(path)
  for attach in ((source, {"m": found}), (found, {"m": source})):
    refused("has 2 pictures named a", lambda a=attach: data.beside.attach(*a))


def test_what_is_attached_later_joins_what_is_there(tmp_path):
  source = data.load(folder(tmp_path / "pets", PICTURES))
  mask = data.load(masks(tmp_path))
  numbers = np.arange(4.0, dtype=np.float32)[:, None]
  for one in ({"a": numbers}, {"b": -numbers}):
    source = data.vectors.attach(source, one)
  for name in ("mask", "other"):
    source = data.beside.attach(source, {name: mask})
  assert {*source.known(np.array([2]))} == {"a", "b", "mask", "other"}
  refused(
    "named 'mask'", lambda: data.vectors.attach(source, {"mask": numbers})
  )
  refused("named 'a'", lambda: data.vectors.attach(source, {"a": numbers}))
  refused("named 'mask'", lambda: data.beside.attach(source, {"mask": mask}))
