"""jaxsteer: steer and read the residual stream of Llama models in JAX."""
