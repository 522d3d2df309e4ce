"""The training step with static shapes, captured as CUDA graphs: `step`; `padded`: its batches."""
