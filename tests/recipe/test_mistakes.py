"""Each way of getting a recipe wrong says where it is, what is wrong and what there is instead."""

from pathlib import Path

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from tests.recipe.conftest import GOOD

# name: (text to replace in the good recipe, replacement, [(line, words of the message), ...])
EDITS: dict[str, tuple[str, str, list[tuple[int, str]]]] = {
    "a typo in an option": ("  lr: 2e-5", "  lrr: 2e-5", [(14, "train.lrr is no option; did you mean lr?")]),
    "another tool's name": ("  lr: 2e-5", "  learning_rate: 2e-5", [(14, "did you mean lr?")]),
    "a typo in a section": ("seed: 1", "sed: 1", [(20, "sed is no option; did you mean seed? there are: model, adapter")]),
    "a typo in a required option": ("  name: acme/small", "  nmae: acme/small", [(2, "model.nmae is no option; did you mean name?")]),
    "an option of another section": ("seed: 1", "lr: 1", [(20, "lr is no option; there are: model")]),
    "a required option is missing": ("    path: acme/rows\n", "", [(8, "data.train.path is missing: Hub id")]),
    "a required section is missing": ("model:\n  name: acme/small\n", "", [(1, "model is missing")]),
    "a section is null": ("model:\n  name: acme/small", "model:", [(1, "model is missing")]),
    "a method that is not there yet": (
        "method: soka",
        "method: lorra",
        [(4, "lorra is not available; did you mean lora? available: soka, lora, pissa, lokr, dora, full, peft")],
    ),
    "a rule that there is not": (
        "rule: fixed, value: 2",
        "rule: threshold",
        [(6, "available: min, energy, elbow, gavish-donoho, fixed, budget")],
    ),
    "an elbow that there is not": (
        "rule: fixed, value: 2",
        "rule: elbow, elbow: knee",
        [(6, "knee is not available; available: gap, relative-gap, chord")],
    ),
    "a shape that there is not": (
        "  method: soka",
        "  method: soka\n  shape: square",
        [(5, "available: balanced, search, {block: 64}, {m: 64, n: 64}")],
    ),
    "a start that there is not": (
        "  method: soka",
        "  method: soka\n  init: gradients",
        [(5, "gradients is not available; did you mean gradient? available: weight, random, gradient, early-update")],
    ),
    "a start that does not read it": (
        "  method: soka",
        "  method: soka\n  init: gradient\n  init_lr: 1e-4",
        [(6, "adapter: init gradient does not read init_lr; drop it, or write init: early-update")],
    ),
    "an option of the data's starts alone": (
        "  method: soka",
        "  method: soka\n  init_rows: 8",
        [(5, "init weight does not read init_rows; drop it, or write init: gradient or early-update")],
    ),
    "a start's option under another method": (
        "method: soka",
        "method: lora\n  init_rows: 8",
        [(5, "method lora does not read init_rows; drop it")],
    ),
    "a typo in a value": (
        "template: plain",
        "template: plian",
        [(12, "plian is not available; did you mean plain? available: alpaca, plain, chat")],
    ),
    "a shape with half its sizes": (
        "  method: soka",
        "  method: soka\n  shape: {m: 4}",
        [(5, "adapter.shape.n is missing: Columns of U.")],
    ),
    "a shape of two kinds": ("  method: soka", "  method: soka\n  shape: {m: 4, block: 2}", [(5, "adapter.shape.m is no option")]),
    "a shape that is a number": (
        "  method: soka",
        "  method: soka\n  shape: 64",
        [(5, "adapter.shape is no shape; write balanced, search, {block: 64}")],
    ),
    "a shape pattern's value": ("  method: soka", "  method: soka\n  shape_pattern: {q_proj: {blok: 2}}", [(5, "did you mean block?")]),
    "a shape pattern that is no pattern": (
        "  method: soka",
        "  method: soka\n  shape_pattern: {'q(': balanced}",
        [(5, "no regular expression")],
    ),
    "no target modules": ("[q_proj, v_proj]", "[]", [(5, "write a list of names ([q_proj, v_proj]), a pattern, or all-linear")]),
    "a number among target modules": ("[q_proj, v_proj]", "[q_proj, 3]", [(5, "write a list of names")]),
    "a target pattern that is no pattern": ("[q_proj, v_proj]", "'*proj'", [(5, "no regular expression")]),
    "text for a number": ("lr: 2e-5", "lr: fast", [(14, "train.lr is fast, and takes a number")]),
    "a boolean for a number": ("lr: 2e-5", "lr: true", [(14, "train.lr is true, not a number")]),
    "a boolean for a count": ("steps: 20", "steps: true", [(15, "train.steps is true, not a number")]),
    "a fraction for a count": ("steps: 20", "steps: 2.5", [(15, "train.steps is 2.5, not a whole number")]),
    "a suffix that leaves a fraction": ("steps: 20", "steps: 0.0005k", [(15, "train.steps is 0.5000, not a whole number")]),
    "a suffix that is none": ("steps: 20", "steps: 20x", [(15, "train.steps is '20x', not a count; write 991353, 0.99M")]),
    "a negative rate": ("lr: 2e-5", "lr: -1", [(14, "train.lr is -1; it must be greater than 0")]),
    "a rate of infinity": ("lr: 2e-5", "lr: .inf", [(14, "train.lr is inf, and takes a finite number")]),
    "a count of zero": ("steps: 20", "steps: 0", [(15, "train.steps is 0; it must be 1 or more")]),
    "a share above one": ("rule: fixed, value: 2", "rule: energy, tau: 90", [(6, "adapter.rank.tau is 90; it must be 1 or less")]),
    "a warm-up of the whole run": ("  lr: 2e-5", "  lr: 2e-5\n  warmup: 1", [(15, "it must be less than 1")]),
    "a list for a section": (
        "model:\n  name: acme/small",
        "model: [acme/small]",
        [(1, "model is a list, and takes a mapping of name, revision")],
    ),
    "a text for a section": ("model:\n  name: acme/small", "model: acme/small", [(1, "model is acme/small, and takes a mapping of name")]),
    "a mapping for a list": (
        "eval:\n  - {task: gsm8k, path: acme/test}",
        "eval: {task: gsm8k}",
        [(18, "eval is a mapping, and takes a list")],
    ),
    "a text in a list of sections": (
        "  - {task: gsm8k, path: acme/test}",
        "  - gsm8k",
        [(19, "eval.0 is gsm8k, and takes a mapping of name, task")],
    ),
    "a number for text": ("acme/small", "7", [(2, "model.name is 7, and takes text; put a number in quotes")]),
    "an empty text": ("acme/small", "''", [(2, "model.name is '', and takes text, and this is empty")]),
    "a folder name that is a path": ("task: gsm8k, ", "task: gsm8k, name: a/b, ", [(19, "letters, digits, dot, dash and underscore")]),
    "fixed without a value": ("rule: fixed, value: 2", "rule: fixed", [(6, "rule fixed needs value, e.g. {rule: fixed, value: 2}")]),
    "budget without its total": ("rule: fixed, value: 2", "rule: budget", [(6, "rule budget needs parameters, e.g. {rule: budget")]),
    "a total that is no count": (
        "rule: fixed, value: 2",
        "rule: budget, parameters: 1.5x",
        [(6, "'1.5x', not a count; write 991353, 0.99M")],
    ),
    "a total of nothing": (
        "rule: fixed, value: 2",
        "rule: budget, parameters: 0",
        [(6, "adapter.rank.parameters is 0; it must be 1 or more")],
    ),
    "a floor above max": (
        "rule: fixed, value: 2",
        "rule: budget, parameters: 9k, floor: 3, max: 2",
        [(6, "adapter.rank: floor 3 is above max 2")],
    ),
    "a floor below zero": (
        "rule: fixed, value: 2",
        "rule: budget, parameters: 9, floor: -1",
        [(6, "rank.floor is -1; it must be 0 or more")],
    ),
    "a floor under another rule": (
        "rule: fixed, value: 2",
        "rule: min, floor: 1",
        [(6, "rule min does not read floor; drop it, or write rule: budget")],
    ),
    "a threshold of energy under a budget": (
        "rule: fixed, value: 2",
        "rule: budget, parameters: 9k, tau: 0.9",
        [(6, "rule budget does not read tau; drop it, or write rule: min or energy")],
    ),
    "no noise": ("rule: fixed, value: 2", "rule: gavish-donoho, noise: 0", [(6, "adapter.rank.noise is 0; it must be greater than 0")]),
    "noise under another rule": (
        "rule: fixed, value: 2",
        "rule: elbow, noise: 0.1",
        [(6, "rule elbow does not read noise; drop it, or write rule: gavish-donoho")],
    ),
    "an elbow under gavish-donoho": (
        "rule: fixed, value: 2",
        "rule: gavish-donoho, elbow: chord",
        [(6, "rule gavish-donoho does not read elbow; drop it, or write rule: min or elbow")],
    ),
    "lora under a budget": (
        "method: soka\n  target_modules: [q_proj, v_proj]\n  rank: {rule: fixed, value: 2}",
        "method: lora\n  target_modules: [q_proj, v_proj]\n  rank: {rule: budget, parameters: 9k}",
        [(6, "method lora needs rank: {rule: fixed, value: r}")],
    ),
    "a match beside a rank": (
        "method: soka",
        "method: lora\n  match_parameters: 0.99M",
        [(7, "adapter: match_parameters chooses the rank; drop rank")],
    ),
    "a match with what is no method": (
        "method: soka",
        "method: lora\n  match_parameters: sokka",
        [(5, "match_parameters is 'sokka'; write a count (991353, 0.99M) or soka, lora, pissa, lokr, dora")],
    ),
    "a match with nothing": ("method: soka", "method: lora\n  match_parameters: 0", [(5, "write a count of 1 or more")]),
    "a match with what only the spectra tell": (
        "method: soka\n  target_modules: [q_proj, v_proj]\n  rank: {rule: fixed, value: 2}",
        "method: lora\n  match_parameters: soka\n  rank: {rule: min}",
        [(5, "rule min tells its parameters only after soka decompose")],
    ),
    "a match under soka": ("method: soka", "method: soka\n  match_parameters: 9k", [(5, "method soka does not read match_parameters")]),
    "peft without its method": (
        "method: soka\n  target_modules: [q_proj, v_proj]\n  rank: {rule: fixed, value: 2}",
        "method: peft\n  config: {r: 2}",
        [(5, "method peft needs config: {peft_type: LOHA, ...}")],
    ),
    "a method of peft elsewhere": (
        "method: soka",
        "method: lora\n  config: {peft_type: LOHA}",
        [(5, "config.peft_type belongs to method: peft")],
    ),
    "a way of holding sigma that there is not": ("method: soka", "method: soka\n  sigma: folded", [(5, "available: separate, split")]),
    "a setting of another schedule": (
        "  lr: 2e-5",
        "  lr: 2e-5\n  schedule: linear\n  schedule_config: {power: 2}",
        [(16, "schedule linear has no setting power; it reads none")],
    ),
    "a schedule without its setting": (
        "  lr: 2e-5",
        "  lr: 2e-5\n  schedule: warmup_stable_decay",
        [(15, "schedule warmup_stable_decay needs schedule_config: {num_decay_steps: ...}")],
    ),
    "the best of what is not measured": ("  lr: 2e-5", "  lr: 2e-5\n  keep: best", [(15, "train.keep goes by eval_loss")]),
    "patience with what is not measured": (
        "  lr: 2e-5",
        "  lr: 2e-5\n  early_stopping: {patience: 3}",
        [(15, "train.early_stopping goes by eval_loss, which needs data.validation")],
    ),
    "a word for a switch": ("  lr: 2e-5", "  lr: 2e-5\n  log_module_norms: much", [(15, "is much, and takes true or false")]),
    "a tracker that there is not": (
        "  lr: 2e-5",
        "  lr: 2e-5\n  trackers: [comet]",
        [(15, "available: tensorboard, trackio, wandb, mlflow")],
    ),
    "the rate of B without a B": ("  lr: 2e-5", "  lr: 2e-5\n  lora_b_lr: 1e-3", [(15, "method soka does not read train.lora_b_lr")]),
    "a rule that does not read it": ("rule: fixed, value: 2", "rule: fixed, value: 2, tau: 0.9", [(6, "rule fixed does not read tau")]),
    "a method that does not read it": (
        "method: soka",
        "method: lora\n  shape: balanced",
        [(5, "method lora does not read shape; drop it")],
    ),
    "full with a rank": ("method: soka\n  target_modules: [q_proj, v_proj]", "method: full", [(5, "method full does not read rank")]),
    "lora without a fixed rank": (
        "method: soka\n  target_modules: [q_proj, v_proj]\n  rank: {rule: fixed, value: 2}",
        "method: lora",
        [(3, "method lora needs rank: {rule: fixed, value: r}")],
    ),
    "task and columns": ("    prompt: question", "    task: gsm8k\n    prompt: question", [(11, "drop prompt and target or drop task")]),
    "one column of two": ("    target: answer\n", "", [(10, "name a task (task: gsm8k) or both columns")]),
    "messages and columns": (
        "    prompt: question",
        "    messages: talk\n    prompt: question",
        [(10, "messages hold prompt and target; drop prompt and target or drop messages")],
    ),
    "conversations under alpaca": (
        "    prompt: question\n    target: answer\n  template: plain",
        "    messages: talk\n  template: alpaca",
        [(11, "messages are written by the tokenizer's chat template")],
    ),
    "a weight with nothing to weigh against": (
        "    target: answer",
        "    target: answer\n    weight: 2",
        [(12, "a weight compares sources, and there is one")],
    ),
    "a source of a list with one column": (
        "  train:\n    path: acme/rows\n    prompt: question\n    target: answer",
        "  train:\n    - {path: acme/rows, task: gsm8k}\n    - {path: acme/more, prompt: question}",
        [(10, "data.train.1: name a task (task: gsm8k) or both columns")],
    ),
    "a typo in a source of a list": (
        "  train:\n    path: acme/rows\n    prompt: question\n    target: answer",
        "  train:\n    - {path: acme/rows, task: gsm8k, wieght: 2}",
        [(9, "data.train.0.wieght is no option; did you mean weight?")],
    ),
    "a weight of zero": (
        "  train:\n    path: acme/rows\n    prompt: question\n    target: answer",
        "  train:\n    - {path: acme/rows, task: gsm8k, weight: 0}\n    - {path: acme/more, task: gsm8k}",
        [(9, "data.train.0.weight is 0; it must be greater than 0")],
    ),
    "no sources": (
        "  train:\n    path: acme/rows\n    prompt: question\n    target: answer",
        "  train: []",
        [(8, "data.train names no source; write a mapping, or a list of mappings")],
    ),
    "a text for the sources": (
        "  train:\n    path: acme/rows\n    prompt: question\n    target: answer",
        "  train: acme/rows",
        [(8, "data.train is acme/rows, and takes a mapping of path, task")],
    ),
    "a text for a switch": ("  template: plain", "  packing: often", [(12, "data.packing is often, and takes true or false")]),
    "validation of two kinds": (
        "  template",
        "  validation: {fraction: 0.1, path: x}\n  template",
        [(12, "name fraction or path, one of them")],
    ),
    "validation of no kind": ("  template", "  validation: {rows: 3}\n  template", [(12, "name fraction or path, one of them")]),
    "steps and epochs": ("  steps: 20", "  steps: 20\n  epochs: 1", [(15, "name epochs or steps, not both")]),
    "batches that do not fit": ("micro_batch_size: 4", "micro_batch_size: 3", [(17, "batch_size 8 is no multiple of micro_batch_size 3")]),
    "a batch size suffix": ("  batch_size: 8", "  batch_size: 8z", [(16, "train.batch_size is '8z', not a count")]),
    "eval entries of one name": (
        "  - {task: gsm8k, path: acme/test}",
        "  - {task: gsm8k, path: a}\n  - {task: gsm8k, path: b}",
        [(20, "eval entries share the name gsm8k-plain")],
    ),
    "samples that are all the same": (
        "path: acme/test",
        "path: acme/test, samples: 4",
        [(19, "4 samples are all the same at temperature 0")],
    ),
    "top_p of nothing drawn": ("path: acme/test", "path: acme/test, top_p: 0.9", [(19, "top_p is of drawn tokens")]),
    "pass@k of answers": ("path: acme/test", "path: acme/test, pass_at: [1]", [(19, "task gsm8k has no pass@k")]),
    "pass@k beyond the samples": (
        "{task: gsm8k, path: acme/test}",
        "{task: mbpp, path: acme/test, samples: 4, temperature: 0.8, pass_at: [1, 10]}",
        [(19, "pass@10 can't be told from 4 samples")],
    ),
    "a key twice": ("  steps: 20", "  steps: 20\n  steps: 30", [(16, "steps is written twice, first on line 15")]),
    "a section twice": ("seed: 1", "seed: 1\nmodel: {name: x}", [(21, "model is written twice, first on line 1")]),
    "a tab": ("  lr: 2e-5", "\tlr: 2e-5", [(14, "a tab where spaces are wanted")]),
    "a bracket left open": ("[q_proj, v_proj]", "[q_proj, v_proj", [(6, "is not YAML")]),
    "a colon in a text": ("path: acme/rows", "path: acme: rows", [(9, "put text that holds it in quotes")]),
    "a Python tag": (
        "name: acme/small",
        "name: !!python/object/apply:os.getcwd []",
        [(2, "the tag !!python/object/apply:os.getcwd is not allowed")],
    ),
    "a tag on text": ("name: acme/small", "name: !!python/name:os.getcwd x", [(2, "is not allowed; a recipe holds text, numbers")]),
    "an alias of nothing": ("acme/small", "*gone", [(2, "name it with & before")]),
    "an anchor in itself": ("seed: 1", "seed: &a [*a]", [(20, "an anchor holds itself")]),
    "a list as a key": ("seed: 1", "? [1, 2]\n: 3", [(20, "a key must be one word")]),
    "two documents": ("seed: 1", "---\nseed: 1", [(20, "more than one document")]),
    "extends of nothing": ("seed: 1", "extends: models/llama2-7bb", [(20, "no such file beside it; did you mean models/llama2-7b?")]),
    "extends of a number": ("seed: 1", "extends: [3]", [(20, "extends takes a fragment's name, or a list of names")]),
    "extends of itself": ("seed: 1", "extends: recipe", [(20, "extends runs in a circle: recipe.yaml -> recipe.yaml")]),
    "a seed below zero": ("seed: 1", "seed: -1", [(20, "seed is -1; it must be 0 or more")]),
    "a filter that holds a list": (
        "    target: answer",
        "    target: answer\n    filter: {lang: [a]}",
        [(12, "data.train.filter.lang is a list")],
    ),
    "bounds of nothing": (
        "  name: acme/small",
        "  name: acme/small\n  max_memory: {}",
        [(3, "model.max_memory: name gpu or cpu or both")],
    ),
    "a size that is none": (
        "  name: acme/small",
        "  name: acme/small\n  max_memory: {gpu: 8 gigs}",
        [(3, "not a size; write 8GiB, 8GB (8G) or bytes")],
    ),
    "offloaded without activation checkpointing": (
        "  name: acme/small",
        "  name: acme/small\n  max_memory: {cpu: 1GB}",
        [(3, "max_memory needs train.activation_checkpointing: true")],
    ),
}

