"""CIFAR-10 as TFDS prepares it, of a few pictures, without TensorFlow."""

import io

import numpy as np
from PIL import Image

CLASSES = (
  "airplane", "automobile", "bird", "cat", "deer",
  "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PER_FILE = 4


def examples(split):
  """(images, labels) of a split: five files to train, one to test."""
  n = PER_FILE * (5 if split == "train" else 1)
  generator = np.random.default_rng(n)
  images = generator.integers(0, 256, (n, 32, 32, 3), np.uint8)
  return images, generator.integers(0, 10, n, np.uint8)


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
