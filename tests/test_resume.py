"""Nothing is lost: signals, kills, damage, and two at once."""

import concurrent.futures
import errno
import json
import os
import re
import shutil
import signal
import sys
import tarfile
import types
from collections import namedtuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from commands import BLIND, TINY, assert_one_error, command, params_of, refused

import diffusion_jax as dj
from diffusion_jax.runs import checks, datasets, directory, processes
from diffusion_jax.runs.training import (
  continuing,
  diffusion,
  interruption,
  setup,
  stepping,
)
from experiments import sample, train
from experiments.cli import devices
from experiments.configs import digits
from experiments.tools import soak


@pytest.fixture
def whole(zoo, tmp_path, few_numbers):
  """A run of 8 steps that nothing disturbs."""
  return zoo.copy("few", tmp_path / "whole")


def steps_of(workdir):
  return {
    int(path.name)
    for path in (workdir / "checkpoints").iterdir()
    if path.name.isdigit()
  }


@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)]
)
def test_a_signal_stops_after_the_step_and_the_run_goes_on(
  number, status, whole, tmp_path, capsys, monkeypatch
):
  iterate = dj.data.iterate

  def signalled(batches, start):
    for step, batch in enumerate(iterate(batches, start=start), start + 1):
      if step == 3:
        signal.raise_signal(number)
      yield batch

  flags = (*BLIND, f"--workdir={tmp_path}/run", "--config.num_steps=8")
  before = signal.getsignal(number)
  with monkeypatch.context() as patch:
    patch.setattr(dj.data, "iterate", signalled)
    with pytest.raises(SystemExit) as stop:
      command(train, *flags)
  assert stop.value.code == status
  assert signal.getsignal(number) == before
  last = capsys.readouterr().out.splitlines()[-1]
  assert last.startswith(f"stopped by {number.name}: the run is saved after")
  assert steps_of(tmp_path / "run") == {3}
  command(train, *flags)
  assert "continues after step 3 of 8" in capsys.readouterr().out
  chex.assert_trees_all_equal(params_of(tmp_path / "run"), params_of(whole))


def test_what_was_learnt_before_data_broke_is_saved_and_goes_on(
  whole, tmp_path, capsys, monkeypatch
):
  iterate = dj.data.iterate

  def broken(batches, start):
    for step, batch in enumerate(iterate(batches, start=start), start + 1):
      if step == 4:
        raise dj.data.Unreadable(
          "cannot read picture a.png: repair it", "skip_broken"
        )
      yield batch

  flags = (*BLIND, f"--workdir={tmp_path}/run", "--config.num_steps=8")
  with monkeypatch.context() as patch:
    patch.setattr(dj.data, "iterate", broken)
    with pytest.raises(SystemExit) as stop:
      command(train, *flags)
  assert stop.value.code == 1
  error = capsys.readouterr().err.splitlines()[-1]
  assert "the data of step 4 cannot be read: cannot read picture a" in error
  assert "skip_broken=True; the run is saved after step 3; then the sa" in error
  assert steps_of(tmp_path / "run") == {3}
  command(train, *flags)
  chex.assert_trees_all_equal(params_of(tmp_path / "run"), params_of(whole))


def test_where_data_lie_is_known_from_anywhere(begun, tmp_path, monkeypatch):
  data, run = tmp_path / "data", begun(path=str(tmp_path / "data"))
  config = json.loads((run / "config.json").read_text())
  config["data"]["name"] = "data"
  directory.replace(run / "config.json", json.dumps(config))
  monkeypatch.chdir(run)
  with pytest.raises(ValueError, match=f"no data at {data}: .*--images=PATH"):
    datasets.source(directory.load(run)[0], elsewhere="--images")
  data.mkdir()
  assert directory.load(run)[0].data.name == str(data)
  data.rmdir()
  (run / "data").mkdir()  # has come along with the run
  assert directory.load(run)[0].data.name == "data"


def test_a_closed_terminal_is_a_signal_too_unless_nohup_ignores_it():
  before = signal.getsignal(signal.SIGHUP)
  try:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with interruption.Interruption() as stop:
      signal.raise_signal(signal.SIGHUP)
    assert stop.signal is signal.SIGHUP and stop.status == 0
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruption.Interruption() as stop:
      signal.raise_signal(signal.SIGHUP)
    assert stop.signal is None
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_run_may_train_in_a_thread_which_gets_no_signals():
  def train():
    with interruption.Interruption() as stop:
      return stop.reached(1)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    assert not pool.submit(train).result()


