"""Files, memory and devices of the machine."""
