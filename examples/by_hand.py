"""Masks and statistics by hand: what a layer's neurons do, and what the model says without some of them.

python examples/by_hand.py MODEL
"""

import sys

import torch

import lmprune
from lmprune import masks, statistics

(source,) = sys.argv[1:]
model, tokenizer = lmprune.load(source), lmprune.load_tokenizer(source)
ids = torch.tensor(tokenizer("One sentence, and another one. " * 100, add_special_tokens=False).input_ids)
ids = ids[: 16 * 32].view(16, 32)

sites = lmprune.find_sites(model)
seen = statistics.collect(model, sites, ids, needs={"sum_h2"})  # what passes the input of each `down`
loudness = [layer.per_token("sum_h2").sqrt() for layer in seen]  # one (F,) a layer
loud = [(rms > rms.median()).float() for rms in loudness]

with torch.no_grad():
    whole = model(ids, labels=ids).loss
    with masks.masked(sites, loud):  # for a moment's look; the model stays as it is
        half = model(ids, labels=ids).loss
print(f"loss {whole:.3f}, of the louder half of the neurons {half:.3f}")

plan = lmprune.prune(model, scores=loudness, keep=0.5, multiple_of=8)  # and the cut, by the same numbers
print(plan.to_frame().groupby("layer").score.describe())
