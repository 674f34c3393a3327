"""The numerical tests under other arithmetic than this processor's best: threads, vector width, and MKL's code paths.

    python benchmarks/numerics.py [--setting NAME] [TEST …]     # as `make numerics` runs it

Each run says what it sets in the environment. MKL's `COMPATIBLE` path is what it takes on processors that are not
Intel's: the differences that an AMD EPYC shows come out here. Tests marked slow are left out. With torch's oldest
supported version: the same, in an environment made with `pip install torch==2.6.0`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: name -> what its environment adds. ATen's vector width, oneDNN's and MKL's; MKL's own choice of summation order
SETTINGS: dict[str, dict[str, str]] = {
    "best": {"OMP_NUM_THREADS": "1"},
    "two-threads": {"OMP_NUM_THREADS": "2"},
    "avx512": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx2": {
        **{"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2"},
        **{"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    },
    "not-intel": {
        **{"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
        **{"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    },
    "not-intel-two-threads": {
        **{"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"},
        **{"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    },
}
#: whose results are numbers that a tolerance, or bits, are asked of
TESTS = """
    analyze beginning blockwise criteria data decoding distillation elimination experts families generation
    gguf_reading golden_distillation golden_obs golden_training gradual heads intervals layer_scores layers
    library_face lora masks methods obs penalties perplexity plan pruning redundancy resume schedules selection
    sites statistics tasks teachers training_cli verify
""".split()

#: the tests that `make fast` runs
FAST = "not slow and not benchmark and not conformance"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="only this one; may be repeated")
    parser.add_argument("tests", nargs="*", default=TESTS, help="names of test files, such as statistics")
    options = parser.parse_args()
    files = [f"tests/test_{name}.py" for name in options.tests]
    failed = []
    for name in options.setting or SETTINGS:
        start = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "-q", "-m", FAST, *files]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | SETTINGS[name], capture_output=True, text=True)
        told = done.stdout.strip().splitlines()
        lines = [line for line in told if line.startswith(("FAILED", "ERROR"))]
        seconds = time.perf_counter() - start
        print(
            f"{name:22} {'passed' if done.returncode == 0 else 'FAILED'} {seconds:4.0f} s",
            *lines,
            sep="\n  ",
            flush=True,
        )
        failed += [name] * (done.returncode != 0)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
