"""Peak FLOP/s of devices, from their makers."""

# TFLOP/s of dense bfloat16 products with float32 sums, of one JAX device (a
# TPU v2 or v3 chip has two); the first name that the device's begins with or
# contains. Data sheets: NVIDIA V100, T4, A100, L4, H100 SXM, H200; Google
# Cloud's TPU pages.
BFLOAT16 = {
  "TPU v2": 22.5,
  "TPU v3": 61.5,
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,
  "TPU v5e": 197.0,
  "TPU v5": 459.0,
  "TPU v6": 918.0,
  "V100": 125.0,
  "T4": 65.0,
  "A100": 312.0,
  "L4": 121.0,
  "H100": 989.0,
  "H200": 989.0,
}


def published(device: str, dtype: str) -> float | None:
  """FLOP/s of a device; None if unknown.

  >>> published("NVIDIA H100 80GB HBM3", "bfloat16")
  989000000000000.0
  >>> published("cpu", "float32")
  """
  if dtype != "bfloat16":
    return None
  found = (peak for name, peak in BFLOAT16.items() if name in device)
  peak = next(found, None)
  return None if peak is None else peak * 1e12
