"""The training step, the loop around it, and what makes both stop and resume exactly."""
