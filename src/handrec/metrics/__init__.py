"""Functional metrics, official protocols and torchmetrics over them."""
