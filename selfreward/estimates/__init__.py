"""What a run will take, before it begins: memory by device, tokens and hours by stage, disk, and what will not fit."""
