"""Import of published weights (BodyPix and PoseNet for TensorFlow.js), and export to ONNX."""
