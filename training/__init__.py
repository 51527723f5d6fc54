"""How the learners learn: data, objectives, trainer, evaluation, export."""
