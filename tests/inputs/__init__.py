"""What users give that cannot work, made here for the tests and for scripts/bad_inputs.py."""
