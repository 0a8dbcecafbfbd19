"""Writes ONNX graphs node by node: out of trained weights, with random ones, or as fixtures for tests."""
