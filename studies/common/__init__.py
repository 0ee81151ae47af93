"""What the studies share: data, training, comparison of eager with fused networks, figures, reports."""
