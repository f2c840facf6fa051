"""Pretrain, switch, fine-tune: the room that joins agents, environments, data and smoothing."""
