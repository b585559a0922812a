"""Every test runs on eight simulated CPU devices, whatever the machine holds."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
