"""What each command would refuse before it reads a weight: asked of all steps of a run file before the first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import typer

from .. import data as texts
from ..checkpoints import models
from ..data import mix, pairs
from ..errors import UserError
from ..export import check_target, get_target
from ..jobs import budgeting, prune, recovery, training
from ..jobs.analyze import check_kinds, check_out
from ..jobs.bench import check_engine
from ..jobs.evaluate import check_decoding
from ..jobs.latency import check_table
from ..jobs.zero_shot import check_zero_shot
from ..sites.families import parse_spec
from ..sites.find import find_sites
from . import measuring, pruning
from .console import explain
from .parameters import given

#: how much of a text is read to see that it is there
_ENOUGH = 1000


def _prune(ctx: Any) -> None:
    pruning.check_usage(ctx)
    if ctx.params["dry_run"]:
        raise UserError("drop dry_run: such a step would make no model; the command that carries out the file takes it")
    asked = prune.check(**given(ctx.params))
    ctx.params |= {"data": asked["data"]}
    if asked["model"] not in ctx.obj:
        budgeting.check_reach(asked)
    if asked.calibrates or asked.training:
        _readable(ctx.params, "train")


def _finetune(ctx: Any) -> None:
    training.check_finetune(**given(ctx.params))
    _readable(ctx.params, "train")


def _recover(ctx: Any) -> None:
    recovery.check_recover(**recovery.with_defaults(given(ctx.params)))
    _readable(ctx.params, "train")


def _evaluate(ctx: Any) -> None:
    way, asked = measuring.check_usage(ctx), ctx.params
    check_decoding(asked["decode"])
    if way == "zero_shot":
        check_zero_shot(asked["tasks"], asked["data_dir"])
    elif way == "texts":
        mix.names_of_kinds(asked["split"], asked["data_dir"])
    else:
        _readable(asked, asked["split"])


def _analyze(ctx: Any) -> None:
    asked = ctx.params
    check_out(asked["out"], force=asked["force"])
    kinds = check_kinds(asked["units"], asked["baseline"])
    if asked["model"] not in ctx.obj:
        blank = models.skeleton(asked["model"], trust_remote_code=asked["trust_remote_code"])
        find_sites(blank, kinds, parse_spec(asked["ffn"]) if asked["ffn"] else None)
    _readable(asked, asked["split"])


def _export(ctx: Any) -> None:
    asked = ctx.params
    check_target(get_target(asked["to"]), asked["out"], asked["dtype"], force=asked["force"])


def _bench(ctx: Any) -> None:
    check_engine(ctx.params["engine"])


def _latency(ctx: Any) -> None:
    check_engine(ctx.params["engine"])
    check_table(ctx.params["out"], force=ctx.params["force"])


def _readable(asked: Mapping[str, Any], split: str) -> None:
    """Raises: UserError where the text is not there. What needs a model to be read is left for later."""
    data: str = asked["data"]
    where: dict[str, Any] = {"data_dir": asked["data_dir"], "held_out": asked.get("holdout")}
    if texts.needs_model(data, asked["data_dir"]) or mix.is_mix(data) or asked["chat_template"]:
        return
    if pairs.is_source(data):
        pairs.load(data, split, **where)
    else:
        texts.load(data, split, num_tokens=_ENOUGH, **where)


CHECKS: Mapping[str, Callable[[typer.Context], None]] = {
    "prune": _prune, "finetune": _finetune, "recover": _recover, "eval": _evaluate, "analyze": _analyze,
    "export": _export, "bench": _bench, "latency": _latency,
}  # fmt: skip


def check_words(ctx: typer.Context, words: Sequence[str], to_come: Collection[str] = ()) -> dict[str, Any]:
    """The command's parameters. to_come: models that commands before it will have made, and nothing is asked of.

    Raises: UserError where the command line would refuse these words, or the command before it reads a weight."""
    verb, *rest = words
    try:
        root: Any = ctx.find_root().command
        with root.commands[verb].make_context(verb, list(rest), parent=ctx.find_root(), obj=to_come) as asked:
            CHECKS[verb](asked)
            return dict(asked.params)
    except UserError:
        raise
    except Exception as error:
        if (sentence := explain(error)) is None:
            raise
        raise UserError(sentence) from None
