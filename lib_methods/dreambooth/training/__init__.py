"""From photos to trained weights: the plan, the data, the steps, and a state that can be resumed."""
