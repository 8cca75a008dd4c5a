"""jaxsteer: steer and read the residual stream of Llama models in JAX.

    model, tokenizer = jaxsteer.load("checkpoints/r1-distill-llama-8b")
    batch = jaxsteer.left_pad([tokenizer.encode("1 + 1 =")])
    steering = jaxsteer.add(v, layer=10, coeff=8.0)
    out = jaxsteer.generate(model, batch, max_new_tokens=100, steering=steering)
"""
