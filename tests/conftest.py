"""One thread for each test process: several of them share the cores, and the sizes here are small. No test has a time
limit: on a busy machine any example may take long.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
