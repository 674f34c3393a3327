"""The faults of `mutants.py`: where (a file or package of lmprune) -> the tests that should see them, and the edits,
(old, new) or (old, new, why no fast test sees it). Keep `old` short: it must be there exactly once."""

from __future__ import annotations

from typing import Any

MUTANTS: dict[str, tuple[str, list[Any]]] = {
    "budget/selection.py": (
        "selection",
        [
            ("count = int(keep * number + 0.5)", "count = int(keep * number)"),
            ("min(max(count, 1), number)", "min(max(count, 0), number)"),
            (
                "int(count / multiple_of + 0.5) * multiple_of or multiple_of",
                "int(count / multiple_of) * multiple_of or multiple_of",
            ),
            ("argsort(descending=True, stable=True)", "argsort(stable=True)"),
            ("shuffled = tie_break.argsort()", "shuffled = torch.arange(len(tie_break))"),
            ("rest[indices + offset] = False", "pass"),
            ("budget - sum(floors)", "budget"),
            ("budget, multiples, max(min_keep, 1), up=up)", "budget, multiples, 1, up=up)"),
            ("min(-(-count // m) * m, size)", "min(count // m * m or m, size)"),
            ("descent.counts if descent else", ""),
            ("if s.isnan().any():", "if False:"),
            ("manual_seed(seed)", "manual_seed(0)"),
        ],
    ),
    "plan.py": (
        "plan",
        [
            ("kept[-1] < count", "kept[-1] <= count"),
            ("sorted(set(kept))", "sorted(kept)"),
            ("sum(map(len, self.kept.values())) / sum", "len(self.kept) / sum"),
            ("!= PLAN_FORMAT", "is None"),
        ],
    ),
    "evaluation/perplexity.py": (
        "perplexity",
        [
            ("max(done, start + (not begun))", "max(done, start)"),
            ("logits_NV = [x[row, first - 1 : last - 1]", "logits_NV = [x[row, first:last]"),
            ("number / (number - 1) * variance", "variance"),
            ("perplexity_se=_exp(nll) * nll_se", "perplexity_se=nll_se"),
            ("nll / math.log(2) * num_tokens / num_bytes", "nll / math.log(2) / num_bytes"),
            ("sums[:, 0] - sums[:, 1]", "sums[:, 1] - sums[:, 0]"),
            ("base_NV.exp() * (base_NV - logp_NV)", "logp_NV.exp() * (logp_NV - base_NV)"),
            ("lambda w: w.stop - w.start", "lambda w: 0"),
            ("_exp(nll * num_tokens / num_words)", "_exp(nll * num_words / num_tokens)"),
            ("model.eval()\n    try", "pass\n    try"),
        ],
    ),
    "solve": (
        "elimination golden_obs obs heads unit_readings",
        [
            ("return _token_weights(self.dense[i]), drift_BTD", "return None, drift_BTD"),
            ("compensation / gain if gain", "compensation if gain"),
            ("self.drift_FD.div_(self.weight)", "self.drift_FD"),
            ("ridge_F[:, None], reader_FD.double()", "0 * ridge_F[:, None], reader_FD.double()"),
            ("per_neuron else mean)", "per_neuron else 2 * mean)"),
            ("if per_neuron else mean", "if False else mean"),
            (
                "self.dense[i] = self.blocks.run(layer, states_BTD)",
                "self.dense[i] = self.blocks.run(layer, self.hidden[i])",
            ),
            ("last=not sequential", "last=True"),
            ("0.5 * torch.linalg.vector_norm(reader_FD, dim=1)", "torch.linalg.vector_norm(reader_FD, dim=1)"),
            (".square() / inverse_FF.diagonal()", ".square()"),
            ("share_PJ @ inverse_PP[run]", "0 * share_PJ @ inverse_PP[run]"),
            ("reader_FD.addmm_(compensation_FJ, reader_FD[rows], alpha=-1)", "pass"),
            ("inverse_FF.addmm_(compensation_FJ, inverse_FF[rows], alpha=-1)", "pass"),
            ("torch.linalg.cholesky(metric_DD.to(reader_FD))", "metric_DD.to(reader_FD)"),
            ("self.cost.cummax(0).values", "self.cost"),
            ("[: 2 * step]", "[:step]"),
            ("end_loss: bool = True", "end_loss: bool = False"),
            ("compensation: float = 0.5", "compensation: float = 1.0"),
            ("rel_damp: float = 0.2", "rel_damp: float = 0.02"),
            ("per_neuron: bool = True", "per_neuron: bool = False"),
            (
                "sequential=False, end_loss=False, compensation=0.0, rel_damp=1e-3",
                "sequential=True, end_loss=False, compensation=0.0, rel_damp=1e-3",
            ),
            ("few = input_ids[: max(", "few = input_ids[:1] if True else input_ids[: max("),
            ("dense = replace(settings, sequential=False)", "dense = settings"),
            ("until=1, metric_DD=metrics[site.address]", "until=1"),
            ("metric_DD = metrics[site.address]", "metric_DD = None"),
            ("reader[site.width] if problem.pinned else None", "None"),
            ("gain if exact and gain > 0 else None", "gain if gain > 0 else None"),
            ("while torch.linalg.cholesky_ex(gram_FF).info:", "while False:"),
        ],
    ),
    "solve/scored.py": (
        "pruning methods plugins",
        [
            ("input_ids = input_ids[: max(GRADIENT_TOKENS // input_ids.shape[1], 1)]", "input_ids = input_ids[:1]"),
            (
                "kept = choose(sites, scores, keep, **how)",
                'kept = choose(sites, scores, keep, **{**how, "scope": "local"})',
            ),
            ("if self.adds_bias and len(units)", "if False and len(units)"),
            ('seed=how["seed"]', "seed=0"),
            ("return repair if chosen else self.criterion.needs | repair", "return self.criterion.needs | repair"),
            ("self.criterion.needs | repair", "self.criterion.needs"),
        ],
    ),
    "methods.py": (
        "methods plugins",
        [
            ("known.solver.criterion == rule", "known is not None"),
            ("if method.refit not in solver.refits:", "if False:"),
            ("if method.pressure is not None and not method.learned:", "if False:"),
            ('if scope == "global" and isinstance', "if False and isinstance"),
        ],
    ),
    "solve/bias.py": (
        "pruning methods criteria",
        [
            ("removed[inputs.cpu()] = False", "removed[inputs.cpu()] = True"),
            ("bias_D += bias.cpu()", "pass"),
        ],
    ),
    "gradual/schedules.py": (
        "schedules golden_training",
        [
            ("WAIT, REST = 0.1, 0.3", "WAIT, REST = 0.1, 0.2"),
            ("WAIT, REST = 0.1, 0.3", "WAIT, REST = 0.0, 0.3"),
            ("(1 - done) ** 3", "(1 - done) ** 2"),
            ("2 * tiny(step) - 1", "tiny(step)"),
        ],
    ),
    "solve/elimination.py": (
        "unit_readings gone",
        [
            ("(1 - refitted_U / alone_U.clamp_min(1e-300))", "(1 - (refitted_U / alone_U.clamp_min(1e-300)).sqrt())"),
            ("if not until and problem.pinned", "if until and problem.pinned"),
        ],
    ),
    "sites/pages.py": (
        "streamed going_on",
        [
            ("values.to(self.device, there[name])", "values.to(self.device)"),
            ("if not _is_as_it_came(block, before):", "if False:"),
            ("while len(self._here) >= self.at_once:", "while False:"),
            (" and version == now[name]._version", ""),
            ("in_tuple = isinstance(out, tuple)", "in_tuple = False"),
        ],
    ),
    "export/arithmetic.py": (
        "streamed_export verify",
        [
            ("parameter.data = rounding.weights(module, parameter).float()", "parameter.data = parameter.data.float()"),
            ("logits[0, -last:]", "logits[0, :last]"),
            (" and not isinstance(module, nn.Embedding)", ""),
            ("(rounding.inputs(args[0]), *args[1:])", "args"),
            ("parameter.data = values", "pass"),
            ("always_call=True", "always_call=False"),
        ],
    ),
    "sites/place.py": ("going_on", [("done_with(sites[of_block[0]].block)", "pass")]),
    "solve/moments.py": (
        "obs",
        [
            ("LeastSquares.of(\n            moment_FF,", "LeastSquares.of(\n            moment_FF.clone(),"),
            ("moment_FF[rows, rows.stop :].T", "0"),
        ],
    ),
    "solve/ends.py": (
        "ends",
        [
            ("h = h[..., self.site.inputs_of(stays.to(h.device))]", "h = h[..., : self.site.width]"),
            ("self.gain * self.site.reader_linear(h)", "self.site.reader_linear(h)"),
            ("torch.finfo(dtype).eps ** 0.5", "1e9"),
        ],
    ),
    "solve/targets.py": (
        "ends",
        [
            ("(self.dense[i] - out_BTD) * self.share if", "(out_BTD - self.dense[i]) * self.share if"),
            ("drift_BTD = (self.dense[i] - out_BTD) * self.share\n", "drift_BTD = self.dense[i] - out_BTD\n"),
            ("own=1 - self.compensation", "own=1.0"),
        ],
    ),
    "solve/walks.py": (
        "going_on obs",
        [
            ("        del problem  # before the next is stated, which is as large\n", ""),
            ("done_with(blocks[layer])", "pass"),
            ("finish_again(group[0].block, stage.found[_block(group[0].layer)])", "pass"),
        ],
    ),
    "solve/trials.py": (
        "trials budgeted",
        [
            ("probe.mask(site, problem, until[site.address])", "pass"),
            ("there = reader.detach() != 0", "there = torch.ones_like(reader)"),
            ("weight_decay=0.0", "weight_decay=10.0"),
            ("/ len(places)", "/ _A_STEP"),
            ("* step / len(steps)", "* (step + 1) / len(steps)"),
            ("parameter.requires_grad_(before)", "pass"),
        ],
    ),
    "checkpoints/streamed.py": (
        "streamed",
        [
            ("self.files.check()", "pass"),
            ("placement.check_finite_tensor(stored, values, self.place)", "pass"),
            ("for target, source in tied(blank):", "for target, source in []:"),
        ],
    ),
    "checkpoints/block_files.py": (
        "streamed going_on",
        [
            ("loading.revert_weight_conversion(model, _cast(named, wanted))", "_cast(named, wanted)"),
            ("return file if as_is and same else None", "return file"),
            ("_link(written, file)", "_link(written, written)"),
            ('raise ValueError("it is not what was written there")', "pass"),
            ("dtypes.to_save(self.model, self.dtype)", "dtypes.to_save(self.model)"),
        ],
    ),
    "checkpoints/states.py": (
        "max_memory",
        [
            ("if self._bound is None or tensor.nbytes <= self._bound.left:", "if True:"),
            ("self._here.pop(number, None)", "pass"),
            ("sum(states.bytes_here for states in self.users)", "0"),
            ("bound.users.add(self)", "pass"),
            ("range(*number.indices(self._length))", "range(self._length)"),
            ("if not 0 <= number < self._length:", "if False:"),
            ("_BOUNDS.get(model)", "None"),
            ("name.startswith(begin) for name", "True for name"),
        ],
    ),
    "jobs/needs.py": (
        "max_memory forecast passes",
        [
            ("if found.least > bound:", "if False:"),
            ("return bound - self.least", "return bound"),
            ("if number > (free := free_at(place)):", "if (free := free_at(place)) < 0:"),
            ("dense + training, self._saving)", "dense + training)"),
            ("dense + training, self._saving)", "self._saving)"),
            ("dense = self.shape.weights if self.passes", "dense = 0.0 if self.passes"),
            ("or self.peak <= bound", ""),
            ("max(self.held.states - room, 0.0)", "0.0"),
            (" - there, ", ", "),
            ("math.ceil(number / size / step)", "math.floor(number / size / step)"),
            ("return self.after * shape.number + self.after * self.saved * (1 + casts)", "return 0"),
            ("max(shape.blocks) * shape.number", "0"),
            ('_mapped(asked["model"]) if shape.streamed else 0', "0"),
            ("+ (_TEXT if asked.calibrates else 0)", "+ _TEXT"),
            ("site.address: count for", "site.address: site.count - count for"),
        ],
    ),
    "scores/routing.py": (
        "unit_readings",
        [("chosen_Nk.new_full((len(x_ND), 1), expert), ones)", "chosen_Nk.new_full((len(x_ND), 1), 0), ones)")],
    ),
    "scores/penalties.py": (
        "penalties golden_training",
        [
            ("(u_F.max() - u_F)", "u_F"),
            ('"uniqueness": Penalty("uniqueness", _alike)', '"uniqueness": Penalty("uniqueness")'),
            ("pressed * (1 + weights[layer])", "pressed * weights[layer]"),
            ("return torch.stack(layers).mean()", "return torch.stack(layers).sum()"),
        ],
    ),
    "gradual/goal.py": (
        "golden_training gradual",
        [
            ("self.goal.schedule(step) / self.goal.lowest", "1.0"),
            ("self.goal.schedule(step) / self.goal.lowest", "self.goal.schedule(step)"),
            ("scope=scope or self.scope", "scope=self.scope"),
            ("multiple_of=self.multiple_of", "multiple_of=1"),
        ],
    ),
    "gradual/pruner.py": (
        "golden_training gradual resume",
        [
            ("scope or self.method.scope", 'scope or "global"'),
            ("if solver.threshold else", "if False else"),
            ("self.chooser.load_state(state)", "pass"),
        ],
    ),
    "gradual/pressing.py": (
        "golden_training gradual library_face",
        [
            ("step > 0 and step % self.every == 0", "step == 1"),
            ("min(settings.similarity_every, max(1, int(WAIT * chooser.goal.num_steps)))", "settings.similarity_every"),
            ("        self._reached = False\n        if", "        if"),
            ("self._chooser.penalty_weight(step, self._settings.penalty_weight)", "self._settings.penalty_weight"),
        ],
    ),
    "gradual/similarity.py": (
        "golden_training gradual",
        [
            ("mask.count * self.masks.keep_of(mask.kind))", "len(kept))"),
            ("cos_KK.abs_().fill_diagonal_(0)", "cos_KK.abs_()"),
            ("cos_KK.abs_().fill_diagonal_(0)", "cos_KK.fill_diagonal_(0)"),
            ("slice(self.step % self.stride, None", "slice(0, None"),
            ("if self.counting_n is not None:", "if False:"),
        ],
    ),
    "gradual/soft.py": (
        "golden_training gradual",
        [
            ("FINAL_THRESHOLD = 0.1", "FINAL_THRESHOLD = 0.2"),
            ("(1 - self.remaining(step)) * self.effort", "1 - self.remaining(step)"),
            ("self.effort = float(state", "_ = float(state"),
            ("max(above, len(floor))", "above"),
            ("max(GAIN, RUN_GAIN / goal.num_steps)", "GAIN"),
            ("max(SCORE_LR, 10 / self.goal.num_steps)", "SCORE_LR"),
        ],
    ),
    "gradual": (
        "gradual",
        [
            ("if step not in self.steps:\n            return None", "if not self.steps:\n            return None"),
            ("kept = [before[indices] for before", "kept = [indices for before"),
            ("site.reader()[site.inputs_of(indices)] = small.reader()", "pass"),
            ("bias.copy_(new_bias)", "pass"),
            ("2 * ranks / max(", "ranks / max("),
            ("scores.copy_(start)", "pass"),
        ],
    ),
    "scores": (
        "statistics criteria golden_obs redundancy obs",
        [
            ("h_BTF.square().sum(1)", "h_BTF.square().mean(1)"),
            ("squares_BF.sqrt().sum(0)", "squares_BF.sum(0)"),
            ("product_BTU.sum(1).abs().sum(0)", "product_BTU.sum(1).sum(0).abs()"),
            ("product_BTU.square().sum((0, 1))", "product_BTU.sum((0, 1)).square()"),
            ("self.theta_grad_BU.abs().sum(0)", "self.theta_grad_BU.sum(0).abs()"),
            ("self.weight_grads[linear].add_(grad)", "grad"),
            ("grad_BTV[:, -1] = 0", "pass"),
            ("(weight.detach() * grad).abs().sum(1)", "(weight.detach() * grad).sum(1).abs()"),
            (
                "self.theta_grad_BU is None else self.theta_grad_BU + part_BU",
                "self.theta_grad_BU is None else self.theta_grad_BU",
            ),
            ('self.per_token("sum_h").square()', 'self.per_token("sum_h").square() * 0'),
            ("in_float64(value)", "value.bfloat16()"),
            ('return stats.per_token("sum_h2").sqrt() * reader_norms(site)', 'return stats.per_token("sum_h2").sqrt()'),
            ("reader_norms(site).square()", "reader_norms(site)"),
            ("reader_norms(site, order=1)", "reader_norms(site, order=2)"),
            ("squares += [b.float()", "[b.float()"),
            ("grad.flatten(0, -2)[:-1]", "grad.flatten(0, -2)[1:]"),
            ("norm_N.square().median()", "norm_N.square().mean()"),
            ("sums[place] + gram_DD if place in sums else gram_DD", "gram_DD"),
            ("unit_ND = grad_ND / norm_N", "unit_ND = grad_ND"),
            (
                "share.total(sums.pop(place)).cpu() / (num_sequences * (seq_len - 1))",
                "share.total(sums.pop(place)).cpu()",
            ),
            ("rel_damp * curvature_DD.diagonal().mean()", "0 * curvature_DD.diagonal().mean()"),
            ("cos_RF >= ALIKE", "cos_RF.abs() >= ALIKE"),
            ("torch.arange(width) > rows[:, None]", "torch.arange(width) != rows[:, None]"),
            (".masked_fill(dead_F, 0)", ""),
            ("self.moment_FF.add_(moment_FF) if self.num_tokens else moment_FF", "moment_FF"),
        ],
    ),
    "sites": (
        "sites masks families heads head_exports",
        [
            ('replace(linear, "bias", bias.index_select', '(lambda *_: None)(linear, "bias", bias.index_select'),
            ("return weight if rows_are_inputs(self.reader_linear) else weight.T", "return weight"),
            ("bias = bias.index_select(0, rows)\n    return", "pass\n    return"),
            ("_record(linear, OUT_NAMES, len(rows))", "pass"),
            ("_record(linear, IN_NAMES, len(rows))", "pass"),
            ("nn.Parameter(new, old.requires_grad)", "nn.Parameter(new)"),
            ("bias.copy_(bias_D)", "pass"),
            ("self.reader().copy_(reader_FD)", "pass"),
            ("tensor.split(lengths, along), more", "tensor.split(lengths, along), more[::-1]"),
        ],
    ),
    "sites/masks.py": (
        "masks gradual golden_training",
        [
            ("(h * self._mask.to(h), *rest)", "(h, *rest)"),
            ("grad * mask[0].to(grad) if mask else grad", "grad"),
            ("score_grad = (h * grad)", "score_grad = -(h * grad)"),
            (".sum(0, dtype=ctx.score_dtype)", ".mean(0, dtype=ctx.score_dtype)"),
            ("not _in_backward()", "True"),
            ("self.scores[self._where]", "self.scores[: h.shape[-1]]"),
            ("if self.training and self.observer", "if self.observer"),
            ("self._handle.remove()", "pass"),
            ("delattr(self._model[0], ATTRIBUTE)", "pass"),
        ],
    ),
    "sites/walk.py": (
        "blockwise obs",
        [
            ("return out[0] if isinstance(out, tuple) else out", "return out"),
            (
                "self._calls[len(batch_BT)] = self._observe(batch_BT)",
                "self._calls[len(batch_BT)] = self._observe(batch_BT[:1])",
            ),
            ("[layer]\n", "[0]\n"),
            ("(None, *args[1:]) if args else ()", "() if args else ()"),
        ],
    ),
    "sites/proof.py": (
        "sites masks families",
        [
            ("module.__dict__.update(attributes | tables)", "pass"),
            ("> 1e-2 * scale or", "> 1e9 * scale or", "whatever is named wrong in the tests trips the other half, too"),
            ("< 1e-4 * scale:", "< 0 * scale:", "likewise"),
        ],
    ),
    "sites/limits.py": (
        "pruning perplexity",
        [
            ("return int(value)", "return int(value) + 1"),
            ("input_ids.max() >= vocabulary", "input_ids.max() > vocabulary"),
            ("seq_len > limit", "seq_len > limit + 1"),
        ],
    ),
    "pruning.py": (
        "pruning golden_obs plan methods",
        [
            (
                "choose(sites, given or [], share, **how)",
                'choose(sites, given or [], share, **{**how, "multiple_of": 1})',
            ),
            ('name = plan.settings.get("method")', "name = None"),
            ("    record_shapes(model, spec)\n", "    pass\n"),
        ],
    ),
    "checkpoints/shrinking.py": (
        "checkpoint pruning plan",
        [
            ("setattr(plain, key, count)", "pass"),
            ("if counts != dict(plan.counts_before):", "if set(counts) != set(plan.counts_before):"),
            ('("auto_map",) if native else ()', "()"),
            ("setattr(pruned, key, getattr(pruned, key) + 1)", "pass"),
            ("if after[path] != before.get(path)", "if False"),
            (
                "for key, counts in telling.items()} for n in layers}",
                "for key, counts in telling.items()} for n in [*layers][:1]}",
            ),
        ],
    ),
    "checkpoints/shim.py": (
        "checkpoint",
        [
            ('width * (2 if spec["fused_gate"] else 1)', "width"),
            ("if bias and linear.bias is None:", "if False:"),
            ("if outputs and linear.bias is not None:", "if False:"),
            ('_auto_class = "AutoModelForCausalLM"', "_auto_class = None"),
        ],
    ),
    "data/tokens.py": (
        "data perplexity beginning token_cache",
        [
            ("num_tokens // seq_len * beginning", "num_tokens * beginning"),
            ("if seed is not None:", "if False:"),
            ("add_special_tokens=False", "add_special_tokens=True"),
            ("document[: span.end]", "document[: span.start]"),
            ("ids += encoding.input_ids[:room]", "ids += encoding.input_ids"),
            ("_MOST_A_CHARACTER = 4", "_MOST_A_CHARACTER = 0"),
        ],
    ),
    "training/trainer.py": (
        "golden_distillation golden_training teachers training_cli",
        [
            ("model.train(training)", "model.train(False)"),
            ("parts=self.current_gradient_accumulation_steps if in_parts else 1", "parts=1"),
            (
                "(1 - self.kl_weight) * loss + self.kl_weight * far",
                "self.kl_weight * loss + (1 - self.kl_weight) * far",
            ),
            ("labels_BT[:, 1:] != IGNORED", "labels_BT[:, 1:] != 12345"),
            ("where[:, :-1] = labels_BT[:, 1:]", "where[:, :-1] = labels_BT[:, :-1]"),
            ('"labels": torch.full(shape, IGNORED)', '"labels": torch.full(shape, 0)'),
            ("            separate(optimizer, self.pruner.score_group(self.score_lr))", "            pass"),
            ("and self.kl_weight == 1:", "and False:"),
            ("        with self.accelerator.autocast():\n            far_N", "        if True:\n            far_N"),
            ("far_N.sum() / num_items", "far_N.mean()"),
            ("self._loss_shifts_labels = True", "self._loss_shifts_labels = False"),
            ('["attention_mask"][i, : len(ids)] = 1', '["attention_mask"][i, :] = 1'),
        ],
    ),
    "training/prune_callback.py": (
        "golden_training training_cli resume library_face",
        [
            ("self.pruner.begin_step(state.global_step)", "self.pruner.begin_step(0)"),
            ("self.pruner.end_step()", "pass"),
            ("pruner.state() | scores", "scores"),
            ("scores.copy_(state.pop", "_ = (state.pop", "the slow tests of resuming see it"),
        ],
    ),
    "gradual/optimizing.py": (
        "golden_training library_face",
        [
            ("SCORE_EPS = 1e-4", "SCORE_EPS = 1e-8"),
            ('"lr": lr, "eps"', '"lr": lr / 2, "eps"'),
            ('SCORE_EPS, "weight_decay": 0.0}', 'SCORE_EPS, "weight_decay": 0.1}'),
        ],
    ),
    "training/train.py": (
        "golden_distillation golden_training training_cli",
        [
            ("kl_weight=kl_weight", "kl_weight=0.5"),
            ("max_grad_norm=settings.max_grad_norm", "max_grad_norm=1.0"),
            ("weight_decay=settings.weight_decay", "weight_decay=0.0"),
            ("warmup_steps=settings.warmup", "warmup_steps=0"),
            ("lr_scheduler_type=settings.decay", 'lr_scheduler_type="constant_with_warmup"'),
            ("gradient_accumulation_steps=settings.grad_accum", "gradient_accumulation_steps=1"),
            ('"row": row}', '"row": 0}'),
        ],
    ),
    "sites/site.py": ("gone", [("            self.leaves(self.block)\n", "            pass\n")]),
    "budget/choosing.py": ("gone", [(" and place.address.kind in kinds", "")]),
    "jobs/latency.py": (
        "gone latency",
        [("1 - times * (1 - prefill)", "prefill"), ("plan=plan, spec=self.spec", "plan=plan")],
    ),
    "jobs/analysis.py": (
        "analyze",
        [
            ("widths.get(site.layer, 0)", "widths.get(site.layer, site.width)"),
            ("before.get(layer.layer)", "next(iter(before.values()), None)"),
        ],
    ),
    "jobs/analyze.py": ("unit_readings analyze", [("unit_readings.check_readable(kinds)", "pass")]),
    "commands/checks.py": ("study", [("find_sites(blank, kinds,", "find_sites(blank, (),")]),
    "sites/layers.py": (
        "layers layer_scores gone",
        [
            ("place = next(free[kinds[i]])", "place = i"),
            ("kind if i in there else kinds[there[0]]", "kind"),
            ("[entries[i] for i in stay]", "entries[: len(stay)]"),
            ("return last.register_forward_hook(_times(value))", "return block.register_forward_hook(_times(1.0))"),
            ("before if value == 0", "after if value == 0"),
            ('home | dict.fromkeys(passed, "passed")', "home"),
            ("& stays.get(kind, there)", "& there"),
            ("(there - (inside.keys() - left))", "there"),
        ],
    ),
    "scores/layers.py": (
        "layer_scores",
        [
            ("(1 - cosine_BT)", "(1 - cosine_BT.abs())"),
            ("site.members[unit - 1] + 1 if unit", "site.members[unit - 1] if unit"),
            ("now_U[gone] = torch.inf", "pass"),
        ],
    ),
    "solve/layers.py": (
        "layer_scores layers",
        [
            ("[place.members.index(layer)]", "[layer]"),
            ("layer in _gone(place, units)", "True"),
        ],
    ),
    "training/distillation.py": (
        "golden_distillation distillation teachers",
        [
            ("return temperature**2 * torch.cat(found)", "return temperature * torch.cat(found)"),
            ("return temperature**2 * found", "return found"),
            ("mul_(ctx.temperature * grad_N", "mul_(ctx.temperature**2 * grad_N"),
            ("teacher.exp() * teacher.sub(student)", "student.exp() * student.sub(teacher)"),
            ("rest * (rest.log() - student", "rest * (-student"),
        ],
    ),
    "training/teachers.py": (
        "teachers golden_distillation",
        [
            ("eval().requires_grad_(False), temperature", "eval().requires_grad_(False), 1.0"),
            ("model.eval()\n    for row", "for row"),
            ("len(ids).to_bytes(4", "(0).to_bytes(4"),
            ('for name in ("input_ids", "attention_mask") if', 'for name in ("input_ids",) if'),
        ],
    ),
    "training/callbacks.py": (
        "teachers training_cli resume",
        [
            ("count += len(targets_N)", "count += 1 + len(targets_N)"),
            ("return math.exp(min(total / count", "return math.exp(min(total / max(len(batches), 1)"),
            ("if state.global_step == 0:  # a resumed", "if True:  # a resumed"),
        ],
    ),
    "jobs/by_quality.py": (
        "by_quality",
        [
            ("if trial.log <= math.log(most) and", "if"),
            ("or keep < best[0].keep", "or keep > best[0].keep"),
            ("if low < share < high", "if share < high"),
            ("(1 / min(max(power, _POWERS[0]), _POWERS[1]))", "1.0"),
            ("around.cdf(math.log(most))", "around.cdf(trial.log)"),
        ],
    ),
    "jobs/sweep.py": (
        "sweep",
        [
            ("eval_data is None and as_long", "False and as_long"),
            ("if name not in done:", "if True:"),
        ],
    ),
    "solve/second_look.py": (
        "second_look",
        [
            ("max(gain / said[place], 1.0)", "1.0"),
            ("max(gain / said[place], 1.0)", "gain / said[place]"),
            ("    held[errors_U.argsort(descending=True)[:count]] = torch.inf\n", ""),
            ("whole * spent[place] / sum(spent) if", "spent[place] if"),
            (" if spent[place] else 0.0", ""),
            ("self.input_ids[:-_JUDGED] if", "self.input_ids if"),
            ("    site.set_reader(*reader)\n", ""),
            ("    site.set_reader(*cut)\n", ""),
            ('scope == "global" and', ""),
            ("and not isinstance(keep, Mapping)", ""),
        ],
    ),
    "budget/levels.py": (
        "second_look",
        [
            ("        errors[level + 1 :] = np.inf\n", ""),
            ("self.errors * times", "self.errors * 1.0"),
        ],
    ),
    "study/records.py": (
        "study",
        [
            ('            found.pop(record["id"], None)\n', ""),
            ("if len(kept) > len(widths) else record", "if False else record"),
        ],
    ),
    "study/runner.py": ("study", [("in ids - latest", "in ids"), ("        _put_last(study, out)\n", "")]),
    "report/claims.py": ("report", [("math.log(measured)\n", "math.log(max(measured, 200.0))\n")]),
    "training/passes.py": (
        "passes",
        [
            ("A_STEP, RATE = 8, 3e-4", "A_STEP, RATE = 8, 3e-3"),
            ("min(A_STEP, sequences) // batch", "A_STEP // batch"),
            ("0.0 if steps < _FEW else 0.1", "0.1"),
            ("steps_for(passes, sequences", "steps_for(1, sequences"),
            ('decay="cosine"', 'decay="linear"'),
            ("OnlineTeacher(dense, model, 1.0)", "OnlineTeacher(dense, model, 2.0)"),
            ("kl_weight=1.0", "kl_weight=0.9"),
            ("        model.requires_grad_(True)\n", ""),
            ("parameter.requires_grad_(False)", "pass"),
            ("undisturbed(dense), undisturbed(model)", "undisturbed(model)"),
            ("undisturbed(dense), undisturbed(model)", "undisturbed(dense)"),
            ("    check_trainable(model)\n", ""),
        ],
    ),
    "jobs/passes.py": (
        "passes",
        [
            ("if training is not None:", "if False:"),
            ('if options["max_ppl_ratio"] is not None:', "if False:"),
            ('if options["stream"]:', "if False:"),
            ("if several():", "if False:"),
            ('towards(dense, made.model, ids, asked["recover"]', "towards(dense, made.model, ids, 1"),
        ],
    ),
    "solve/budgeted.py": (
        "budgeted trials",
        [
            ('found[choice].get("tuned", found[choice]["loss"])', 'found[choice]["loss"]'),
            ("best = min(tried, key", "best = max(tried, key"),
            ("best == start", "best != start"),
            ("            found.update(tensors_fingerprint(block.state_dict()).encode())\n", ""),
            ('{**rest, "input_ids": self.input_ids}', '{"input_ids": self.input_ids}'),
        ],
    ),
    "report/comparison.py": (
        "compare",
        [
            ('if "seconds" in turn', "if True"),
            ('turn["seconds"] / 60, turn["best"]', 'turn["seconds"] / 60, turn["loss"]'),
        ],
    ),
    "runtimes/mixtures.py": (
        "gguf_mixtures",
        [
            ("(T.FFN_GATE_EXP, T.FFN_UP_EXP)", "(T.FFN_UP_EXP, T.FFN_GATE_EXP)"),
            ('"residual_scale": "residual_multiplier", ', ""),
            ('"expert_gating_func": _SIGMOID},\n    )', "},\n    )"),
        ],
    ),
    "export/verify.py": (
        "gguf_mixtures verify",
        [
            ("[-(len(squares_P) // 4) - 1]", "[0]"),
            ("TIMES * guard.noise", "1e9 * guard.noise"),
        ],
    ),
    "checkpoints/gguf_config.py": (
        "gguf_mixtures gguf_reading head_exports",
        [
            ("key, expected) != expected", "key, expected) == None"),
            ("    if len({a / b for", "    if False and len({a / b for"),
        ],
    ),
}
