"""Training: the loop of gradient descent and what it needs. Knows nothing about corpora or a run's folder."""
