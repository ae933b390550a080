"""What a training run needs, before it is started: FLOPs, memory of a process, days and price."""
