"""An experiment: its file, its run, its folder, its report."""
