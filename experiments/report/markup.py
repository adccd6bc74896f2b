"""HTML as a tree of elements: what is text is escaped, whatever it holds."""

import base64
import io
import pathlib
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

from diffusion_jax.data import pictures

Element = ET.Element
Child = Element | str | float | None


def element(tag: str, *children: Child, **attributes: object) -> Element:
  """An element with its children and attributes.

  >>> render(element("p", "1 < 2 ", element("b", "&"), class_="a"))
  '<p class="a">1 &lt; 2 <b>&amp;</b></p>'

  Args:
    tag: Its name.
    *children: Elements, or text; None is nothing.
    **attributes: ``_`` stands for ``-``, and a last one is dropped (class_);
      None is absent.

  Returns:
    The element.
  """
  made = ET.Element(
    tag,
    {
      name.rstrip("_").replace("_", "-"): str(value)
      for name, value in attributes.items()
      if value is not None
    },
  )
  last = None
  for child in children:
    if isinstance(child, Element):
      made.append(child)
      last = child
    elif child is not None and last is None:
      made.text = (made.text or "") + str(child)
    elif child is not None and last is not None:
      last.tail = (last.tail or "") + str(child)
  return made


def render(root: Element) -> str:
  """The HTML of an element."""
  return ET.tostring(root, encoding="unicode", method="html")


def table(
  head: list[Child], rows: list[list[Child]], class_: str | None = None
) -> Element:
  """A table; the first cell of each row is its heading."""
  return element(
    "table",
    element(
      "thead", element("tr", *(element("th", c, scope="col") for c in head))
    ),
    element(
      "tbody",
      *(
        element(
          "tr",
          element("th", first, scope="row"),
          *(element("td", cell) for cell in rest),
        )
        for first, *rest in rows
      ),
    ),
    class_=class_,
  )


def picture(
  source: pathlib.Path | np.ndarray,
  alt: str,
  *,
  side: int = 1024,
  most_bytes: int = 200_000,
  class_: str | None = None,
) -> Element | None:
  """An <img> that holds its picture.

  Args:
    source: A file, or bytes [H, W, 3].
    alt: What it shows, for those who do not see it.
    side: Larger pictures are made smaller, to this many pixels at most.
    most_bytes: What a lossless file may take; otherwise it is a JPEG.
    class_: For the style.

  Returns:
    The element; None where the file cannot be read, as while it is written.
  """
  try:
    image = (
      Image.fromarray(source)
      if isinstance(source, np.ndarray)
      else Image.open(source)
    ).convert("RGB")
  except pictures.BROKEN:
    return None
  # thumbnail() keeps the ratio of the sides and never enlarges.
  image.thumbnail((side, side), Image.Resampling.BOX)
  return element(
    "img",
    src=still(image, most_bytes),
    alt=alt,
    width=image.width,
    height=image.height,
    class_=class_,
  )


def still(image: Image.Image, most_bytes: int) -> str:
  """The address of a PNG, or of a JPEG where that takes too many bytes."""
  data = _file(image, "PNG")
  if len(data) <= most_bytes:
    return data_url("png", data)
  return data_url("jpeg", _file(image, "JPEG", quality=85))


def _file(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def data_url(kind: str, data: bytes) -> str:
  """A picture as an address that holds it."""
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
