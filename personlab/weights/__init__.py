"""Published weights in (TensorFlow.js graph models of BodyPix and PoseNet), ONNX models out."""
