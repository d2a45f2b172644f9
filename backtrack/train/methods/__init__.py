"""PEFT methods by name, and what PEFT leaves to whoever trains them."""
