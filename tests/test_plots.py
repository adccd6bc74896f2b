"""Figures: labelled, finite, and showing what they are said to show."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax import plots, schedules

LINEAR, COSINE = schedules.linear(100), schedules.cosine(100)
POINTS = np.random.default_rng(0).normal(size=(3, 20, 2))
PICTURES = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8, 1))

FIGURES = {
  "schedules": lambda: plots.schedules({"linear": LINEAR, "cosine": COSINE}),
  "curves": lambda: plots.curves(
    {"a": ([1, 2], [3, 4])}, xlabel="step $t$", ylabel="bits/dim", log="y"
  ),
  "loss_by_step": lambda: plots.loss_by_step(
    np.arange(1, 101), {"simple": np.linspace(1, 2, 100)}, T=100
  ),
  "plane": lambda: plots.plane(POINTS, titles="abc", shade=POINTS[0, :, 0]),
  "paths": lambda: plots.paths(POINTS, points=POINTS[0]),
  "heatmaps": lambda: plots.heatmaps(
    {"a": np.eye(3)}, xlabel="column", ylabel="row", label="share"
  ),
  "embedding": lambda: plots.embedding(100, 16),
}


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_labelled_and_data_finite(name):
  figure = FIGURES[name]()
  assert isinstance(figure, matplotlib.figure.Figure)
  assert figure.canvas.manager is None  # no pyplot behind it
  first = figure.axes[0]
  assert first.get_ylabel()
  for axes in figure.axes:
    assert axes.get_xlabel() or axes.get_ylabel()  # a colour bar has one
    for line in axes.lines:
      assert np.isfinite(line.get_xydata()).all()
    for points in axes.collections:
      assert np.isfinite(np.asarray(points.get_offsets())).all()


@pytest.mark.parametrize("name", ["schedules", "plane", "heatmaps"])
def test_the_readers_own_style_changes_nothing(name):
  def pixels():
    figure = FIGURES[name]()
    canvas = matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())

  usual = pixels()
  with matplotlib.style.context("dark_background"):
    np.testing.assert_array_equal(pixels(), usual)
  assert (usual[0, 0] == 255).all()  # white, not transparent


def test_schedules_are_drawn_as_they_are():
  left, right = FIGURES["schedules"]().axes
  for line, schedule in zip(left.lines, (LINEAR, COSINE), strict=True):
    t, abar = line.get_xydata().T
    np.testing.assert_allclose(t, np.arange(101) / 100)
    np.testing.assert_allclose(abar, schedule.alpha**2, rtol=1e-6)
  assert [line.get_label() for line in right.lines] == ["linear", "cosine"]
  np.testing.assert_allclose(right.lines[0].get_ydata(), LINEAR.log_snr[1:])


def test_names_stand_where_lines_end_and_do_not_overlap():
  lines = {n: ([1, 2, 3], [1, 2, 5 + k / 50]) for k, n in enumerate("abc")}
  lines["d"] = ([1, 2], [3, 1], [0.5, 0.5])
  figure = plots.curves(lines, xlabel="x", ylabel="y", ends=True)
  axes = figure.axes[0]
  assert axes.get_legend() is None
  (band,) = axes.collections
  assert band.get_datalim(axes.transData).y0 == 0.5
  names = sorted(axes.texts, key=lambda text: text.get_position()[1])
  assert [name.get_text() for name in names] == list("dabc")
  boxes = [name.get_window_extent() for name in names]
  assert all(a.y1 < b.y0 for a, b in zip(boxes, boxes[1:], strict=False))
  end = axes.transData.transform((2, 1))[1]
  assert abs(end - (boxes[0].y0 + boxes[0].y1) / 2) < 3


def test_lines_differ_without_colour():
  names = "abcdef"
  figure = plots.curves(
    {n: ([0, 1], [0, 1]) for n in names}, xlabel="x", ylabel="y"
  )
  dashes = {str(line._unscaled_dash_pattern) for line in figure.axes[0].lines}
  assert len(dashes) == len(names)


def test_a_few_numbers_on_a_logarithmic_axis_are_named():
  figure = plots.curves(
    {"a": ([5, 10], [1, 2]), "b": ([5, 10, 40], [1, 2, 3])},
    xlabel="calls", ylabel="error", log="xy",
  )  # fmt: skip
  named = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
  assert named == ["5", "10", "40"]


def test_a_logarithmic_axis_of_one_or_two_decades_has_plain_numbers():
  figure = plots.curves(
    {"a": ([1, 2], [30, 300])}, xlabel="minutes", ylabel="distance", log="y"
  )
  named = {tick.get_text() for tick in figure.axes[0].get_yticklabels()}
  assert {"50", "100", "200"} <= named


def test_loss_by_step_is_mean_and_standard_error():
  # Two bins: losses 1, 3 (mean 2, error 1) and 10, 10 (mean 10, no error).
  figure = plots.loss_by_step(
    [1, 5, 6, 10], {"": [1.0, 3.0, 10.0, 10.0]}, T=10, bins=2
  )
  (line,) = figure.axes[0].lines
  np.testing.assert_allclose(line.get_xydata(), [[3, 2], [8, 10]])
  bars = figure.axes[0].collections[0].get_segments()
  np.testing.assert_allclose(bars[0], [[3, 1], [3, 3]])
  np.testing.assert_allclose(bars[1], [[8, 10], [8, 10]])


def test_pictures_keep_their_places():
  figure = plots.pictures(PICTURES, titles="abc", labels=["up", "down"])
  shown = [axes.images[0].get_array()[..., 0] for axes in figure.axes]
  want = dj.images.to_uint8(PICTURES.reshape(6, 8, 8))
  np.testing.assert_array_equal(shown, want)
  assert [axes.get_title() for axes in figure.axes] == [*"abc", "", "", ""]
  assert figure.axes[3].get_ylabel() == "down"


def test_colour_and_one_row():
  row = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3))
  figure = plots.pictures(row)
  shown = figure.axes[2].images[0].get_array()
  np.testing.assert_array_equal(shown, dj.images.to_uint8(row[2]))


def test_white_is_zero_where_signs_differ():
  figure = plots.heatmaps(
    {"a": [[-1.0, 3.0]], "b": [[0.0, 1.0]]}, xlabel="", ylabel="", label=""
  )
  limits = {axes.images[0].get_clim() for axes in figure.axes[:2]}
  assert limits == {(-3, 3)}


def test_panels_of_one_sign_share_a_scale():
  figure = plots.heatmaps(
    {"a": [[1.0, 3.0]], "b": [[2.0, 9.0]]}, xlabel="", ylabel="", label=""
  )
  assert {axes.images[0].get_clim() for axes in figure.axes[:2]} == {(1, 9)}


@pytest.mark.parametrize(
  "draw, message",
  [
    (
      lambda: plots.curves({}, xlabel="x", ylabel="y"),
      r"no lines to draw; pass {name: \(x, y\)}",
    ),
    (
      lambda: plots.curves(
        {n: ([0], [0]) for n in "abcdefg"}, xlabel="x", ylabel="y"
      ),
      "7 lines cannot be told apart; draw at most 6",
    ),
    (
      lambda: plots.pictures(np.zeros((8, 8, 1))),
      r"pictures have shape \(8, 8, 1\); pass \[K, H, W, C\]",
    ),
    (
      lambda: plots.pictures(PICTURES, titles="ab"),
      "2 titles for 3 of them",
    ),
    (
      lambda: plots.paths(np.zeros((0, 5, 2))),
      r"paths have shape \(0, 5, 2\); .* draw samples with keep=",
    ),
    (lambda: plots.paths(np.zeros((5, 2))), r"\(5, 2\); pass \[K, B, 2\]"),
  ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
  with pytest.raises(ValueError, match=message):
    draw()


def test_the_library_does_without_matplotlib_until_it_draws():
  code = "import sys, diffusion_jax; sys.exit('matplotlib' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_traced_way_can_be_drawn():
  _, way = dj.sample(
    dj.ancestral_step, dj.mixtures.predictor(LINEAR, dj.mixtures.swiss_roll(9)),
    LINEAR, (5, 2), jax.random.key(0), keep=(99, 0),
  )  # fmt: skip
  figure = plots.paths(way.x, num=4)
  assert len(figure.axes[0].lines) == 4
  np.testing.assert_allclose(
    figure.axes[0].lines[3].get_xydata(), jnp.asarray(way.x[:, 3])
  )
