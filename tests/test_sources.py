"""Pictures in tables and in .tar files, against the same in a folder."""

import gzip
import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (5, 4, 6, 3), np.uint8)
NAMES = ("cat", "dog", "dog", "cat", "dog")
LABELS = [0, 1, 1, 0, 1]


def png(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  return file.getvalue()


FILES = [png(image) for image in PICTURES]


def one_line(match, function):
  with pytest.raises(ValueError, match=match) as error:
    function()
  assert "\n" not in str(error.value)


def assert_pets(source, names=("cat", "dog")):
  assert source.class_names == names
  found = source.gather(np.arange(5))
  np.testing.assert_array_equal(found["image"], PICTURES)
  np.testing.assert_array_equal(found["label"], LABELS)
  order = np.array([4, 0, 4])
  np.testing.assert_array_equal(source.gather(order)["image"], PICTURES[order])


def as_folder(folder):
  for k, (name, file) in enumerate(zip(NAMES, FILES, strict=True)):
    path = folder / name / f"{k}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file)
  return folder


# -------------------------------------------------------------------- tars


def write_tar(path, members):
  with tarfile.open(path, "w") as archive:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return path


def samples(label, numbers=range(5)):
  members = []
  for k in numbers:
    members += [(f"pets/{k:04}.png", FILES[k]), (f"pets/{k:04}.txt", b"words")]
    members.append(label(k))
  return members


def cls(k):
  return f"pets/{k:04}.cls", f"{LABELS[k]}\n".encode()


@pytest.mark.parametrize("max_bytes", [2**31, 0])
def test_a_tar_is_its_samples_in_order(tmp_path, max_bytes):
  path = write_tar(tmp_path / "a.tar", samples(cls))
  source = data.load(path, max_bytes=max_bytes)
  assert isinstance(source, data.LazySource) == (max_bytes == 0)
  assert_pets(source, ("0", "1"))
  assert source.left_out == ".txt (5)"
  # As the same pictures and classes in an array.
  np.savez(tmp_path / "a.npz", images=PICTURES, labels=LABELS)
  if max_bytes:
    assert source.fingerprint == data.load(tmp_path / "a.npz").fingerprint


@pytest.mark.parametrize("key", ["label", "cls"])
def test_classes_of_a_json(tmp_path, key):
  def label(k):
    text = json.dumps({key: NAMES[k], "caption": "words"})
    return f"pets/{k:04}.json", text.encode()

  path = write_tar(tmp_path / "a.tar", samples(label))
  assert_pets(data.load(path))


def test_a_json_of_floats_has_whole_classes(tmp_path):
  def label(k):
    return f"pets/{k:04}.json", json.dumps({"label": float(LABELS[k])}).encode()

  path = write_tar(tmp_path / "a.tar", samples(label))
  assert_pets(data.load(path), ("0", "1"))


def test_shards_in_folders_have_their_own_keys(tmp_path):
  for name, number in (("0", 0), ("1", 0)):
    (tmp_path / name).mkdir()
    write_tar(tmp_path / name / "s.tar", samples(cls, [number]))
  assert len(data.load(tmp_path / "{0..1}" / "s.tar")) == 2


def test_a_tar_in_gzip_is_called_that(tmp_path):
  (tmp_path / "a.tar").write_bytes(gzip.compress(b"words"))
  one_line("compressed by gzip", lambda: data.load(tmp_path / "a.tar"))


def test_shards_are_one_after_another(tmp_path):
  write_tar(tmp_path / "a-009.tar", samples(cls, [0, 1]))
  write_tar(tmp_path / "a-010.tar", samples(cls, [2, 3, 4]))
  source = data.load(tmp_path / "a-{009..010}.tar")
  assert_pets(source, ("0", "1"))
  assert source.name == "a-{009..010}.tar"
  one_line(
    "2 of the 4 shards .*a-008.tar, .*a-011.tar",
    lambda: data.load(tmp_path / "a-{008..011}.tar"),
  )
  one_line("must count up", lambda: data.load(tmp_path / "a-{2..1}.tar"))
  one_line("no file", lambda: data.load(tmp_path / "b.tar"))


# Where a member starts: each takes a header of 512 bytes and one block.
@pytest.mark.parametrize("kind", ["cut", "header"])
def test_a_damaged_tar_says_where(tmp_path, kind):
  path = write_tar(tmp_path / "a.tar", samples(cls))
  content = bytearray(path.read_bytes())
  if kind == "cut":  # in the picture of sample 3, member 10
    content = content[: 9 * 1024 + 600]
    match = (
      r"damaged at member 10 after pets/0002.cls \(pets/0003.png goes beyond"
    )
  else:  # of the text of sample 3, member 11
    content[10 * 1024 : 10 * 1024 + 512] = b"x" * 512
    match = r"damaged at member 11 after pets/0003.png \(its header is damaged"
  path.write_bytes(content)
  one_line(match, lambda: data.load(path))
  plain = [m for m in samples(cls) if not m[0].endswith(".cls")]
  path = write_tar(tmp_path / "b.tar", plain)
  path.write_bytes(path.read_bytes()[: 6 * 1024 + 600])  # in sample 3
  with pytest.warns(
    UserWarning, match="left out all that follows: .*at member 7"
  ):
    source = data.load(path, skip_broken=True)
  np.testing.assert_array_equal(
    source.gather(np.arange(3))["image"], PICTURES[:3]
  )


def test_broken_pictures_of_a_tar_are_named(tmp_path):
  members = [(n, b"?" if n.endswith("2.png") else c) for n, c in samples(cls)]
  path = write_tar(tmp_path / "a.tar", members)
  one_line("cannot read picture a.tar/pets/0002.png", lambda: data.load(path))
  with pytest.warns(UserWarning, match="left out 1 of 5 pictures"):
    assert len(data.load(path, skip_broken=True)) == 4


BAD_TARS = {
  "a sample without a class": (
    samples(cls)[:-1],
    "1 of 5 pictures without a class, the first of them no. 4",
  ),
  "two pictures": (
    [("a.png", FILES[0]), ("a.jpg", FILES[1])],
    r"several pictures \(png, jpg\)",
  ),
  "no pictures": ([("a.txt", b"words")], r"no pictures in .*: it holds .txt"),
  "a class that is no text": (
    [("a.png", FILES[0]), ("a.cls", b"\xff\xff")], "cannot read a.tar/a.cls",
  ),
  "a json that is none": (
    [("a.png", FILES[0]), ("a.json", b"{")], "cannot read a.tar/a.json",
  ),
  "twice": ([("a.png", FILES[0])] * 2, "holds a.png twice"),
  "a class that moves the cursor": (
    [("a.png", FILES[0]), ("a.cls", b"c\x1b[Aat")], "has a control character",
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TARS)
def test_bad_tars(tmp_path, case):
  members, match = BAD_TARS[case]
  path = write_tar(tmp_path / "a.tar", members)
  one_line(match, lambda: data.load(path))


# ------------------------------------------------------------------ tables


def table(
  label=NAMES, image="image", cell=lambda f: {"bytes": f, "path": None}
):
  pa = pytest.importorskip("pyarrow")
  columns = {image: [cell(file) for file in FILES], "id": list(range(5))}
  if label is not None:
    columns["label"] = label
  return pa.table(columns)


def write_parquet(path, found):
  from pyarrow import parquet

  path.parent.mkdir(exist_ok=True, parents=True)
  parquet.write_table(found, path, row_group_size=2)
  return path


@pytest.mark.parametrize("max_bytes", [2**31, 0])
@pytest.mark.parametrize("cell", ["struct", "bytes", "path"])
def test_a_parquet_is_its_rows_in_order(tmp_path, max_bytes, cell):
  as_folder(tmp_path / "pets")
  cells = {
    "struct": lambda f: {"bytes": f, "path": "a.png"},
    "bytes": lambda f: f,
    "path": lambda f: {
      "bytes": None,
      "path": f"pets/{NAMES[FILES.index(f)]}/{FILES.index(f)}.png",
    },
  }
  found = table(cell=cells[cell])
  if cell == "path":
    import pyarrow as pa

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    found = found.set_column(0, "image", found["image"].cast(kind))
  path = write_parquet(tmp_path / "a.parquet", found)
  source = data.load(path, max_bytes=max_bytes)
  assert_pets(source)
  assert source.left_out == "columns id"
  if max_bytes:
    assert len(source.fingerprint) == 16
    ordered = data.load(tmp_path / "pets")
    assert sorted(x["label"] for x in ordered) == sorted(source.labels)


def test_names_of_classes_that_hugging_face_writes(tmp_path):
  found = table(label=LABELS)
  features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
  text = json.dumps({"info": {"features": features}})
  found = found.replace_schema_metadata({"huggingface": text})
  assert_pets(data.load(write_parquet(tmp_path / "a.parquet", found)))
  few = text.replace('"cat", ', "")
  found = found.replace_schema_metadata({"huggingface": few})
  path = write_parquet(tmp_path / "b.parquet", found)
  one_line("the label 1 at picture 1, but 1 classes", lambda: data.load(path))


def test_a_folder_of_tables_has_splits(tmp_path):
  whole = table()
  for name, rows in (
    ("train-0", (0, 2)),
    ("train-1", (2, 3)),
    ("test-0", (0, 1)),
  ):
    write_parquet(tmp_path / "data" / f"{name}.parquet", whole.slice(*rows))
  assert_pets(data.load(tmp_path))
  assert len(data.load(tmp_path, split="test")) == 1
  one_line(
    "split is 'val', but .* has test, train",
    lambda: data.load(tmp_path, split="val"),
  )


@pytest.mark.parametrize(
  ("names", "split", "count"),
  [
    (("train-0", "val-0"), "train", 2),
    (("train_0", "valid_0"), "validation", 3),
    (("Train.0", "eval.0"), "test", 3),
    (("a", "b"), "train", 5),
    (("train-0", "more"), "train", 5),
  ],
)
def test_splits_have_many_names(names, split, count, tmp_path):
  for name, rows in zip(names, ((0, 2), (2, 3)), strict=True):
    write_parquet(tmp_path / f"{name}.PARQUET", table().slice(*rows))
  assert len(data.load(tmp_path, split=split)) == count


def test_a_table_beside_splits_is_refused(tmp_path):
  for name in ("test-0", "more"):
    write_parquet(tmp_path / f"{name}.parquet", table())
  one_line("has more.parquet beside .* test", lambda: data.load(tmp_path))


def test_captions_beside_pictures_are_no_pictures(tmp_path):
  as_folder(tmp_path)
  write_parquet(tmp_path / "metadata.parquet", table().select(["id"]))
  assert len(data.load(tmp_path)) == 5


@pytest.mark.parametrize("stored", [["1_0", "10"], ["1_0", "1_1"], ["\u0661"]])
def test_numbers_are_written_in_digits(stored):
  labels, names = data.classes.of("pets", stored)
  assert names == tuple(sorted(stored))
  assert len(set(labels)) == len(stored)


@pytest.mark.parametrize("format", ["stream", "file"])
def test_an_arrow_file(tmp_path, format):
  found = table()
  import pyarrow as pa

  path = tmp_path / "a.arrow"
  new = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}[format]
  with new(str(path), found.schema) as writer:
    writer.write_table(found, max_chunksize=2)
  assert_pets(data.load(path, max_bytes=0))


def test_what_datasets_has_saved(tmp_path):
  found = table()
  import pyarrow as pa

  # As datasets.save_to_disk lays it out; the order is that of state.json.
  for split in ("train", "test"):
    folder = tmp_path / split
    folder.mkdir()
    parts = {"b.arrow": found.slice(0, 2), "a.arrow": found.slice(2)}
    for name, part in parts.items():
      with pa.ipc.new_stream(str(folder / name), part.schema) as writer:
        writer.write_table(part)
    listed = [{"filename": name} for name in parts]
    (folder / "state.json").write_text(json.dumps({"_data_files": listed}))
    (folder / "dataset_info.json").write_text("{}")
  splits = json.dumps({"splits": ["train", "test"]})
  (tmp_path / "dataset_dict.json").write_text(splits)
  assert_pets(data.load(tmp_path))
  assert_pets(data.load(tmp_path, split="test"))
  assert_pets(data.load(tmp_path / "train"))


def test_the_hub_is_read_by_datasets(tmp_path, monkeypatch):
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "kept")
  whole = tmp_path / "saved"
  features = datasets.Features(
    image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])
  )
  images = [{"bytes": file, "path": None} for file in FILES]
  made = datasets.Dataset.from_dict(
    {"image": images, "label": LABELS}, features
  )
  made.save_to_disk(whole)
  assert_pets(data.load(whole))
  made.to_parquet(tmp_path / "hub" / "train.parquet")
  assert_pets(data.load(f"hf:{tmp_path / 'hub'}", max_bytes=0))
  assert len(data.load(f"hf:{tmp_path / 'hub'}", split="train[:2]")) == 2
  one_line(
    re.escape(f"cannot load hf:{tmp_path / 'none'}"),
    lambda: data.load(f"hf:{tmp_path / 'none'}"),
  )


