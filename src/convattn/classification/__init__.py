"""Classification: data, predictions, evaluation."""
