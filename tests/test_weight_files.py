"""Files of weights: the published networks', damaged ones, hostile ones.

Each package is asked for where it is needed; CI runs all of them.
"""

import errno
import json
import os
import pathlib
import pickle
import re
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import PUBLISHED, assert_same

from diffusion_jax.models import UNet
from diffusion_jax.pretrained import (
  diffusers_config,
  files,
  from_diffusers,
  from_openai,
  tensorflow,
  to_diffusers,
  to_openai,
)

# NAME.json holds the constructor's arguments, NAME.npz inputs and outputs;
# REFERENCE_NETWORKS names another folder like it.
FOLDERS = [PUBLISHED]
if "REFERENCE_NETWORKS" in os.environ:
  FOLDERS.append(pathlib.Path(os.environ["REFERENCE_NETWORKS"]))
STATE_DICTS = [path for folder in FOLDERS for path in folder.glob("*.pt")]
MODELS = [
  path.parent for folder in FOLDERS for path in folder.glob("*/config.json")
]
ARRAYS = {
  "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
  "a.bias": np.array([0.1, -0.0, np.nan], np.float32),
}


def run(net, params, numbers):
  args = [numbers["x"], numbers["t"] + 1]  # published networks count from 0
  cond = {name: numbers[name] for name in ("y", "low_res") if name in numbers}
  return jax.jit(net.apply)({"params": params}, *args, cond or None)


@pytest.mark.parametrize("path", STATE_DICTS, ids=lambda path: path.stem)
@pytest.mark.torch
def test_a_published_state_dict(path, tmp_path):
  pytest.importorskip("torch")
  net = reference.network(json.loads(path.with_suffix(".json").read_text()))
  tensors = files.read(path)
  params = from_openai(tensors, net)
  numbers = np.load(path.with_suffix(".npz"))
  out = run(net, params, numbers)
  np.testing.assert_allclose(out, numbers["out"], rtol=0, atol=1e-5)
  files.write(tmp_path / "out.pt", to_openai(params, net))
  assert_same(files.read(tmp_path / "out.pt"), tensors)


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.stem)
def test_a_diffusers_folder(folder, tmp_path):
  pytest.importorskip("safetensors")
  config = files.read_json(files.model_folder(folder) / "config.json")
  net = UNet(**diffusers_config.settings(config))
  tensors = files.read(files.weights_file(folder))
  params = from_diffusers(tensors, net)
  numbers = np.load(folder.with_suffix(".npz"))
  out = run(net, params, numbers)
  np.testing.assert_allclose(out, numbers["out"], rtol=0, atol=1e-5)
  files.write(tmp_path / "out.safetensors", to_diffusers(params, net))
  assert_same(files.read(tmp_path / "out.safetensors"), tensors)


@pytest.mark.parametrize(
  ("suffix", "package"),
  [(".pt", "torch"), (".bin", "torch"), (".safetensors", "safetensors")],
)
@pytest.mark.torch
def test_files_are_read_back_bit_for_bit(suffix, package, tmp_path):
  pytest.importorskip(package)
  path = tmp_path / f"new/weights{suffix}"
  files.write(path, ARRAYS)
  assert_same(files.read(path), ARRAYS)
  # Cut anywhere, a file is refused in one line that names it.
  whole = path.read_bytes()
  for size in (0, 5, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=f"weights{suffix} .*") as refused:
      files.read(path)
    assert "\n" not in str(refused.value)


@pytest.mark.torch
@pytest.mark.parametrize(
  ("suffix", "package"), [(".safetensors", "safetensors"), (".pt", "torch")]
)
@pytest.mark.torch
def test_a_file_that_finds_no_room_is_an_error_of_the_system(
  suffix, package, tmp_path
):
  pytest.importorskip(package)
  resource = pytest.importorskip("resource")
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  large = {"w": np.zeros(100_000, np.float32)}
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
  try:
    with pytest.raises(OSError, match="cannot be written: "):
      files.write(tmp_path / f"a{suffix}", large)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.torch
