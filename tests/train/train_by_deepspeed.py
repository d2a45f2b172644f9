"""Train recipes one after the other, in the processes that accelerate started for DeepSpeed.

    accelerate launch --use_deepspeed --zero_stage 3 --num_processes 2 \
        -m tests.train.train_by_deepspeed RECIPE...

As `backtrack train` does, but gloo alone carries the tensors: on a CPU DeepSpeed would first spend
a minute compiling a shared memory of its own.
"""

from __future__ import annotations

import sys

import deepspeed

from backtrack.cli import main

if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__ = {}
    for recipe in sys.argv[1:]:
        try:
            main(["train", recipe])
        except SystemExit as done:
            if done.code:
                raise
