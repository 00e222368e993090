"""From a checkpoint to a bundle: trace, finish, quantize, prove parity (torch, onnx)."""
