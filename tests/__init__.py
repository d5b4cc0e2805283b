"""What is promised, and the fakes that let it fail."""
