"""One photo at a time, without a network: pose, shape, texture and light by gradient descent."""
