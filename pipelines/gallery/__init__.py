"""The gallery of losses: pages and pictures, made from the registry and the code."""
