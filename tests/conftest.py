"""What every test shares: one thread, because the machines that run them are small."""

import torch

torch.set_num_threads(1)
