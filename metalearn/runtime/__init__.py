"""What runs need of the machine: files, memory, devices."""
