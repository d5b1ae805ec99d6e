"""Score a finished run's model on data."""

import dataclasses
import json
from typing import Any

import torch.distributed as dist

from dmt_kernels.spec import InputError
from dmt_kernels.train import checkpoint
from dmt_kernels.train.assemble import Setup, build_model, connect, make_loader, set_up
from dmt_kernels.train.config import TrainConfig, local_options
from dmt_kernels.train.loop import agree
from dmt_kernels.train.output import RunFolder
from dmt_kernels.train.predict import evaluate


def saved_config(folder: str, **changes: Any) -> TrainConfig:
    """Options of the run in ``folder``, with those that are given changed.

    Raises
    ------
    InputError
        If the folder holds no finished run.
    """
    run = RunFolder(folder)
    config = TrainConfig.load(run.config)
    if not run.model.is_dir():
        raise InputError(f"{folder} holds no finished run: {run.model.name} is missing")
    given = {name: value for name, value in changes.items() if value is not None}
    if config.placement == "auto":  # of training: the model is the same wherever its tower modules stand
        given["placement"] = "member"
    if given.get("local"):
        given |= local_options(config.exchange)
    # The tables are those the model was trained with, not those that other data would ask for.
    return dataclasses.replace(config, tables=str(run.layout), partition=str(run.layout), **given)


def set_up_as_trained(config: TrainConfig, folder: str, split: str | None) -> Setup:
    """Open the data to score and check that the saved model fits it.

    Raises
    ------
    InputError
        Naming what does not.
    """
    setup = set_up(config)
    dense_width = json.loads(RunFolder(folder).layout.read_text())["dense_width"]
    if setup.dataset.dense_width != dense_width:
        raise InputError(
            f"{setup.dataset.name} has {setup.dataset.dense_width} dense features, the model has {dense_width}"
        )
    if not setup.dataset.rows(_split(setup, split)):
        raise InputError(f"{setup.dataset.name} has no {_split(setup, split)} rows")
    return setup


def _split(setup: Setup, split: str | None) -> str:
    return split or ("test" if setup.dataset.rows("test") else "valid")


def evaluate_rank(config: TrainConfig, folder: str, split: str | None) -> dict[str, Any] | InputError:
    """Do one rank's part of an evaluation.

    Parameters
    ----------
    config : TrainConfig
        Of the run, with the data to score.
    folder : str
        The run's folder.
    split : str or None
        Which split; None: the test split, or the validation split of data without one.

    Returns
    -------
    dict or InputError
        ``auc``, ``logloss``, ``samples`` and ``split``; or what some rank found wrong, on all ranks alike.
    """
    setup, wrong = None, None
    try:
        setup = set_up_as_trained(config, folder, split)
    except InputError as error:
        wrong = error
    mesh = connect(config)
    if (wrong := agree(setup, wrong, mesh)) is not None:
        return wrong
    assert setup is not None
    split = _split(setup, split)
    model = build_model(setup, mesh)
    checkpoint.load(model, RunFolder(folder).model, mesh)
    loader = make_loader(setup, split, mesh, next(model.parameters()).device)
    scores = evaluate(model, loader, mesh, amp=config.amp)
    if mesh is not None:
        dist.destroy_process_group()
    return {"split": split, **dataclasses.asdict(scores)}