OVERRIDES: dict[str, tuple[str, str]] = {
    "no equals sign": ("train.lr", "write key.path=value, e.g. train.lr=1e-4"),
    "an empty key": ("train.=3", "write key.path=value"),
    "a typo in an override": ("train.lrr=3", "train.lrr is no option; did you mean lr?"),
    "a typo in a section's name": ("trian.lr=3", "trian is no option; did you mean train?"),
    "a path through a value": ("model.name.x=3", "model.name holds one value, not options"),
    "an entry that is not there": ("eval.3.limit=3", "eval has no entry 3; it has entry 0 alone"),
    "an entry that is no number": ("eval.gsm8k.limit=3", "eval has no entry gsm8k"),
    "an entry of a single source": ("data.train.0.rows=3", "data.train.0 is no option"),
    "an option that entries lack": ("eval.0.limits=3", "eval.0.limits is no option; did you mean limit?"),
    "a bad value in an override": ("train.lr=fast", "train.lr is fast, and takes a number"),
    "broken YAML in an override": ("adapter.shape={block: 3", "is not YAML"),
    "a method's option in an override": ("adapter.alpha=3", "method soka does not read alpha"),
    "a rule without its value": ("adapter.rank={rule: fixed}", "rule fixed needs value"),
    "sigma_lr without soka": ("adapter.method=lora train.sigma_lr=1e-3", "method lora does not read train.sigma_lr; drop it"),
    "extends in an override": ("extends=good", "extends is no option"),
    "a required option taken away": ("data.train.path=null", "data.train.path is missing"),
}

