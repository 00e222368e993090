"""The n-gram family: estimated from counts in one pass, without gradient descent."""
