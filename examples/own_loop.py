"""GUM in a training loop of one's own, without a Trainer: python examples/own_loop.py MODEL OUT"""

import sys

import torch
from torch.optim import AdamW

import lmprune

source, out = sys.argv[1:]
model, tokenizer = lmprune.load(source).train(), lmprune.load_tokenizer(source)
ids = torch.tensor(tokenizer("One sentence, and another one. " * 400, add_special_tokens=False).input_ids)
batches = ids[: 20 * 4 * 32].view(20, 4, 32)

pruner = lmprune.GradualPruner(model, method="gum", keep=0.5, num_steps=len(batches), multiple_of=8)
optimizer = AdamW(pruner.param_groups(lr=5e-4, score_lr=1e-2))
for t, batch in enumerate(batches):
    with pruner.step(t):
        loss = pruner.loss(model(input_ids=batch, labels=batch).loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
plan = pruner.finish()

lmprune.shrink(model, plan)
lmprune.save(model, out, tokenizer=tokenizer, plan=plan)
print(plan.widths)
