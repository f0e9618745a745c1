"""The engines that run a step and the layouts they run it in."""
