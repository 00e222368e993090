"""Networks: the families trained by gradient descent, their layers and their loss.

Knows nothing about corpora or runs.
"""
