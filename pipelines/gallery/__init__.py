"""The gallery of losses: pages and pictures, generated from the registry and the code."""