def test_a_signal_cuts_a_preview_short(
  few_numbers, tmp_path, capsys, monkeypatch
):
  def long_preview(*_):
    signal.raise_signal(signal.SIGTERM)
    raise AssertionError("the preview went on")

  monkeypatch.setattr(diffusion, "preview", long_preview)
  flags = (*TINY, f"--workdir={tmp_path}/run", "--config.num_steps=8")
  with pytest.raises(SystemExit) as stop:
    command(train, *flags)
  assert stop.value.code == 0
  assert "saved after step 4;" in capsys.readouterr().out


def test_a_second_run_in_the_directory_is_refused(whole, capsys):
  with directory.locked(whole), pytest.raises(SystemExit) as stop:
    command(train, *BLIND, f"--workdir={whole}", "--config.num_steps=8")
  assert_one_error(stop, capsys, "another process is training in .*whole")


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, capsys):
  workdir = shutil.copytree(whole, tmp_path / "run")
  flip(largest(workdir / "checkpoints" / "8"))
  command(train, *BLIND, f"--workdir={workdir}", "--config.num_steps=8")
  out = capsys.readouterr().out
  assert "checkpoint 8 is passed over" in out
  assert "continues after step 4 of 8" in out
  assert (workdir / "checkpoints" / "damaged-8").is_dir()
  chex.assert_trees_all_equal(params_of(workdir), params_of(whole))


def test_readers_pass_over_damage_and_touch_nothing(whole, tmp_path, capsys):
  workdir = shutil.copytree(whole, tmp_path / "run")
  flip(largest(workdir / "checkpoints" / "8"))
  before = sorted(p.name for p in (workdir / "checkpoints").iterdir())
  capsys.readouterr()
  params_of(workdir)
  assert "checkpoint 8 is passed over" in capsys.readouterr().out
  after = sorted(p.name for p in (workdir / "checkpoints").iterdir())
  assert after == before


# ------------------------------------------------------------ checkpoints


