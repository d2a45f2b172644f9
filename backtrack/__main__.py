"""`python -m backtrack`, as `accelerate launch -m backtrack train recipe.yaml` needs it."""

from backtrack.cli import main

if __name__ == "__main__":
    main()
