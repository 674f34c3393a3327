"""How many references the paper's beam search can't write: it lets no 4 tokens in a row occur twice, prompt included.

python benchmarks/ngram_ban.py [--tokenizer ../shared/models/gpt2-tokenizer] [--split validation]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from lmprune.data import pairs
from lmprune.data.pairs import Encoded
from lmprune.evaluation.decoding import DECODINGS

SIZE = DECODINGS["beam"].no_repeat_ngram


def banned(encoded: Encoded) -> bool:
    """Whether some SIZE tokens that end in the completion were there before. The end token is left out."""
    ids, seen = encoded.context + encoded.completion[:-1], set()
    for stop in range(SIZE, len(ids) + 1):
        ngram = tuple(ids[stop - SIZE : stop])
        if ngram in seen and stop > len(encoded.context):
            return True
        seen.add(ngram)
    return False


def main() -> None:
    shared = Path(__file__).parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default=str(shared / "models" / "gpt2-tokenizer"))
    parser.add_argument("--split", default="validation")
    parser.add_argument("--data", type=Path, default=shared / "data")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    for source in ("wikisql", "samsum", "e2e"):
        found = pairs.load(source, args.split, data_dir=args.data / source)
        encoded = [each for each in pairs.encode_pairs(found.pairs, tokenizer, max_len=10**9) if each is not None]
        share = sum(map(banned, encoded)) / len(encoded)
        print(f"{source} {args.split}: {share:.1%} of {len(encoded):,} references can't be written")


if __name__ == "__main__":
    main()
