"""The rules that the kernel holds: one model, readers for every form they come in, and what they mean for a packet."""
