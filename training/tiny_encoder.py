"""Makes the embedded encoder `tiny` from nothing: renders, trains, measures its window, evaluates.

    python training/tiny_encoder.py all --data DIR          everything, with the defaults that made the shipped weights
    python training/tiny_encoder.py render --data DIR       crops of simulated training scenes with labels per patch
    python training/tiny_encoder.py train --data DIR        weights (safetensors, fp16); --resume continues from a file
    python training/tiny_encoder.py window                  the receptive window -> meta.json beside the weights
    python training/tiny_encoder.py evaluate                figures on held-out scenes; thresholds -> meta.json
    python training/tiny_encoder.py parts                   how well parts are found inside objects, on held-out scenes

Training never sees the simulator's seeds 0 to 99: figures come from 0-23, thresholds and window from 60-83.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from semfield_ros.encoders.tiny import MODEL_FOLDER

WEIGHTS = MODEL_FOLDER / "weights.safetensors"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("command", choices=["render", "train", "window", "evaluate", "parts", "all"])
    top.add_argument(
        "--data", type=Path, default=Path("out/tiny_data"), help="folder of rendered crops (about 50 kB each)"
    )
    top.add_argument("--weights", type=Path, default=WEIGHTS, help="what train writes and the others read")
    top.add_argument("--meta", type=Path, default=None, help="meta.json to update; default: beside the weights")
    top.add_argument("--shards", type=int, default=60, help="render: files of crops")
    top.add_argument("--scenes", type=int, default=64, help="render: scenes per file")
    top.add_argument("--crops", type=int, default=8, help="render: crops per scene")
    top.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="render: processes")
    top.add_argument("--minutes", type=float, default=75.0, help="train: wall-clock time")
    top.add_argument("--batch", type=int, default=48, help="train: crops per step and worker")
    top.add_argument("--rate", type=float, default=2e-3, help="train: peak learning rate")
    top.add_argument("--seed", type=int, default=1, help="train: order, augmentation, initial weights")
    top.add_argument("--resume", type=Path, default=None, help="train: start from these weights")
    top.add_argument("--save-minutes", type=float, default=5.0, help="train: time between saved weights")
    top.add_argument("--workers", type=int, default=2, help="train: processes of one thread that share every step")
    top.add_argument("--threads", type=int, default=2, help="threads of torch")
    top.add_argument("--views", type=int, default=12, help="evaluate, parts, window: views per scene")
    top.add_argument("--eval-scenes", type=int, default=24, help="evaluate, parts: scenes (at most 60)")
    return top


def _render(data: Path, first: int, count: int, scenes: int, crops: int) -> None:
    from tiny_data import render_shards

    render_shards(data, count, scenes, crops, first)


def render(a: argparse.Namespace) -> None:
    """All shards, spread over processes; finished ones are kept."""
    with ProcessPoolExecutor(a.processes) as pool:
        jobs = [pool.submit(_render, a.data, shard, 1, a.scenes, a.crops) for shard in range(a.shards)]
        for job in jobs:
            job.result()


def train(a: argparse.Namespace) -> None:
    """See tiny_train.train."""
    from tiny_train import TrainSettings
    from tiny_train import train as run

    run(
        TrainSettings(
            a.data, a.weights, a.minutes, a.batch, a.rate, a.seed, a.resume, a.save_minutes, workers=a.workers
        )
    )


def window(a: argparse.Namespace) -> None:
    """Fit the receptive window and store it."""
    from tiny_evaluate import CALIBRATION_SCENES, fitted_window, see_scene, update_meta

    from semfield_ros.encoders.tiny import load_weights, new_model

    model = load_weights(new_model(), a.weights)
    seeds = CALIBRATION_SCENES[:12]
    scenes = [see_scene(model, seed, a.views) for seed in seeds]
    kernel = fitted_window(scenes, seeds, a.views)
    update_meta(a.meta, window=[[round(float(x), 5) for x in row] for row in kernel / kernel.sum()], window_pitch_px=4)
    for row in kernel:
        print(" ".join(f"{100 * x:5.1f}" for x in row))


def evaluate(a: argparse.Namespace) -> None:
    """Print the tables, store the thresholds."""
    from tiny_evaluate import CALIBRATION_SCENES, report, update_meta

    from semfield_ros.encoders.tiny import load_weights, new_model, new_tokenizer

    model = load_weights(new_model(), a.weights)
    figures, table = report(
        model, new_tokenizer(), a.views, range(min(a.eval_scenes, 60)), CALIBRATION_SCENES[: a.eval_scenes]
    )
    figures = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 4))
    update_meta(a.meta, no_match=figures["no_match"], high=figures["high"], figures=figures)
    print(table)
    print(json.dumps(figures))


def parts(a: argparse.Namespace) -> None:
    """Print how well part words tell an object's parts apart; each word against the words of other parts -> meta."""
    from tiny_evaluate import text_encoder, update_meta
    from tiny_parts import FORMS, NEGATIVES, part_figures, part_table

    from semfield_ros.encoders.tiny import load_weights, new_model, new_tokenizer

    model = load_weights(new_model(), a.weights)
    figures = part_figures(model, text_encoder(model, new_tokenizer()), range(min(a.eval_scenes, 60)), a.views)
    for form in FORMS:
        for against in NEGATIVES:
            precision, cluster, chance, count = figures[form][against]["all"]
            print(f"{form}, against {against}: {precision:.3f} {cluster:.3f} (chance {chance:.3f}, {count} parts)")
    print(part_table(figures["word"], "other parts"))
    update_meta(a.meta, part_figures=figures["word"]["other parts"])


def main() -> None:
    """Run one command or all of them."""
    import torch

    a = parser().parse_args()
    a.meta = a.meta or a.weights.with_name("meta.json")
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(a.threads)
    steps = {"render": render, "train": train, "window": window, "evaluate": evaluate, "parts": parts}
    for name in list(steps) if a.command == "all" else [a.command]:
        steps[name](a)


if __name__ == "__main__":
    main()
