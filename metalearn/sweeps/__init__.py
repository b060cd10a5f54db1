"""What is said of many runs at once: read from their folders, arranged, tested, written."""
