"""Fine-tuning: a pretrained model learns a task of the user's. Importing this package does not import torch."""
