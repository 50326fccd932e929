"""One thread for each test process: several of them share the cores, and the sizes here are small."""

import torch

torch.set_num_threads(1)
