"""experiments.report, as a user runs it."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
import toy
from browser import CHROMIUM, Browser
from commands import TINY, assert_one_error, command
from PIL import Image

import diffusion_jax as dj
from diffusion_jax.runs import directory, planning
from diffusion_jax.runs.options import SamplingOptions
from experiments import train
from experiments.configs import common, digits
from experiments.report import (
  __main__ as report,
  charts,
  findings,
  neighbours,
  record,
  sections,
)
from experiments.report.pictures import picture

pytestmark = pytest.mark.usefixtures("few_numbers")

NASTY = "<b>&\"'"  # a folder may be called so, and its classes
CLASSES = ("<i>one", "t&w\"o'")
VOID = {"meta", "link", "img", "source", "br"}


class Page(html.parser.HTMLParser):
  """Checks that elements are nested; keeps what is looked for."""

  def __init__(self, text):
    super().__init__()
    self.open, self.elements, self.text = [], [], ""
    self.feed(text)
    self.close()
    assert not self.open, f"never closed: {self.open}"

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != "style":
      self.text += data

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


def shown(workdir, *flags):
  out = workdir.parent / "page.html"
  command(report, f"--workdir={workdir}", f"--out={out}", *flags)
  return Page(out.read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A short run on colour pictures whose names are full of markup."""
  root = tmp_path_factory.mktemp("report")
  rng = np.random.default_rng(0)
  for name in CLASSES:
    (root / NASTY / name).mkdir(parents=True)
    for k in range(4):
      x = rng.integers(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(x).save(root / NASTY / name / f"{k}.png")
  workdir = root / f"run {NASTY}"
  with toy.networks():
    command(
      train,
      *TINY,
      f"--workdir={workdir}",
      f"--config.data.name={root / NASTY}",
      "--config.preview.frechet=True",
      "--config.preview.sampler=ddim",  # compiles faster
      "--config.batch_size=4",
      "--config.num_steps=8",
    )
  rows = [
    {"step": 4, "frechet": 12.5, "fid": 3.25, "eta": None, "guidance": 2.0},
    {"step": 8, "new_score": 0.125, "classes": dict.fromkeys(CLASSES, 3)},
  ]
  (workdir / "evaluation.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  return workdir


@pytest.fixture(scope="module")
def whole_and_curves(trained):
  """Its page, and the loss curves that it shows."""
  kept, loss_curves = {}, findings.loss_curves

  def keep(plan, source):
    kept.update(loss_curves(plan, source))
    return kept

  with toy.networks(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(findings, "loss_curves", keep)
    command(report, f"--workdir={trained}", "--num=8")
  return trained / "report.html", kept


@pytest.fixture(scope="module")
def whole(whole_and_curves):
  return whole_and_curves[0]


def test_the_loss_curve_spans_all_of_t(whole_and_curves):
  _, curves = whole_and_curves
  assert list(curves) == ["raw", "ema0.995"]
  for curve in curves.values():
    assert (curve.t[0], curve.t[-1]) == (1, 1000)
    assert (np.diff(curve.t) > 0).all() and len(curve.t) == findings.STEPS
    # Hardly trained: a network that knows nothing scores 1.
    assert (np.abs(curve.mean - 1) < 0.5).all()


def test_the_loss_curves_are_of_the_checkpoint_that_was_asked_for(trained):
  def curves(**asked):
    plan = planning.plan(trained, SamplingOptions(num=1, steps=2, **asked))
    return findings.loss_curves(plan, dj.data.load(plan.config.data.name))

  older, newer = (curves(checkpoint=k, ema="raw")["raw"].mean for k in (4, 8))
  assert (older != newer).any()
  np.testing.assert_array_equal(curves(checkpoint=4)["raw"].mean, older)


def test_the_page_is_one_small_file_with_all_parts(whole):
  page = Page(whole.read_text())
  assert whole.stat().st_size < 2_000_000
  assert [a["id"] for a in page.all("section")] == [
    "samples", "from-noise-to-samples", "training", "colours-and-contrast",
    "loss-against-t", "nearest-pictures-of-the-data", "evaluations",
    "how-it-was-made",
  ]  # fmt: skip
  assert not [a for _, a in page.elements if a.get("class") == "missing"]
  # Nothing is asked of the network, and nothing is run.
  for _, attributes in page.elements:
    for name in ("src", "srcset", "href"):
      assert attributes.get(name, "#").startswith(("data:", "#"))
  assert not page.all("script") and "@import" not in whole.read_text()
  assert "url(" not in whole.read_text()
  assert all(image["alt"] for image in page.all("img"))
  assert all(svg["aria-label"] for svg in page.all("svg"))
  charted = [svg["aria-label"].split(":")[0] for svg in page.all("svg")]
  assert charted == [
    "Loss", "Gradient norm", "Parameter norm", "Speed",
    "Drift of the raw parameters", "Drift of the average, rate 0.995",
    "Saturated values", "Average and newest parameters",
    "Fréchet distance of random features", "Loss against t",
    "Distance to the nearest picture of the data",
  ]  # fmt: skip
  assert page.all("html") == [{"lang": "en"}]


def test_names_are_text_whatever_they_hold(whole):
  page = Page(whole.read_text())
  assert not page.all("b") and not page.all("i")
  assert f"run {NASTY}" in page.text  # the heading
  assert f"{NASTY}: 8 images" in page.text  # the data
  for name in CLASSES:
    assert name in page.text


def test_every_evaluation_is_a_row_whatever_its_keys(whole):
  page = Page(whole.read_text())
  table = page.text[page.text.index("How it was made") :]
  figures = ("frechet12.5", "fid3.25", "new_score0.125")
  places = [table.index(figure) for figure in figures]
  assert places == sorted(places)  # the newest is last
  assert "guidance2" in table
  html = whole.read_text()
  start, end = (
    html.index('id="evaluations"'),
    html.index('id="how-it-was-made"'),
  )
  assert ">guidance<" in html[start:end] and ">eta<" not in html[start:end]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_it(whole, tmp_path):
  with Browser(tmp_path / "profile") as browser:
    for width, dark in ((390, True), (1100, False)):
      browser.open(whole, width=width, dark=dark)
      wide = "document.documentElement.scrollWidth"
      assert browser.evaluate(wide) <= width
      sizes = browser.evaluate("[...document.images].map(i => i.naturalWidth)")
      assert len(sizes) > 20 and min(sizes) > 0
      assert browser.evaluate("document.title").startswith(f"run {NASTY}: ")
      style = "getComputedStyle(document.body)"
      background = browser.evaluate(f"{style}.backgroundColor")
      brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
      assert (brightness < 150) == dark
      # No text of a chart leaves its figure.
      assert browser.evaluate("""
        [...document.querySelectorAll("svg text")].filter(text => {
          const inner = text.getBoundingClientRect();
          const outer = text.closest("figure").getBoundingClientRect();
          return inner.left < outer.left || inner.right > outer.right;
        }).map(text => text.textContent)""") == []  # fmt: skip
    assert browser.pdf().startswith(b"%PDF")
  reported = ("Log.entryAdded", "Runtime.exceptionThrown")
  assert not [e for e in browser.events if e["method"] in reported]
  assert not [
    e for e in browser.events if e["method"] == "Runtime.consoleAPICalled"
  ]
  asked = {
    event["params"]["request"]["url"].split(":")[0]
    for event in browser.events
    if event["method"] == "Network.requestWillBeSent"
  }
  assert asked == {"file", "data"}


def empty_run(tmp_path, name="empty", **changes):
  """A run that has only just begun."""
  make = common.make_classifier if name == "classifier" else common.make
  config = make(
    **{
      "schedule": {"name": "cosine"},
      "model": {"channels": 8, "multipliers": (1,), "attention_levels": ()},
      **changes,
    }
  )
  workdir = tmp_path / name
  workdir.mkdir()
  data = directory.describe(dj.data.load("digits"), config)
  directory.describe_run(workdir, directory.config_json(config), data)
  return workdir


@pytest.mark.parametrize(
  ("variant", "network", "loss"),
  [
    ("dit", "DiT predicting eps", "simple"),
    ("meanflow", "U-Net predicting flow", "meanflow"),
  ],
)
def test_the_network_and_what_it_learns_are_named(
  tmp_path, variant, network, loss
):
  run = tmp_path / "run"
  run.mkdir()
  config = digits.get_config(variant)
  data = directory.describe(dj.data.load("digits"), config)
  directory.describe_run(run, directory.config_json(config), data)
  facts = sections.headline(record.read(run))
  assert facts["Network"].startswith(network)
  assert facts["Loss"] == loss


def test_what_is_not_there_yet_gets_a_sentence(tmp_path):
  page = shown(empty_run(tmp_path))
  for sentence in (
    "no step of 100,000 logged yet",
    "There are none yet: they come every 5,000 steps.",
    "Nothing is logged yet: a row comes every 100 steps.",
    "No preview has been measured yet",
    "There is no checkpoint yet: one comes every 5,000 steps.",
    "There is none yet; this makes one:",
  ):
    assert sentence in page.text
  assert not page.all("img") and not page.all("svg")


def without_versions(run):
  (run / "versions.json").write_text("[]")
  (run / "imported.json").write_bytes(b"\xff\x80")


def without_data(run):
  config, data = (directory.read_json(run, name) for name in ("config", "data"))
  config["data"]["name"] = "<gone>"
  data["path"] = str(run / "<gone>")
  (run / "config.json").write_text(json.dumps(config))
  (run / "data.json").write_text(json.dumps(data))


def torn(run):
  (run / "samples" / "denoising.gif").write_bytes(b"GIF89a")
  (run / "samples" / "step0000008_raw.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  for name in ("metrics", "previews", "evaluation"):
    with (run / f"{name}.jsonl").open("a") as file:
      file.write('{"step": 9, "lo')


def stopped(run):
  config = directory.read_json(run, "config")
  config["num_steps"] = 20
  (run / "config.json").write_text(json.dumps(config))


def imported(run):
  (run / "metrics.jsonl").unlink()
  stopped(run)
  (run / "imported.json").write_text('{"source": "a<b.pt"}')


def without_preview_figures(run):  # a run of an earlier version
  (run / "previews.jsonl").unlink()


@pytest.mark.parametrize(
  ("change", "sentences"),
  [
    (without_versions, ["No versions were recorded.", "not recorded"]),
    (torn, ["step0000008_raw.png cannot be read.", "Left out by --nonetwork"]),
    (stopped, ["step 8 of 20: under way, or stopped"]),
    (imported, ["imported weights, not trained here", "a<b.pt"]),
    (without_preview_figures, ["No preview has been measured yet"]),
  ],
  ids=lambda value: getattr(value, "__name__", ""),
)
def test_missing_parts_are_named(trained, tmp_path, change, sentences):
  run = tmp_path / "run"
  shutil.copytree(trained, run)
  change(run)
  page = shown(run, "--nonetwork")
  for sentence in sentences:
    assert sentence in page.text


def test_other_data_than_those_of_the_run_are_named(trained, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(trained, run)
  data = directory.read_json(run, "data")
  (run / "data.json").write_text(json.dumps({**data, "fingerprint": "0"}))
  warning = "The data have changed since this run was trained"
  assert warning in shown(run, "--nonetwork").text
  assert warning not in shown(trained, "--nonetwork").text


def test_a_flag_of_zero_is_a_flag(trained):
  values = report.define_flags(report.flags.FlagValues())
  values(["", f"--workdir={trained}", "--eta=0"])
  record = report.read(trained)
  plan = report.plan_or_why_not(values, record)
  assert (plan.options.sampler, plan.options.eta) == ("ddim", 0)


def test_data_that_are_gone_are_named(trained, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(trained, run)
  without_data(run)
  (run / "samples" / "denoising.gif").unlink()  # as before the end of training
  page = shown(run)
  assert f"The data cannot be read here: no data at {run}" in page.text
  assert "Drawn from step 8." in page.text  # the animation needs no data
  assert page.all("source")


def test_a_cascades_samples_lie_beside_the_data_of_its_last_stage(
  zoo, monkeypatch
):
  asked = SamplingOptions(num=4, steps=1, upsampler=zoo.original("upsampler"))
  plan = planning.plan(zoo.original("small"), asked)
  x = dj.data.load("digits").floats(np.arange(4))
  monkeypatch.setattr(findings.drawing, "draw", lambda _: x)
  monkeypatch.setattr(findings, "loss_against_t", lambda _, source: source)
  small = dj.data.load("digits", size=4)
  first, last = report.found_out(plan, small)
  assert first is small
  assert "seed 0), upsampled by upsampler, of which" in last.content["words"]
  captions = [pairing.caption for pairing in last.content["pairings"]]
  assert all(text.startswith("distance 0.00") for text in captions)


def test_a_classifier_has_its_own_curves(tmp_path):
  run = empty_run(tmp_path, "classifier", model={"num_labels": 10})
  rows = [
    {"step": step, "loss": 2.0, "loss_q0": 2.0, "accuracy_q3": 0.1 * step}
    for step in (1, 2)
  ]
  (run / "metrics.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  page = shown(run)
  # It draws nothing, and nothing says that it does not yet.
  assert [a["id"] for a in page.all("section")] == [
    "training", "evaluations", "how-it-was-made",
  ]  # fmt: skip
  charted = [svg["aria-label"].split(":")[0] for svg in page.all("svg")]
  assert charted == ["Loss", "Accuracy"]


def test_large_pictures_make_no_large_page(tmp_path):
  # Noise does not compress: as they are these pictures would take 25 MB.
  run = empty_run(tmp_path)
  noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
  for step in range(12):
    for name in ("raw", "ema0.9", "ema0.99"):
      path = run / "samples" / f"step{step:07}_{name}.png"
      if step:
        path.symlink_to(run / "samples" / f"step0000000_{name}.png")
      else:
        dj.images.save_png(path, noise)
  frames = [np.roll(noise[:300, :300], 7 * k, axis=1) for k in range(4)]
  dj.images.save_gif(run / "samples" / "denoising.gif", frames)
  page = shown(run)
  # Raw and the slowest average, the newest and six over time; the animation
  # and its frames.
  assert len(page.all("img")) == 2 * (1 + 6) + 1 + 4
  assert (tmp_path / "page.html").stat().st_size < 5_000_000


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "--workdir is missing"),
    (["--workdir={run}x"], "no run directory .*; there is"),
    (["--workdir={run}", "--out=a.png"], "a.png must end in .html"),
    (["--workdir={run}", "--ema=0.5"], "'0.5' is not one of raw"),
    (["--workdir={run}", "--guidance=2"], "without label_dropout"),
  ],
)
def test_bad_input_is_one_line_and_status_2(trained, capsys, flags, message):
  with pytest.raises(SystemExit) as stop:
    command(report, *(flag.replace("{run}", str(trained)) for flag in flags))
  assert_one_error(stop, capsys, message)


def test_copies_of_the_data_are_found():
  source = dj.data.load("digits")
  copies = dj.images.from_uint8(source.gather(np.array([5, 700]))["image"])
  found = findings.neighbours_of(copies, source)
  np.testing.assert_array_equal(found.which[:, 0], [5, 700])
  np.testing.assert_allclose(found.distance[:, 0], 0, atol=1e-5)
  np.testing.assert_array_equal(found.pictures[:, 0], found.samples)
  assert (np.diff(found.distance) >= 0).all()
  # No digit is the nearest of itself; no two of these are equal.
  assert len(found.typical) == 512 and found.typical.min() > 0.5


def test_neighbours_are_those_of_brute_force(monkeypatch):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 3, 2, 2), np.uint8)
  source = dj.data.ArraySource(
    name="", image_shape=(3, 2, 2), images=images, labels=np.zeros(40, int)
  )
  x, chosen = images[:7], np.arange(0, 40, 2)
  gap = x[:, None] / 127.5 - images[chosen] / 127.5
  far = np.sqrt((gap**2).sum(axis=(2, 3, 4)))
  for values in (2**24, 60):  # at once, or in parts of five
    monkeypatch.setattr(neighbours, "_VALUES", values)
    which, distance = neighbours.nearest(x, source, chosen, num=3)
    np.testing.assert_allclose(distance, np.sort(far)[:, :3], atol=1e-6)
    np.testing.assert_array_equal(which, chosen[np.argsort(far)[:, :3]])
    own = np.arange(7)
    others, _ = neighbours.nearest(x, source, chosen, num=3, own=own)
    assert (others != own[:, None]).all()
  _, beyond = neighbours.nearest(x, source, chosen[:2], num=3)
  assert np.isinf(beyond[:, 2]).all()


def drawn(*lines, log=False, zero=False):
  """The axes of a chart, and the points of its first line in pixels."""
  axes = charts.figure(
    [charts.prepared(line, log) for line in lines], "", "", log, zero
  ).axes[0]
  return axes, axes.transData.transform(axes.lines[0].get_xydata())


@pytest.mark.parametrize("log", [False, True])
def test_a_line_is_where_its_values_are(log):
  y = np.array([1.0, 10, 100])
  axes, points = drawn(charts.Line("a", [0, 5, 10], y, "main"), log=log)
  assert axes.get_xlim() == (0, 10)
  across, down = np.diff(points, axis=0).T  # equal on a logarithmic axis
  np.testing.assert_allclose(across[1] / across[0], 1)
  np.testing.assert_allclose(down[1] / down[0], 1 if log else 10)


def test_what_cannot_be_drawn_is_left_out():
  options = {"title": "", "x_label": "", "y_label": "", "log": True}
  y = [1.0, 0.0, -1.0, np.nan, np.inf, 2.0]
  _, points = drawn(charts.Line("", range(6), y, "main"), log=True)
  assert len(points) == 2
  nothing = charts.Line("", [1, 2], [0.0, np.nan], "main")
  assert charts.chart([nothing], **options) is None
  for one in ([0.0], [5.0]):
    alone = charts.Line("a", one, [3.0], "main")
    text = charts.chart([alone], **options).svg
    assert "nan" not in text and ">a</text>" in text


def test_long_lines_are_thinned_by_means_and_names_kept_apart():
  y = np.tile([1.0, 3.0], 5000)
  lines = [charts.Line(f"{k}", range(10_000), y, "main") for k in range(6)]
  axes, points = drawn(*lines, zero=True)
  assert len(points) == charts.POINTS and len({y for _, y in points}) == 1
  assert axes.get_ylim()[0] == 0
  boxes = [name.get_window_extent() for name in axes.texts]
  boxes.sort(key=lambda box: box.y0)
  assert len(boxes) == 6
  assert all(a.y1 < b.y0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_a_chart_has_the_colours_and_the_font_of_the_page():
  line = charts.Line("<a>", [1, 2], [1.0, 2.0], "q1", [0.5, 0.5])
  text = charts.chart([line], title="$t", x_label="$x", y_label="$y").svg
  assert "var(--q1)" in text and not re.search("#[0-9a-f]{6}[^0-9a-f]", text)
  assert "font" not in text and "url(" not in text and "<style" not in text
  assert ">$x</text>" in text and ">&lt;a&gt;</text>" in text
  page = Page(text)
  (svg,) = page.all("svg")
  assert svg["aria-label"] == "$t: $y against $x, up to 2. At the end: <a> 2."


def test_pictures_that_cannot_be_read_are_none(tmp_path):
  assert picture(tmp_path / "no.png", "") is None
  (tmp_path / "text.png").write_text("no picture")
  assert picture(tmp_path / "text.png", "") is None


@pytest.mark.parametrize("variant", ["edm", "flow"])
def test_a_run_in_continuous_time_has_a_page(variant, tmp_path):
  command(
    train,
    f"--config=configs/digits.py:{variant}",
    *TINY[1:],
    "--config.preview.num=0",
    "--config.num_steps=2",
    f"--workdir={tmp_path / 'run'}",
  )
  page = shown(tmp_path / "run", "--num=4", "--steps=2")
  assert not page.open
