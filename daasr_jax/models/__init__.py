"""DAASR and its parts; one file for each compared system."""
