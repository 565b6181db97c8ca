"""A function whose value says nothing of its slope, as spiking neurons have it."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + jnp.abs(v)) ** 2
