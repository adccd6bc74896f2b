"""TFDS sources, on a small archive in CIFAR-10's own format. No network."""

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data

CLASSES = (
  "airplane", "automobile", "bird", "cat", "deer",
  "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PER_FILE = 4
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(
  not HAS_TENSORFLOW,
  reason="TensorFlow prepares TFDS data sets: pip install -e '.[tfds]'",
)


def examples(split):
  """(images, labels) of a split: five files to train, one to test."""
  n = PER_FILE * (5 if split == "train" else 1)
  generator = np.random.default_rng(n)
  images = generator.integers(0, 256, (n, 32, 32, 3), np.uint8)
  return images, generator.integers(0, 10, n, np.uint8)


def by_label_and_image(images, labels):
  """TFDS shuffles as it prepares; a set of bytes does not mind."""
  return sorted(
    (int(label), image.tobytes())
    for label, image in zip(labels, images, strict=True)
  )


def assert_is_cifar(source, split):
  images, labels = examples(split)
  assert len(source) == len(images)
  assert source.image_shape == (32, 32, 3)
  assert source.class_names == CLASSES
  found = [source[index] for index in range(len(source))]
  assert all(example["label"].dtype == np.int32 for example in found)
  assert all(example["image"].dtype == np.uint8 for example in found)
  assert by_label_and_image(images, labels) == by_label_and_image(
    [example["image"] for example in found],
    [example["label"] for example in found],
  )


def one_line(match, function):
  with pytest.raises(ValueError, match=match) as info:
    function()
  assert "\n" not in str(info.value)


# ------------------------------------------------- reading, no TensorFlow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A data_dir with CIFAR-10 as TFDS prepares it, by TFDS's own writers.

  Only what TFDS itself does with TensorFlow is done by hand: encoding a PNG
  (Pillow), and the order of the examples.
  """
  return write_cifar(tmp_path_factory.mktemp("tfds"), "array_record")


def write_cifar(data_dir, file_format):
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import file_adapters, naming

  kind = file_adapters.FileFormat(file_format)
  builder = tfds.builder("cifar10", data_dir=data_dir, file_format=kind)
  features = builder.info.features
  features["label"].names = CLASSES
  builder.data_path.mkdir(parents=True)
  splits = []
  for split in ("train", "test"):
    records = []
    for image, label in zip(*examples(split), strict=True):
      png = io.BytesIO()
      Image.fromarray(image).save(png, "PNG")
      png.seek(0)
      example = {"id": f"{split}_{len(records)}", "image": png, "label": label}
      encoded = features.encode_example(example)
      records.append(features.serialize_example(encoded))
    template = naming.ShardedFileTemplate(
      data_dir=builder.data_path,
      dataset_name="cifar10",
      split=split,
      filetype_suffix=file_format,
    )
    # Records of any format will do where no more than its name is read.
    file_adapters.ArrayRecordFileAdapter.write_examples(
      template.sharded_filepath(shard_index=0, num_shards=1),
      enumerate(records),
    )
    info = tfds.core.SplitInfo(
      name=split,
      shard_lengths=[len(records)],
      num_bytes=sum(map(len, records)),
      filename_template=template,
    )
    splits.append(info)
  builder.info.set_splits(tfds.core.SplitDict(splits))
  builder.info.write_to_directory(builder.data_path)
  return data_dir


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["cifar10", "cifar10:3.*.*", "tfds:cifar10"])
def test_reads_what_tfds_wrote(prepared, name, split):
  source = data.load(name, split=split, data_dir=prepared)
  assert_is_cifar(source, split)
  assert source.name == f"cifar10/3.0.2 {split}"


def test_splits_have_their_own_fingerprints(prepared):
  splits = ["train", "test", "train[:5]", "train[50%:]"]
  loaded = [data.load("cifar10", split=s, data_dir=prepared) for s in splits]
  assert [len(source) for source in loaded] == [20, 4, 5, 10]
  assert len({source.fingerprint for source in loaded}) == 4
  again = data.load("cifar10", split="test", data_dir=prepared)
  assert again.fingerprint == loaded[1].fingerprint


def test_size_and_channels(prepared):
  images, _ = examples("train")
  source = data.load("cifar10", size=(32, 16), data_dir=prepared)
  np.testing.assert_array_equal(source[3]["image"], images[3, :, 8:24])
  grey = data.load("cifar10", channels=1, data_dir=prepared)
  assert grey[0]["image"].shape == grey.image_shape == (32, 32, 1)


@pytest.mark.parametrize("max_bytes", [2**31, 0])
def test_batches(prepared, max_bytes):
  images, labels = examples("train")
  source = data.load("cifar10", data_dir=prepared, max_bytes=max_bytes)
  iterator = data.iterate(data.batches(source, batch_size=10, seed=0))
  for _ in range(3):
    epoch = [next(iterator), next(iterator)]
    found = np.concatenate([batch["image"] for batch in epoch])
    found = np.rint(found * 127.5 + 127.5).astype(np.uint8)
    assert by_label_and_image(images, labels) == by_label_and_image(
      found, np.concatenate([batch["label"] for batch in epoch])
    )


READ = """
import hashlib, json, sys
from diffusion_jax import data
source = data.load("cifar10", split=sys.argv[1], data_dir=sys.argv[2])
batch = data.batches(source, batch_size=4, seed=0)[0]
found = [source[index] for index in range(len(source))]
digest = sorted(
  hashlib.sha256(bytes([example["label"]]) + example["image"].tobytes())
  .hexdigest() for example in found
)
loaded = "tensorflow" in sys.modules
print(json.dumps([digest, source.class_names, loaded]))
"""


def read_in_another_process(split, data_dir, **environment):
  """Loads CIFAR-10 in a new process and checks its pixels and modules."""
  done = subprocess.run(
    [sys.executable, "-c", READ, split, str(data_dir)],
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    check=True,
  )
  digests, names, tensorflow_loaded = json.loads(done.stdout)
  expected = sorted(
    hashlib.sha256(bytes([label]) + image.tobytes()).hexdigest()
    for image, label in zip(*examples(split), strict=True)
  )
  assert digests == expected
  assert tuple(names) == CLASSES
  assert not tensorflow_loaded


def test_reading_does_not_import_tensorflow(prepared):
  read_in_another_process("train", prepared)


@pytest.mark.parametrize(
  "name,split,match",
  [
    ("cifar10", "validation", "cifar10: Unknown split 'validation'.*train"),
    ("cifar10", "train[", "cifar10: "),
    ("cifar10:1.0.0", "train", "cifar10:1.0.0: .*3.0.2"),
    ("cifar10/small", "train", "cifar10/small: .*small"),
    ("cifar11", "train", "no data set.*'cifar11', did you mean .*'cifar10'"),
  ],
)
def test_bad_names_and_splits(prepared, name, split, match):
  one_line(match, lambda: data.load(name, split=split, data_dir=prepared))


# -------------------------------------------------------------- preparing


def test_not_prepared_and_no_tensorflow(tmp_path, monkeypatch):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *args: (
      None if name == "tensorflow" else find_spec(name, *args)
    ),
  )
  one_line(
    f"cifar10 is not prepared in {tmp_path}.*pip install -e '.\\[tfds\\]'.*"
    "162 MiB",
    lambda: data.load("cifar10", data_dir=tmp_path),
  )


def test_prepared_without_random_access(tmp_path):
  write_cifar(tmp_path, "tfrecord")
  one_line(
    f"cifar10 in {tmp_path}/cifar10/3.0.2 is prepared as tfrecord.*move that"
    " folder away.*from what is downloaded$",
    lambda: data.load("cifar10", data_dir=tmp_path),
  )


@pytest.mark.parametrize(
  "code,reason",
  [
    (
      "print('Downloading', end='')\nraise RuntimeError('one error: \\n two')",
      "RuntimeError one error: two",
    ),
    (
      "import os\nprint('Downloading')\nos._exit(9)",
      "the process for it ended with code",
    ),
  ],
)
def test_a_failed_child_is_reported(tmp_path, monkeypatch, code, reason):
  # What the child, and only the child, imports instead of TFDS.
  fake = tmp_path / "path" / "tensorflow_datasets.py"
  fake.parent.mkdir()
  fake.write_text(code)
  monkeypatch.setenv("PYTHONPATH", str(fake.parent))
  monkeypatch.setattr(importlib.util, "find_spec", lambda *args: True)
  one_line(
    f"cannot prepare cifar10: {reason}.*; if this"
    " machine cannot download, put .*cifar-10-binary.tar.gz into"
    f" {tmp_path}/downloads/manual and run",
    lambda: data.load("cifar10", data_dir=tmp_path),
  )


def write_archive(path):
  """cifar-10-binary.tar.gz, with records of 1 + 3 x 32 x 32 bytes."""

  def records(split, start, stop):
    return b"".join(
      bytes([label]) + image.transpose(2, 0, 1).tobytes()
      for image, label in list(zip(*examples(split), strict=True))[start:stop]
    )

  files = {
    f"data_batch_{i + 1}.bin": records(
      "train", PER_FILE * i, PER_FILE * (i + 1)
    )
    for i in range(5)
  }
  files["test_batch.bin"] = records("test", 0, PER_FILE)
  files["batches.meta.txt"] = "\n".join([*CLASSES, ""]).encode()
  path.parent.mkdir(parents=True)
  with tarfile.open(path, "w:gz") as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))


# Python runs a module of this name when it starts. All of TFDS is the real
# one; only the size and checksum that it expects of CIFAR-10's archive are
# those of the small one.
SITECUSTOMIZE = """
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import cifar
info = checksums.compute_url_info({archive!r})
cifar.Cifar10.url_infos = {{url: info for url in cifar.Cifar10.url_infos}}
"""


@needs_tensorflow
def test_prepares_with_tensorflow_in_a_child(tmp_path):
  archive = tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz"
  write_archive(archive)
  site = tmp_path / "site"
  site.mkdir()
  (site / "sitecustomize.py").write_text(
    SITECUSTOMIZE.format(archive=str(archive))
  )
  path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
  read_in_another_process("train", tmp_path, PYTHONPATH=path)
  # Prepared now: read by the TFDS of this process, as it is.
  for split in ("train", "test"):
    assert_is_cifar(data.load("cifar10", split=split, data_dir=tmp_path), split)
  assert "tensorflow" not in sys.modules


@needs_tensorflow
def test_a_wrong_archive_is_reported(tmp_path):
  archive = tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz"
  write_archive(archive)
  one_line(
    "cannot prepare cifar10: NonMatchingChecksumError.*wrong checksum",
    lambda: data.load("cifar10", data_dir=tmp_path),
  )
