"""Times every loss with its gradient beside torch, optax and the plain formula."""
