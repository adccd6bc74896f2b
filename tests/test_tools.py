"""Tools that refuse before any work what they could not do after it."""

import pytest
from commands import refused

from experiments.tools import soak, solvers


@pytest.mark.parametrize(
  ("tool", "flags", "message"),
  [
    (solvers, ["--out={0}/x.xyz"], "x.xyz must end in .png"),
    (solvers, ["--out={0}/file/x.png"], "is a file; name another place"),
    (soak, [], "--workdir is missing"),
    (soak, ["--workdir={0}/file/x"], "is a file; choose another --workdir"),
    (soak, ["--workdir={0}"], "is not empty; choose another --workdir"),
    (soak, ["--workdir=/proc/x"], "--workdir=/proc/x: /proc cannot be written"),
    (soak, ["--workdir={0}/x", "--steps=0"], "--steps=0"),
  ],
)
def test_what_cannot_work_is_refused_before_work(
  tool, flags, message, tmp_path, capsys, monkeypatch
):
  def never(*_, **__):
    raise AssertionError("began to work")

  monkeypatch.setattr(solvers, "problems", never)
  monkeypatch.setattr(soak, "soak", never)
  (tmp_path / "file").touch()
  assert message in refused(capsys, tool, *(f.format(tmp_path) for f in flags))
