"""Why residual networks work: one script and one page for each study. ``python -m resnet_fused study NAME``."""

# In the order of README.md. Each is a module of the same name with TITLE and ``run(context) -> Report``.
STUDIES = {
    "degradation": "deeper plain networks train worse, deeper residual networks do not",
    "ensemble": "delete and permute blocks of trained networks; gradient by path length",
    "adaptive_depth": "how near trained blocks are to the identity, and what removing them costs",
    "amplifier": "response of the last layer to a small change of the input",
    "shattered_gradients": "autocorrelation of input gradients by depth",
    "variants": "v1 and v2, shortcuts A and B, the place of ReLU and addition, the design rule",
    "teaching_errors": "errors found in teaching code, and what each costs",
}