def test_bfloat16_is_written_and_read_exactly(suffix, tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / f"half{suffix}"
  files.write(path, {"a": np.array([1.5, -3.0], jnp.bfloat16)})
  if suffix == ".pt":
    assert torch.load(path)["a"].dtype == torch.bfloat16
  read = files.read(path)["a"]
  assert read.dtype == np.float32 and read.tolist() == [1.5, -3.0]


def kinds(torch):
  eye = torch.eye(2)
  return {
    "sparse": eye.to_sparse(), "float8_e4m3fn": eye.to(torch.float8_e4m3fn),
    "conj": torch.view_as_complex(eye).conj(),
  }  # fmt: skip


@pytest.mark.parametrize("kind", ["sparse", "float8_e4m3fn", "conj"])
@pytest.mark.torch
def test_a_tensor_that_numpy_has_not_is_named(kind, tmp_path):
  torch = pytest.importorskip("torch")
  from safetensors.torch import save_file

  state = {"fine": torch.ones(1), "odd": kinds(torch)[kind]}
  saves = {".pt": torch.save}
  if kind == "float8_e4m3fn":
    saves[".safetensors"] = save_file
  for suffix, save in saves.items():
    save(state, tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match=rf"a\{suffix} holds 'odd'") as one:
      files.read(tmp_path / f"a{suffix}")
    assert "dense arrays of float32" in str(one.value)
    assert "\n" not in str(one.value)


@pytest.mark.torch
def test_an_array_that_a_file_cannot_hold_is_named(tmp_path):
  for suffix, package in ((".pt", "torch"), (".safetensors", "safetensors")):
    pytest.importorskip(package)
    odd = {"odd": np.ones(1, jnp.float8_e4m3fn)}
    with pytest.raises(ValueError, match=rf"a\{suffix} .*'odd'"):
      files.write(tmp_path / f"a{suffix}", odd)
  assert not list(tmp_path.iterdir())


@pytest.mark.torch
def test_parameters_that_learn_are_tensors_too(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
  assert files.read(tmp_path / "a.pt")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.torch
def test_a_pytorch_file_cut_anywhere_is_named(zipped, tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "a.pt"
  state = {"a": torch.ones(20), "b": torch.arange(3)}
  torch.save(state, path, _use_new_zipfile_serialization=zipped)
  whole = path.read_bytes()
  for size in range(0, len(whole), 31):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"a\.pt is (truncated|damaged) .*\S$"):
      files.read(path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.torch
def test_what_the_system_refuses_is_no_truncated_file(
  number, tmp_path, monkeypatch
):
  torch = pytest.importorskip("torch")

  def load(path, **_):
    raise OSError(number, os.strerror(number), str(path))

  monkeypatch.setattr(torch, "load", load)
  (tmp_path / "a.pt").touch()
  with pytest.raises(OSError, match=re.escape(os.strerror(number))):
    files.read(tmp_path / "a.pt")


class Hostile:
  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return pathlib.Path.touch, (self.target,)


@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle"])
@pytest.mark.torch
def test_a_pickle_that_runs_code_does_not_run(layout, tmp_path):
  torch = pytest.importorskip("torch")
  path, target = tmp_path / "bad.pt", tmp_path / "was_run"
  state = {"a": Hostile(target)}
  if layout == "pickle":
    path.write_bytes(pickle.dumps(state))
  else:
    torch.save(state, path, _use_new_zipfile_serialization=layout == "zip")
  assert zipfile.is_zipfile(path) == (layout == "zip")
  with pytest.raises(ValueError, match=r"bad\.pt .*could run code"):
    files.read(path)
  assert not target.exists()


@pytest.mark.torch
def test_a_file_that_holds_more_than_tensors_is_refused(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "a.pt"
  torch.save({"state_dict": {"a": torch.ones(1)}}, path)
  with pytest.raises(ValueError, match="holds 'state_dict', a dict;"):
    files.read(path)
  torch.save([torch.ones(1)], path)
  with pytest.raises(ValueError, match="holds a list, not tensors"):
    files.read(path)


def test_files_that_are_none(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no\.pt"):
    files.read(tmp_path / "no.pt")
  (tmp_path / "a.ckpt").touch()
  with pytest.raises(ValueError, match=r"a\.ckpt is no file of weights"):
    files.read(tmp_path / "a.ckpt")
  with pytest.raises(ValueError, match=r"must end in \.safetensors, \.pt"):
    files.write(tmp_path / "b.ckpt", ARRAYS)
  (tmp_path / "c.json").write_text("[")
  with pytest.raises(ValueError, match=r"c\.json is not valid JSON"):
    files.read_json(tmp_path / "c.json")
  (tmp_path / "c.json").write_text("[]")
  with pytest.raises(ValueError, match=r"c\.json holds a list"):
    files.read_json(tmp_path / "c.json")
  with pytest.raises(ValueError, match=r"has no config\.json, nor unet/conf"):
    files.model_folder(tmp_path)
  with pytest.raises(ValueError, match=r"has no diffusion_pytorch_model\.safe"):
    files.weights_file(tmp_path)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
  for name in ("torch", "safetensors.numpy", "huggingface_hub", "tensorflow"):
    monkeypatch.setitem(sys.modules, name, None)
  (tmp_path / "a.pt").touch()
  with pytest.raises(ValueError, match=r"a\.pt needs torch: pip .*\[torch\]'"):
    files.read(tmp_path / "a.pt")
  (tmp_path / "a.safetensors").touch()
  with pytest.raises(ValueError, match="pip install 'safetensors'"):
    files.read(tmp_path / "a.safetensors")
  with pytest.raises(ValueError, match=r"owner/name is not .*\[hub\]'"):
    files.find("owner/name")
  with pytest.raises(ValueError, match=r"needs tensorflow: pip .*\[tfds\]'"):
    tensorflow.read_checkpoint(tmp_path / "model.ckpt")


def test_a_pipelines_folder_and_a_flat_one(tmp_path):
  (tmp_path / "config.json").touch()
  (tmp_path / "scheduler_config.json").touch()
  (tmp_path / "diffusion_pytorch_model.bin").touch()
  assert files.model_folder(tmp_path) == tmp_path
  assert files.scheduler_file(tmp_path) == tmp_path / "scheduler_config.json"
  assert files.weights_file(tmp_path).suffix == ".bin"
  for folder, name in (
    ("unet", "config.json"),
    ("unet", "diffusion_pytorch_model.safetensors"),
    ("unet", "diffusion_pytorch_model.bin"),
    ("scheduler", "scheduler_config.json"),
  ):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / name).touch()
  assert files.model_folder(tmp_path) == tmp_path / "unet"
  assert files.weights_file(tmp_path / "unet").suffix == ".safetensors"
  assert files.scheduler_file(tmp_path).parent == tmp_path / "scheduler"
  assert files.scheduler_file(tmp_path / "unet") is None


def test_sources_on_this_disk_are_not_asked_for_elsewhere(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "owner" / "name").mkdir(parents=True)
  assert files.find("owner/name") == pathlib.Path("owner/name")
  (tmp_path / "owner" / "model.ckpt-7.index").touch()
  assert files.find("owner/model.ckpt-7") == pathlib.Path("owner/model.ckpt-7")
  for name in ("weights/no.pt", "/no/such/folder", "name", "a/b/c"):
    with pytest.raises(ValueError, match=f"{name} is no file or folder, nor"):
      files.find(name)


def test_a_name_on_the_hub_is_read_from_the_cache(tmp_path, monkeypatch):
  constants = pytest.importorskip("huggingface_hub.constants")
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(
    ValueError, match="google/ddpm-cifar10-32 is neither on"
  ) as e:
    files.find("google/ddpm-cifar10-32")
  assert "\n" not in str(e.value)
  model = tmp_path / "models--google--ddpm-cifar10-32"
  snapshot = model / "snapshots" / ("0" * 40)
  snapshot.mkdir(parents=True)
  (model / "refs").mkdir()
  (model / "refs" / "main").write_text("0" * 40)
  (snapshot / "diffusion_pytorch_model.bin").touch()
  assert files.find("google/ddpm-cifar10-32") == snapshot


def test_what_is_asked_of_the_hub(tmp_path, monkeypatch):
  hub = pytest.importorskip("huggingface_hub")
  asked = []

  def download(name, allow_patterns):
    asked.append((name, allow_patterns[1]))
    if allow_patterns[1].endswith(".bin"):
      (tmp_path / "diffusion_pytorch_model.bin").touch()
    return str(tmp_path)

  monkeypatch.setattr(hub, "snapshot_download", download)
  assert files.find("google/ddpm-cifar10-32") == tmp_path
  weights = "*diffusion_pytorch_model"
  assert asked == [
    ("google/ddpm-cifar10-32", f"{weights}.safetensors"),
    ("google/ddpm-cifar10-32", f"{weights}.bin"),
  ]


def test_a_tensorflow_checkpoint(tmp_path):
  tf = pytest.importorskip("tensorflow").compat.v1
  with tf.Graph().as_default(), tf.Session() as session:
    with tf.variable_scope("model/conv_in"):
      variable = tf.get_variable("W", initializer=ARRAYS["a.weight"])
    average = tf.train.ExponentialMovingAverage(0.9)
    tf.train.get_or_create_global_step()
    update = average.apply([variable])
    session.run(tf.global_variables_initializer())
    session.run([update])
    path = tf.train.Saver().save(session, str(tmp_path / "model.ckpt"))
  checkpoint = tensorflow.read_checkpoint(files.find(path))
  assert len(checkpoint) == 3
  read = tensorflow.network_variables(checkpoint)
  assert_same(read, {"conv_in/W": ARRAYS["a.weight"]})
  data = next(tmp_path.glob("*.data-*"))
  data.write_bytes(data.read_bytes()[:3])
  with pytest.raises(ValueError, match=r"model\.ckpt cannot be read"):
    tensorflow.read_checkpoint(files.find(path))
