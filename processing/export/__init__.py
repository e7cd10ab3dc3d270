"""Models outside of PyTorch: ONNX and torch.export."""
