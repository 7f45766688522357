"""Settings that must precede the trainers' imports."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # models are made from configs, so nothing may be looked up
torch.set_num_threads(1)  # the models are so small that threads would only wait for each other
