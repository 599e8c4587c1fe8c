"""Does it stand on hostile ground? Broken files, killed processes, full disks and large models; `docs/reliability.md` has the figures."""
