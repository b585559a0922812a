"""What the model will see: pictures, labels, pixel statistics and the speed of the input."""
