"""Features of images, kept in a file."""
