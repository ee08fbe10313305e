"""The process and its devices: meshes, several processes, signals, programs."""