@pytest.mark.parametrize(
  "module,name,extra",
  [("datasets", "hf:a/b", "hf"), ("pyarrow", "a.parquet", "parquet")],
)
def test_what_is_not_installed_is_named(monkeypatch, module, name, extra):
  for one in (module, f"{module}.parquet"):
    monkeypatch.setitem(__import__("sys").modules, one, None)
  one_line(
    rf"{name} needs .*pip install -e '\.\[{extra}\]'", lambda: data.load(name)
  )


def test_bad_tables(tmp_path):
  path = write_parquet(tmp_path / "a.parquet", table(label=[*NAMES[:4], None]))
  one_line("1 of 5 pictures without a class", lambda: data.load(path))
  path = write_parquet(tmp_path / "b.parquet", table(label=[0.5] * 5))
  one_line("a label of float: must be", lambda: data.load(path))
  path = write_parquet(tmp_path / "c.parquet", table().select(["id"]))
  one_line("one must hold pictures", lambda: data.load(path))
  path = write_parquet(tmp_path / "d.parquet", table(cell=lambda f: f[:30]))
  one_line("cannot read picture d.parquet/", lambda: data.load(path))
  path = write_parquet(tmp_path / "e.parquet", table().slice(0, 0))
  one_line("its tables have no rows", lambda: data.load(path))
  path.write_bytes(b"text")
  one_line("cannot read .*e.parquet", lambda: data.load(path))
  one_line("no file", lambda: data.load(tmp_path / "none.parquet"))
