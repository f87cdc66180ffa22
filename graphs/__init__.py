"""What the scripts of onnx/, data/ and TensorRT/ share about ONNX graphs."""
