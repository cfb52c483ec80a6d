"""The experiment: real nets of finite width, trained with gradients from ``jax.grad``; knows nothing of the limit."""