FILES: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "is empty; a recipe names model and data at least"),
    "comments alone": (b"# nothing\n", "is empty"),
    "a null": (b"null\n", "is empty"),
    "a list": (b"- model\n", "holds a list where a mapping"),
    "a text": (b"just words\n", "holds the text 'just words' where a mapping"),
    "binary": (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not UTF-8 text (byte 0)"),
    "a null byte": (b"model: a\x00b\n", "is not YAML"),
    "nested without end": (b"a: " + b"[" * 1500, "nested too deeply"),
    "anchors that multiply": (
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(8)),
        "anchors blow the document up",
    ),
}


def lines_of(error: SokaError) -> list[str]:
    return error.why.splitlines()


@pytest.mark.parametrize("name", EDITS)
def test_a_mistake_in_the_file_is_named_with_its_line(name: str, folder: Path) -> None:
    old, new, expected = EDITS[name]
    assert GOOD.count(old) >= 1, "the edit must find its place"
    (folder / "recipe.yaml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SokaError) as caught:
        load_recipe("recipe.yaml")
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.hint
    assert len(lines_of(caught.value)) == len(expected), lines_of(caught.value)
    for line, (number, words) in zip(lines_of(caught.value), expected, strict=True):
        assert line.startswith(f"recipe.yaml:{number}: "), line
        assert words in line


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_mistake_in_an_override_names_the_override(name: str, folder: Path) -> None:
    text, words = OVERRIDES[name]
    overrides = text.split(" ") if "{" not in text else [text]
    with pytest.raises(SokaError) as caught:
        load_recipe("good.yaml", overrides)
    assert caught.value.exit_code == ExitCode.USAGE
    assert len(lines_of(caught.value)) == 1, lines_of(caught.value)
    assert lines_of(caught.value)[0].startswith(f"override {overrides[-1]}: ") or "is missing" in words
    assert words in lines_of(caught.value)[0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_recipe_is_named(name: str, folder: Path) -> None:
    content, words = FILES[name]
    (folder / "recipe.yaml").write_bytes(content)
    with pytest.raises(SokaError) as caught:
        load_recipe("recipe.yaml")
    assert caught.value.exit_code == ExitCode.USAGE
    assert lines_of(caught.value)[0].startswith("recipe.yaml")
    assert words in caught.value.why


def test_at_least_forty_mistakes_are_tried() -> None:
    assert len(EDITS) + len(OVERRIDES) + len(FILES) >= 80


def test_the_recipe_that_the_mistakes_are_made_in_is_good(folder: Path) -> None:
    assert load_recipe("good.yaml").recipe.train.steps == 20


def test_all_mistakes_come_at_once_in_the_order_of_lines(folder: Path) -> None:
    edits = {"acme/small": "3", "method: soka": "method: lorra", "value: 2": "valeu: 2", "lr: 2e-5": "lr: x", "seed: 1": "sed: 1"}
    edits["micro_batch_size: 4"] = "micro_batch_size: 3"
    text = GOOD
    for old, new in edits.items():
        text = text.replace(old, new, 1)
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(SokaError) as caught:
        load_recipe("recipe.yaml", ["train.warmup=2", "nothing.here=1"])
    assert caught.value.what == "8 mistakes in recipe recipe.yaml"
    numbers = [line.split(":")[1] for line in lines_of(caught.value) if line.startswith("recipe.yaml")]
    assert numbers == ["2", "4", "6", "14", "17", "20"]
    assert [line for line in lines_of(caught.value) if line.startswith("override train.warmup=2: ")]
    assert [line for line in lines_of(caught.value) if line.startswith("override nothing.here=1: ")]


def test_what_is_wrong_between_options_is_not_blamed_on_one_that_was_misspelt(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD.replace("value: 2", "value: two"))
    with pytest.raises(SokaError) as caught:
        load_recipe("recipe.yaml")
    assert len(lines_of(caught.value)) == 1
    assert "rank.value" in caught.value.why


def test_a_mistake_in_a_fragment_is_named_with_the_fragments_own_file(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "base.yaml").write_text("# a fragment\ntrain:\n  warmpu: 0.1\n")
    (folder / "recipe.yaml").write_text(f"extends: parts/base\n{GOOD}")
    with pytest.raises(SokaError) as caught:
        load_recipe("recipe.yaml")
    assert lines_of(caught.value)[0].startswith("parts/base.yaml:3: train.warmpu is no option; did you mean warmup?")


def test_a_circle_of_three_files_names_the_chain(folder: Path) -> None:
    for name, following in (("a", "b"), ("b", "c"), ("c", "a")):
        (folder / f"{name}.yaml").write_text(f"extends: {following}\n{GOOD}")
    with pytest.raises(SokaError) as caught:
        load_recipe("a.yaml")
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml" in caught.value.why
    assert lines_of(caught.value)[0].startswith("c.yaml:1: ")


def test_a_recipe_that_does_not_exist_lists_those_that_are_packaged(folder: Path) -> None:
    with pytest.raises(SokaError) as caught:
        load_recipe("gsm8")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "gsm8k" in caught.value.why
    assert "mbpp" in caught.value.why
    assert "did you mean --recipe gsm8k.yaml?" in caught.value.hint


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "..", "/"])
def test_a_name_that_no_file_can_have_is_no_recipe(name: str, folder: Path) -> None:
    with pytest.raises(SokaError, match="there is no recipe"):
        load_recipe(name)


def test_a_folder_is_no_recipe(folder: Path) -> None:
    (folder / "some").mkdir()
    with pytest.raises(SokaError, match="there is no recipe some"):
        load_recipe("some")
