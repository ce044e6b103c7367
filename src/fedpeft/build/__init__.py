"""From a resolved experiment to the model, data, engine and plan of a run."""
