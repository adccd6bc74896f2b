"""A headless Chromium, driven through the DevTools protocol over two pipes."""

import base64
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 60  # for any answer: a cold start on a busy machine is slow
FLAGS = (
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
  "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
  """One page. ``events`` holds all that the browser reported of it."""

  def __init__(self, profile):
    read_ours, write_theirs = os.pipe()
    read_theirs, write_ours = os.pipe()
    self._in, self._out, self._buffer = write_ours, read_ours, b""
    self._last, self.events = 0, []
    # The browser reads from file 3 and writes to 4: a shell numbers them.
    # bash: others may know no file past 9.
    self._process = subprocess.Popen(
      [
        "bash",
        "-c",
        f'exec "$@" 3<&{read_theirs} 4>&{write_theirs}',
        "bash",
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={profile}",
        "about:blank",
      ],
      pass_fds=(read_theirs, write_theirs),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(read_theirs)
    os.close(write_theirs)
    self._session = None
    targets = self.call("Target.getTargets")["targetInfos"]
    page = next(t["targetId"] for t in targets if t["type"] == "page")
    self._session = self.call(
      "Target.attachToTarget", targetId=page, flatten=True
    )["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.kill()
    self._process.wait()
    os.close(self._in)
    os.close(self._out)

  def call(self, method, **params):
    """The result of one command; an error of the browser is raised."""
    self._last += 1
    message = {"id": self._last, "method": method, "params": params}
    if self._session is not None:
      message["sessionId"] = self._session
    os.write(self._in, json.dumps(message).encode() + b"\0")
    answer = self._until(lambda m: m.get("id") == self._last)
    if "error" in answer:
      raise RuntimeError(f"{method}: {answer['error']}")
    return answer["result"]

  def _until(self, wanted):
    """Reads messages, and keeps the events, up to the wanted one."""
    end = time.monotonic() + SECONDS
    while True:
      while b"\0" in self._buffer:
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        if "method" in message:
          self.events.append(message)
        if wanted(message):
          return message
      left = end - time.monotonic()
      if left <= 0 or not select.select([self._out], [], [], left)[0]:
        raise TimeoutError(f"no answer of the browser in {SECONDS} s")
      data = os.read(self._out, 2**16)
      if not data:
        raise RuntimeError("the browser has ended")
      self._buffer += data

  def open(self, path, *, width, dark=False):
    """Loads a file in a window of this width."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=800,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    scheme = "dark" if dark else "light"
    self.call(
      "Emulation.setEmulatedMedia",
      features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    # Subscribed to before it can happen: answers and events share one pipe.
    seen = len(self.events)
    self.call("Page.navigate", url=path.absolute().as_uri())
    loaded = "Page.loadEventFired"
    if not any(e["method"] == loaded for e in self.events[seen:]):
      self._until(lambda m: m.get("method") == loaded)

  def evaluate(self, expression):
    """The value of some JavaScript; promises are waited for."""
    result = self.call(
      "Runtime.evaluate",
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    if "exceptionDetails" in result:
      raise RuntimeError(result["exceptionDetails"])
    return result["result"].get("value")

  def screenshot(self, path):
    """Writes a picture of the whole page."""
    shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(shot["data"]))

  def pdf(self):
    """The page as it is printed."""
    return base64.b64decode(self.call("Page.printToPDF")["data"])
