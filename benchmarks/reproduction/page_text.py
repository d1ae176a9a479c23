"""What the page docs/results/reproduction.md says beside its tables."""

from __future__ import annotations

from benchmarks.reproduction.lengths import GAIN


INTRODUCTION = """\
# The experiments of the paper

Fine-tuning as in Vlaar & Leimkuhler, *Multirate Training of Neural Networks* (ICML 2022), at a size that two cores can
train, beside the figures of the paper. `--full-scale` runs the set-up of the paper, for whoever has a GPU and a
network.

```bash
python -m benchmarks reproduce vision --data-dir DIR       # --plan shows steps and hours
python -m benchmarks reproduce language --data-dir DIR
python -m benchmarks reproduce vision --full-scale         # ResNet-50 and CIFAR-100 from the hub; also for language
python -m benchmarks report                                # this page
```

The first two need the files that the [protocol](protocol.md#reproduce) names. A command that was stopped continues."""

READING = f"""\
## How to read the tables

- **multirate** is the setting of the paper, `MultirateConfig.paper`: the fast parameters get a gradient at every step,
  all others at every fifth one, with linear drift in between. The step of the slow parameters is five times as long as
  that of the fast ones.
- **Static** rows train the named part only. All else is frozen.
- All rows take **as many steps as all parameters**. *All in that time* trains all parameters for fewer steps, in the
  seconds of multirate training, with the schedule taken to its end. The paper has no such comparison.
- Differences are in points, of runs paired by seed, with 95 % t-intervals over seeds. They are bold if the
  interval does not contain 0.
- Accuracy is the mean over seeds, with the lowest and the highest one.
- Seconds are reference seconds of one thread: the number of steps of each kind times the seconds of one. At full scale
  they are wall seconds.
- **Epochs:** the fewest of three lengths at which all parameters gain less than {100 * GAIN:.1f} points on validation
  rows in the last third of the steps, or else the longest. As the schedule decays to 0, the last third always gains,
  so the rule tends to take the longest, which is nearest to the paper. The paper has 50 epochs for images; for texts
  the number is not known here.
- **Learning rates** of every row are chosen alike: three rates, one trial each with 0.4 of the steps and a separate
  seed, and one more beyond an edge; the best on validation rows. The grid of the head alone is ten times as high. A
  star marks a rate at an edge of all that were tried. All parameters in less time keep their rate. Rates, period and
  batch size of the paper are not known here.
- **Lower learning rates.** A rate that is best in a short trial may be too high for the whole run. So multirate rows
  also run at a half and a quarter of the chosen rate, with all steps. Verdicts do not use these runs.
- The schedule is linear warm-up over 6 % of the steps and linear decay. SGD has momentum 0.9."""

IMAGES = "CIFAR-10, 3,000 rows to train, 1,000 to choose, 2,000 to test, 64 pixels a side"
PHRASES = (
    "SST-2 of GLUE: 6,920 and 872 phrases drawn from its 67,349, many of them parts of sentences; its 872 validation "
    "sentences to test"
)

DIFFERENT = f"""\
## What differs from the paper

| | paper | here |
|---|---|---|
| network for images | ResNet-50, ImageNet | ResNet-50 of half the width (5.9 million weights), other photographs |
| images | CIFAR-100, 50,000 rows to train | {IMAGES} |
| batch norm | not known here | statistics of pre-training; running ones are an ablation |
| network for texts | DistilBERT, 6 blocks of 768 | MiniLM, 6 blocks of 384 |
| texts | SST-2: 6,920 sentences to train, 872 to validate, 1,821 to test | {PHRASES} |
| precision | not known here | images float32, texts bfloat16 mixed precision |
| runs | 5 for images, 10 for texts | 3; 10 for two rows on texts |
| seconds | of a GPU | of one thread of a processor |"""
