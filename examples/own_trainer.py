"""GUM in transformers' plain Trainer: python examples/own_trainer.py MODEL OUT"""

import sys

from torch.optim import AdamW
from transformers import Trainer, TrainingArguments, default_data_collator

import lmprune

source, out = sys.argv[1:]
model, tokenizer = lmprune.load(source), lmprune.load_tokenizer(source)
ids = tokenizer("One sentence, and another one. " * 400, add_special_tokens=False).input_ids
examples = [{"input_ids": ids[i : i + 32], "labels": ids[i : i + 32]} for i in range(0, 80 * 32, 32)]

pruner = lmprune.GradualPruner(model, method="gum", keep=0.5, num_steps=20, multiple_of=8)
Trainer(
    model,
    TrainingArguments(f"{out}-run", max_steps=20, per_device_train_batch_size=4, report_to="none", use_cpu=True),
    train_dataset=examples,
    data_collator=default_data_collator,
    optimizers=(AdamW(pruner.param_groups(lr=5e-4, score_lr=1e-2)), None),
    callbacks=[lmprune.PruneCallback(pruner)],
).train()
plan = pruner.finish()

lmprune.shrink(model, plan)
lmprune.save(model, out, tokenizer=tokenizer, plan=plan)
print(plan.widths)
