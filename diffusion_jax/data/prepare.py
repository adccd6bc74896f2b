"""Prepares a TFDS data set; a script that ``tfds.load`` runs as a child.

Only this script needs TensorFlow. It runs in its own process, because
TensorFlow next to JAX takes memory on the device, and time. Arguments: the
name, and the folder for data ("" for the default). An error goes to standard
output, as one line; progress to standard error.
"""

import sys
from types import TracebackType


def report(
  kind: type[BaseException],
  error: BaseException,
  traceback: TracebackType | None,
) -> None:
  """Writes an uncaught error as one line, instead of a traceback."""
  del traceback
  text = " ".join(str(error).split())
  # The first line break ends whatever TFDS was printing.
  sys.stdout.write(f"\nerror: {kind.__name__} {text}\n")


def main(name: str, data_dir: str) -> None:
  """Downloads and prepares ``name`` in a format with random access."""
  import tensorflow_datasets as tfds

  # GCS only has data sets in the format without random access.
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  builder = tfds.builder(
    name, data_dir=data_dir or None, file_format="array_record"
  )
  builder.download_and_prepare(download_config=config)


if __name__ == "__main__":
  sys.excepthook = report
  main(*sys.argv[1:])
