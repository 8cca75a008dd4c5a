"""The paper's experiments: commands that run from a checkout, on jaxsteer and weights."""
