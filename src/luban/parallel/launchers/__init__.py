"""What starts a recipe's ranks: torchrun, Slurm, MPI, Kubernetes, Ray, SkyPilot. Each has a config and one short file that writes what the engine wants; none schedules anything."""
