"""What the paper reports (Santacroce et al. 2023, arXiv 2302.03773): to stand beside, never to compare with.

Another model (GPT-Neo-125m), another tokenizer, another scale of training. Its WikiSQL accuracies, SAMSum ROUGE and
timings could not be obtained.
"""

from __future__ import annotations

CAPTION = "GPT-Neo-125m, WikiText-103, validation perplexity: another model at another scale"

#: validation perplexity of the dense, fine-tuned model
DENSE_PERPLEXITY = 16.138

#: method -> keep ratio -> validation perplexity without and with distillation
PERPLEXITY: dict[str, dict[float, tuple[float, float]]] = {
    "soft": {0.75: (17.814, 17.651), 0.5: (19.470, 19.053), 0.25: (21.169, 20.469)},
    "magnitude": {0.75: (18.524, 18.048), 0.5: (20.834, 20.041), 0.25: (23.692, 22.604)},
    "random": {0.75: (17.307, 17.144), 0.5: (18.900, 18.410), 0.25: (21.458, 20.546)},
    "top_v": {0.75: (16.974, 17.142), 0.5: (18.253, 18.369), 0.25: (20.495, 20.194)},
    "gum": {0.75: (16.822, 17.158), 0.5: (17.881, 18.314), 0.25: (20.059, 19.833)},
}

#: figure 1, WikiSQL, read off the plot: method -> keep ratio -> uniqueness as a ratio to dense
UNIQUENESS_RATIO: dict[str, dict[float, float]] = {
    "gum": {0.5: 1.25, 0.25: 1.25, 0.1: 1.26},
    "top_v": {0.5: 1.00, 0.25: 0.97, 0.1: 0.96},
    "random": {0.5: 0.82, 0.25: 0.68, 0.1: 0.65},
    "magnitude": {0.5: 0.78, 0.25: 0.58, 0.1: 0.62},
    "soft": {0.5: 0.74, 0.25: 0.75, 0.1: 0.84},
}

#: figure 1, WikiSQL, read off the plot: sensitivity as a ratio to dense
SENSITIVITY_RATIO: dict[str, dict[float, float]] = {
    "top_v": {0.5: 0.82, 0.25: 0.68, 0.1: 0.43},
    "gum": {0.5: 0.46, 0.25: 0.40, 0.1: 0.36},
}
FIGURE_1 = "figure 1, GPT-Neo-125m, WikiSQL, read off the plot; its similarity counts padding"