def largest(folder):
  files = (path for path in folder.rglob("*") if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def tear(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Checkpoints 1 and 2 of a small state, and the state."""
  folder = tmp_path_factory.mktemp("saved") / "c"
  params = {"a": jax.random.normal(jax.random.key(0), (100, 100))}
  state = dj.state.create(params, optax.adam(1e-3), (0.9,))
  with dj.checkpoint.Checkpoints(folder) as checkpoints:
    for step in (1, 2):
      checkpoints.save(state.replace(step=jnp.int32(step)))
  return folder, state


@pytest.mark.parametrize("harm", [flip, tear, lambda path: path.unlink()])
def test_harm_to_any_file_is_noticed(harm, saved, tmp_path):
  folder, state = saved
  files = [
    path.relative_to(folder)
    for path in (folder / "2" / "default").rglob("*")
    # The mark of completeness and the checksums themselves say nothing of
    # the arrays.
    if path.is_file()
    and path.name not in ("commit_success.txt", "checksums.json")
  ]
  assert len(files) > 8
  for number, path in enumerate(files):
    copy = shutil.copytree(folder, tmp_path / str(number))
    harm(copy / path)
    told = []
    with dj.checkpoint.Checkpoints(copy) as checkpoints:
      back = checkpoints.restore(state, tell=told.append)
    assert int(back.step) == 1 and len(told) == 1, path


def test_a_damaged_checkpoint_asked_for_by_its_step_is_an_error(
  saved, tmp_path
):
  folder, state = saved
  copy = shutil.copytree(folder, tmp_path / "c")
  flip(largest(copy / "2"))
  with dj.checkpoint.Checkpoints(copy, read_only=True) as checkpoints:
    message = r"checkpoint 2 in .*c is damaged: .* has changed since"
    with pytest.raises(dj.checkpoint.Damaged, match=message):
      checkpoints.restore(state, step=2)
    assert int(checkpoints.restore(state, step=1).step) == 1


def test_a_damaged_checkpoint_that_an_option_names_can_be_left_out(
  whole, tmp_path, capsys
):
  workdir = shutil.copytree(whole, tmp_path / "run")
  flip(largest(workdir / "checkpoints" / "4"))
  line = refused(capsys, sample, f"--workdir={workdir}", "--checkpoint=4")
  assert f"checkpoint 4 in {workdir}" in line and "has changed" in line
  assert line.endswith("leave out --checkpoint to take the newest whole one")


def test_checkpoints_are_read_outside_of_traces(saved):
  folder, state = saved
  with (
    dj.checkpoint.Checkpoints(folder, read_only=True) as checkpoints,
    pytest.raises(ValueError, match="a checkpoint .* outside, and"),
  ):
    jax.jit(lambda: checkpoints.restore(state).params)()


def names_in(folder):
  return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_where_all_are_damaged_nothing_changes(saved, tmp_path):
  folder, state = saved
  copy = shutil.copytree(folder, tmp_path / "c")
  for step in (1, 2):
    flip(largest(copy / str(step)))
  before = names_in(copy)
  for _ in range(2):  # the second time is refused as the first was
    with (
      pytest.raises(ValueError, match="every checkpoint in .* is damaged"),
      dj.checkpoint.Checkpoints(copy) as checkpoints,
    ):
      checkpoints.restore(state, tell=str)
    assert names_in(copy) == before


def test_files_that_were_never_written_are_no_damage(saved, tmp_path):
  folder, state = saved
  copy = shutil.copytree(folder, tmp_path / "c")
  for place in (copy, copy / "2", copy / "2/default", copy / "2/default/d"):
    for name in (".DS_Store", "Thumbs.db", ".nfs0001"):
      (place / name).write_text("not ours")
    (place / "@eaDir").mkdir()
  with dj.checkpoint.Checkpoints(copy) as checkpoints:
    assert int(checkpoints.restore(state).step) == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_the_system_does_not_let_be_read_is_not_damaged(
  number, saved, tmp_path, monkeypatch
):
  folder, state = saved
  copy = shutil.copytree(folder, tmp_path / "c")
  before, told = names_in(copy), []

  def refused(path):
    raise OSError(number, os.strerror(number), str(path))

  with dj.checkpoint.Checkpoints(copy) as checkpoints:
    with monkeypatch.context() as patch:
      patch.setattr(dj.checksums, "_checksum", refused)
      with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        checkpoints.restore(state, tell=told.append)
    assert names_in(copy) == before and not told
    assert int(checkpoints.restore(state).step) == 2


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_checksums_that_are_none_are_damage(text, saved, tmp_path):
  folder, state = saved
  copy = shutil.copytree(folder, tmp_path / "c")
  (copy / "2" / "default" / "checksums.json").write_text(text)
  with (
    dj.checkpoint.Checkpoints(copy, read_only=True) as checkpoints,
    pytest.raises(dj.checkpoint.Damaged, match="checksums.json"),
  ):
    checkpoints.restore(state)


def test_a_full_disk_is_noticed_before_anything_is_written(
  saved, tmp_path, monkeypatch
):
  folder, state = saved
  copy = shutil.copytree(folder, tmp_path / "c")
  usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
  with (
    pytest.raises(
      OSError, match="No space left for a checkpoint: it takes 0.2"
    ),
    dj.checkpoint.Checkpoints(copy) as checkpoints,
  ):
    checkpoints.save(state.replace(step=jnp.int32(3)))
  with dj.checkpoint.Checkpoints(copy) as checkpoints:
    assert int(checkpoints.restore(state).step) == 2


REFUSED = (
  OSError(errno.ENOSPC, "No space left on device"),
  ValueError(  # tensorstore's
    f"RESOURCE_EXHAUSTED: Error writing {200 * 'x'}: Failed to write 9 bytes "
    f"to file 13: No space left on device [os_error_code='{errno.ENOSPC}']"
  ),
)


@pytest.mark.parametrize("error", REFUSED, ids=["system", "tensorstore"])
def test_a_disk_that_fills_up_during_a_save_is_one_line(
  error, few_numbers, tmp_path, capsys, caplog, monkeypatch
):
  def fails(_):
    # As a write that fails after Orbax has given up, in a thread of C++.
    closed = RuntimeError("Event loop is closed")
    sys.unraisablehook(types.SimpleNamespace(exc_value=closed))
    raise error

  monkeypatch.setattr(dj.checkpoint.checksums, "write", fails)
  monkeypatch.setattr(os, "_exit", sys.exit)
  lost = []
  monkeypatch.setattr(sys, "unraisablehook", lost.append)
  with pytest.raises(SystemExit) as stop:
    command(train, *BLIND, f"--workdir={tmp_path}/r", "--config.num_steps=4")
  assert stop.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert re.search(
    r"^error: a checkpoint could .*: .*No space left.* device; f", line
  )
  assert not caplog.records and not lost
  assert sys.unraisablehook == lost.append


def test_what_a_killed_save_left_is_cleared_by_the_next_writer_only(
  saved, tmp_path
):
  copy = shutil.copytree(saved[0], tmp_path / "c")
  rest = shutil.copytree(copy / "2", copy / "3.orbax-checkpoint-tmp")
  with dj.checkpoint.Checkpoints(copy, read_only=True) as checkpoints:
    assert checkpoints.latest_step() == 2
  assert rest.exists()
  with dj.checkpoint.Checkpoints(copy) as checkpoints:
    assert checkpoints.latest_step() == 2
    assert not rest.exists()


# ---------------------------------------------------------- run directory


def test_a_kill_while_a_run_is_described_leaves_what_may_be_taken(
  tmp_path, monkeypatch
):
  run, replace = tmp_path / "run", directory.replace

  def killed(path, text):
    if path.name == "config.json":
      raise KeyboardInterrupt
    replace(path, text)

  with directory.opened(run), monkeypatch.context() as patch:
    patch.setattr(directory, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      directory.describe_run(run, {}, {})
  assert not directory.is_run(run)
  with directory.opened(run):
    directory.describe_run(run, {}, {})
  assert directory.is_run(run)


def test_a_mounted_or_linked_or_hidden_nothing_can_be_a_run(
  tmp_path, monkeypatch
):
  volume = tmp_path / "volume"
  (volume / "lost+found").mkdir(parents=True)
  (volume / ".DS_Store").touch()
  (tmp_path / "link").symlink_to(volume)

  def refused(*_, **__):
    raise PermissionError(errno.EACCES, "the parent cannot be written")

  # As in a container: the directory is there, all that is above is not ours.
  monkeypatch.setattr(directory.pathlib.Path, "rename", refused)
  with directory.opened(tmp_path / "link"):
    directory.describe_run(tmp_path / "link", {}, {})
  assert directory.is_run(volume)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda path: path.write_text(""), "is a file"),
    (lambda path: path.symlink_to("nothing"), "is a broken link"),
    (lambda path: path.mkdir() or (path / "data.json").touch(), "not empty"),
    (lambda path: path.mkdir() or (path / "thesis.tex").touch(), "not empty"),
  ],
)
def test_what_else_there_is_stays_as_it_is(make, message, tmp_path):
  make(tmp_path / "run")
  before = names_in(tmp_path)
  with (
    pytest.raises(ValueError, match=message),
    directory.opened(tmp_path / "run"),
  ):
    pass
  assert names_in(tmp_path) == before


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (os.fsdecode(b"caf\xe9"), "is not UTF-8"),
    ("mine\nrun", r"'.*mine\\nrun'` has a control character: rename"),
    ("mine [1]", "Orbax takes \\[ in a path for a pattern"),
    ("what?/run", "Orbax takes \\? in"),
  ],
)
def test_a_name_that_loses_checkpoints_is_refused(name, message, tmp_path):
  with (
    pytest.raises(ValueError, match=message),
    directory.opened(tmp_path / name),
  ):
    pass
  assert not list(tmp_path.iterdir())


def test_other_names_keep_their_checkpoints(saved, tmp_path):
  state = saved[1]
  with dj.checkpoint.Checkpoints(tmp_path / "a b #:%é&=~$'") as checkpoints:
    checkpoints.save(state.replace(step=jnp.int32(1)))
    checkpoints.wait()
    assert int(checkpoints.restore(state).step) == 1
  # A run may be read where it could not be written.
  moved = shutil.copytree(saved[0], tmp_path / "mine [1] *?")
  with dj.checkpoint.Checkpoints(moved, read_only=True) as checkpoints:
    assert int(checkpoints.restore(state).step) == 2


# ---------------------------------------------------------------- going on


DIGITS = {
  "name": "digits", "path": None, "examples": 1797, "image_shape": [8, 8, 1],
  "num_classes": 10, "class_names": list("0123456789"), "fingerprint": "a",
}  # fmt: skip


@pytest.fixture
def begun(tmp_path):
  """A directory, as a start of the smoke run leaves it, and its opener."""

  def begin(name="run", step=None, imported=False, objective=(), **data):
    run = tmp_path / name
    run.mkdir()
    config = directory.config_json(config_of(objective=dict(objective)))
    directory.describe_run(run, config, DIGITS | data)
    if imported:
      (run / "imported.json").write_text("{}")
    if step is not None:
      (run / "checkpoints" / str(step)).mkdir(parents=True)
    return run

  return begin


def lr(config, value):
  config.optim.lr = value
  return config


def test_what_has_learnt_nothing_yet_may_be_begun_otherwise(begun):
  other = lr(config_of(seed=1), 0.5)
  changes = continuing.check(begun(), other, DIGITS | {"fingerprint": "b"})
  assert changes == {
    "optim.lr": (0.002, 0.5), "seed": (0, 1), "fingerprint": ("a", "b"),
  }  # fmt: skip
  for name in ("10", "damaged-10"):
    run = begun(name, name)
    with pytest.raises(ValueError, match="optim.lr is 0.002 there and 0.5 he"):
      continuing.check(run, other, DIGITS)


def test_weights_that_were_imported_keep_their_network_until_they_learn(begun):
  run = begun(step=0, imported=True)
  data = DIGITS | {"fingerprint": "b", "num_classes": 3}
  assert not continuing.check(run, lr(config_of(), 0.5), data)
  with pytest.raises(ValueError, match="model.channels is 16 there and 8 here"):
    continuing.check(run, config_of(model={"channels": 8}), data)
  with pytest.raises(ValueError, match="image_shape is"):
    continuing.check(run, config_of(), data | {"image_shape": [4, 4, 1]})


def test_the_fingerprint_says_what_data_are_and_not_their_path(begun):
  run = begun(step=10, path="/old/data")
  moved = DIGITS | {"path": "/new/data", "name": "other"}
  config = config_of(data={"name": "/new/data", "size": (8,)})
  assert continuing.check(run, config, moved) == {
    "path": ("/old/data", "/new/data")
  }
  with pytest.raises(ValueError, match="fingerprint is 'a' there.*`new_data`"):
    continuing.check(run, config, moved | {"fingerprint": "b"})


CROPS = "data.random_crop is False there and True here"


@pytest.mark.parametrize(
  ("objective", "changes", "message"),
  [
    ({}, {"data": {"random_crop": True}}, CROPS),
    ({}, {"sampling": {"spacing": "even", "apg": {"eta": 0.0}}}, None),
    (
      {"name": "distillation"},
      {"sampling": {"spacing": "even", "sampler": "heun"}},
      "sampling.sampler is 'ancestral' .*; sampling.spacing is None there and",
    ),
    ({"name": "distillation"}, {"sampling": {"apg": {"eta": 0.0}}}, None),
    (
      {"name": "meanflow", "teacher": True, "guidance": 2.0},
      {"sampling": {"apg": {"eta": 0.0}, "spacing": "even"}},
      "configuration: sampling.apg.eta is None there and 0.0 here. Change",
    ),
  ],
)
def test_what_the_objective_reads_may_not_change(
  begun, objective, changes, message
):
  run = begun(step=10, objective=objective)
  config = config_of(objective=objective)
  config.update(changes)
  if message is None:
    assert not continuing.check(run, config, DIGITS)
    return
  with pytest.raises(ValueError, match=message):
    continuing.check(run, config, DIGITS, new_data=True)


def test_other_data_go_on_where_that_is_asked_for(begun):
  run = begun(step=10)
  fewer = DIGITS | {"examples": 1796, "fingerprint": "b"}
  config = config_of(data={"name": "digits", "skip_broken": True})
  changes = continuing.check(run, config, fewer, new_data=True)
  assert changes == {"examples": (1797, 1796), "fingerprint": ("a", "b")}
  continuing.note(run, 10, changes)
  row = json.loads((run / "changes.jsonl").read_text())
  assert row == {
    "step": 10, "examples": [1797, 1796], "fingerprint": ["a", "b"],
  }  # fmt: skip
  with pytest.raises(ValueError, match="image_shape is"):
    other = fewer | {"image_shape": [8, 8, 3]}
    continuing.check(run, config, other, new_data=True)
  # What it would not help is not offered it.
  with pytest.raises(ValueError, match="another `workdir`$"):
    continuing.check(run, config, other)


def test_the_end_of_the_decay_moves_with_that_of_the_run(begun):
  config = config_of(num_steps=40)
  with pytest.raises(ValueError, match="rate is 0: set .*decay_steps=40"):
    checks.check(config, processes.schedule(config))
  config.optim.decay_steps = 40
  checks.check(config, processes.schedule(config))
  changes = continuing.check(begun(step=20), config, DIGITS)
  assert changes == {"optim.decay_steps": (20, 40)}


def test_a_run_on_devices_that_its_batch_does_not_fit_hears_what_would(begun):
  run, config = begun(step=10), config_of(batch_size=9, micro_batches=2)
  with pytest.raises(ValueError, match="the nearest are 8 and 10"):
    setup.training_mesh(config, run.with_name("new"))
  config.batch_size, config.micro_batches = 8, 1
  devices = jax.devices() * 3
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(ValueError, match="go on with 1 or 2 devices"):
      setup.training_mesh(config, run)


def test_files_are_replaced_whole(tmp_path, monkeypatch):
  path = tmp_path / "x.json"
  path.write_text("old")

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(directory.pathlib.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      directory.replace(path, "new")
  assert path.read_text() == "old"
  directory.replace(path, "new")
  assert path.read_text() == "new"


def test_where_it_is_computed_may_change(whole, capsys):
  flags = (
    "--config.fsdp=True", "--config.steps_per_dispatch=2",
    "--config.model.remat=True",
  )  # fmt: skip
  command(train, *BLIND, f"--workdir={whole}", "--config.num_steps=8", *flags)
  assert "complete after 8 steps" in capsys.readouterr().out


def test_a_run_of_before_a_key_was_there_goes_on(whole, tmp_path, capsys):
  workdir = shutil.copytree(whole, tmp_path / "run")
  config = directory.read_json(workdir, "config")
  del config["steps_per_dispatch"], config["optim"]["decay"]
  del config["label_dropout"]
  directory.replace(workdir / "config.json", json.dumps(config))
  command(train, *BLIND, f"--workdir={workdir}", "--config.num_steps=8")
  assert "complete after 8 steps" in capsys.readouterr().out


# ------------------------------------------------------------------ blocks


def config_of(**changes):
  config = digits.get_config("smoke")
  config.update(changes)
  return config


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7])
def test_blocks_cover_every_step_and_stop_where_something_is_due(most):
  every = {"log": 6, "preview": 12, "checkpoint": 9}
  config = config_of(num_steps=50, steps_per_dispatch=most, every=every)
  found = list(stepping.blocks(config, 0, iter(range(100))))
  assert [b for _, block in found for b in block] == list(range(50))
  ends = [end for end, _ in found]
  assert {n for n in range(1, 51) if stepping.actions(config, n)} <= set(ends)
  assert {len(block) for _, block in found} <= {1, most}
  # How steps are grouped does not depend on where a run goes on.
  for cut, (end, _) in enumerate(found[:-1], start=1):
    rest = stepping.blocks(config, end, iter(range(end, 100)))
    assert list(rest) == found[cut:]


def test_a_step_is_traced_and_compiled_once_and_before_there_is_a_state(
  few_numbers, tmp_path
):
  seen = []

  def listen(event, _, fun_name="", **__):
    part = event.rpartition("/")[-1].removesuffix("_duration")
    if fun_name in ("train_block", "jit(train_block)", "jit(init)"):
      seen.append((part, fun_name))

  def programs():
    traced = seen.count(("jaxpr_trace", "train_block"))
    compiled = [name for part, name in seen if part == "backend_compile"]
    seen.clear()
    return traced, compiled

  flags = (*BLIND, f"--workdir={tmp_path}/run")
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    command(train, *flags, "--config.num_steps=4")
    assert programs() == (1, ["jit(train_block)", "jit(init)"])
    command(train, *flags, "--config.num_steps=8")
    assert programs() == (1, ["jit(train_block)"])
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_block_of_steps_is_one_dispatch_with_the_same_result(
  whole, tmp_path, monkeypatch
):
  sizes = []
  build = setup.build

  def counted(*args, **shown):
    run = build(*args, **shown)
    block = run.train_block

    def train_block(state, batches, key):
      sizes.append(len(batches["label"]))
      return block(state, batches, key)

    monkeypatch.setattr(train_block, "lower", block.lower, raising=False)
    return setup.dataclasses.replace(run, train_block=train_block)

  monkeypatch.setattr(setup, "build", counted)
  flags = (
    "--config.num_steps=8", "--config.steps_per_dispatch=4",
    "--config.every.log=4",
  )  # fmt: skip
  command(train, *BLIND, f"--workdir={tmp_path}/run", *flags)
  assert sizes == [4, 4]
  chex.assert_trees_all_close(
    params_of(tmp_path / "run"), params_of(whole), atol=1e-6
  )


# ----------------------------------------------------------------- dry run


def test_a_dry_run_says_what_is_needed_and_writes_nothing(tmp_path, capsys):
  command(train, *TINY, f"--workdir={tmp_path}/run", "--dry_run")
  out = capsys.readouterr().out.splitlines()[-3:]
  net = dj.UNet(channels=8, multipliers=(1,), num_blocks=1, attention_levels=())
  params = jax.eval_shape(
    net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1)
  )
  count = sum(x.size for x in jax.tree.leaves(params))
  assert out[0].startswith(f"{count:,} parameters; 1 x ")
  assert "FLOP per step of 32 images" in out[1]
  kB = 4 * count / 1000
  assert f"{kB:.3g} kB parameters, {kB:.3g} kB averages" in out[2]
  assert f"{2 * kB + 0.008:.3g} kB optimizer" in out[2]  # and two counts
  assert not list(tmp_path.iterdir())


def test_remat_keeps_less_for_the_gradient_and_changes_none():
  x = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))

  def loss_and_params(remat):
    net = dj.UNet(
      channels=8, multipliers=(1,), num_blocks=1, attention_levels=(),
      remat=remat,
    )  # fmt: skip
    # The last layers of branches start at zero and would hide the rest.
    params = jax.jit(
      lambda key: jax.tree.map(
        lambda p: p + 0.01, net.init(key, x, jnp.ones(8))
      )
    )(jax.random.key(0))
    return lambda params: (
      net.apply(params, x, jnp.ones(8)) ** 2
    ).mean(), params

  def kept(loss, params):
    backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))

  plain, again = loss_and_params(False), loss_and_params(True)
  chex.assert_trees_all_equal(plain[1], again[1])
  assert kept(*again) < 0.3 * kept(*plain)
  gradients = [
    jax.jit(jax.grad(loss))(params) for loss, params in (plain, again)
  ]
  chex.assert_trees_all_close(*gradients, rtol=1e-3, atol=1e-5)


# ----------------------------------------------------------------- devices


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES, .*is not"),
    ({"JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROC.*is not"),
    (
      {
        "JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two",
        "JAX_PROCESS_ID": "0",
      },
      "must be whole numbers",
    ),
  ],
)  # fmt: skip
def test_half_a_pod_is_refused(settings, message, monkeypatch, capsys):
  for name, value in settings.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(SystemExit) as stop:
    devices.start()
  assert_one_error(stop, capsys, message)


@pytest.mark.slow
def test_a_soak_ends_with_the_same_bits(tmp_path):
  told = []
  wrong = soak.soak(
    tmp_path / "soak", kills=2, steps=150, seed=1, tell=told.append
  )
  assert not wrong, told


def test_a_run_of_an_earlier_layout_goes_on_to_the_same_numbers(tmp_path):
  # Four steps by the first release; what it came to after eight is beside it.
  with tarfile.open(reference.DATA / "run.tar.xz") as archive:
    archive.extractall(tmp_path, filter="data")
  workdir = tmp_path / "run"
  command(
    train, f"--workdir={workdir}", "--config.num_steps=8",
    "--config.preview.num=0",
  )  # fmt: skip
  params = params_of(workdir)
  got = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
  want = reference.load("run_step8")["params"]
  # A learning rate of 2e-3 and 8 updates: the last bits of another compiler.
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
