"""Experts that move while a model serves, on torch.distributed: what engines without a balancer of their own need."""
