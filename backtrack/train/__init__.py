"""Train a run with a dense trajectory, from a recipe or by a callback in any Trainer.

`trajectory/` saves checkpoints in any training loop; `methods/` configures PEFT; `trainers/`
trains recipes by TRL; `plan/` estimates what a recipe needs. Each imports only from those before
it; `library_fields` serves the last three.
"""
