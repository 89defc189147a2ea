"""nnU-Net: trainers with our losses, found from outside; its raw data sets as manifests, and back."""
