"""What the commands share: flags, readable errors, the start of JAX.

A user's mistake is one line on standard error and exit status 2.
"""

from diffusion_jax.runs.console import say as say, say_first as say_first
from experiments.cli.arguments import (
  config_name as config_name,
  define_config as define_config,
  define_known_config as define_known_config,
  parse as parse,
  peek as peek,
)
from experiments.cli.shell import (
  check_out as check_out,
  command as command,
  fail as fail,
  run as run,
  system_errors as system_errors,
  user_errors as user_errors,
)
