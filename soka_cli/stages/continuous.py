"""Continuous batching, by transformers' own manager: a prompt takes its place among those that write as soon as another has ended."""

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from soka_cli.models.offload import is_offloaded
from soka_cli.run.resources import is_memory_full
from soka_cli.stages.answerer import Completion
from soka_cli.stages.completions import Completer
from soka_cli.stages.sampling import lead
from soka_cli.stages.stopping import Ids

PAGE = 32  # tokens of one prompt that lie together in the cache
READ_AT_ONCE = 512  # tokens of a step, at most: with more, prompts that write wait for those that are read
PATIENCE = 0.5  # seconds between looks whether the manager still runs
PROBE = 8  # tokens of a prompt that is tried
NOISE, COARSE_NOISE = 1e-3, 0.25  # logits by which company in a batch moves a lead at most, in fp32 and in types of 16 bits
MANAGERS_LOG = "ContinuousBatchingLogger"  # it prints a traceback of whatever is raised here as well

Ended = list[tuple[int, Completion]]


class ContinuousCompleter:
    """Completions as they end.

    Args:
        completer: the model with its settings; what it says of ends, stops, rooms and draws holds here too.
        size: prompts that write at the same time, at most.
    """

    def __init__(self, completer: Completer, size: int) -> None:
        self.completer = completer
        self.size = size

    def complete(self, prompts: Sequence[Ids], seeds: Sequence[int] = ()) -> Iterator[Ended]:
        """Place and completion of each prompt, those together that are there at the same time.

        What does not fit into the device's memory is halved, and what has not ended yet asked again.

        Raises:
            RuntimeError: the model can't be run so.
        """
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
        if full := [place for place in order if not self.completer.room(prompts[place])]:
            yield [(place, self.completer.unasked()) for place in full]
        missing = {place: prompts[place] for place in order if self.completer.room(prompts[place])}
        while missing:
            size = min(self.size, len(missing))
            try:
                for ended in self._run(missing, {place: seeds[place] for place in missing} if seeds else {}, size):
                    missing = {place: prompt for place, prompt in missing.items() if place not in dict(ended)}
                    yield ended
            except Exception as error:
                if size == 1 or not is_memory_full(error):
                    raise
                self.size = (size + 1) // 2
                self.completer.said(f"A batch of {size} prompts does not fit into memory; going on with {self.size}.")

    def _run(self, prompts: Mapping[int, Ids], seeds: Mapping[int, int], size: int) -> Iterator[Ended]:
        """One life of the manager, which ends as soon as something fails."""
        rooms = {place: self.completer.room(prompt) for place, prompt in prompts.items()}
        watch = Watch(self.completer, prompts, seeds, rooms)
        pages = sorted((-(-(len(prompt) + rooms[place]) // PAGE) for place, prompt in prompts.items()), reverse=True)
        with running(self.completer, watch, blocks=sum(pages[:size]) + 1, size=size) as manager:
            left = len(prompts)
            while left:
                outputs = arrived(manager)
                left -= len(outputs)
                yield [(int(output.request_id), watch.completion(output)) for output in outputs]


class Watch(ContinuousBatchingLogitsProcessorList):
    """Stands between logits and choice: notes the leads, draws samples, and ends a prompt that wrote a stop string.

    It takes the place of the manager's logits processors. The manager knows no stop strings; such a prompt is made to choose an EOS.
    """

    def __init__(self, completer: Completer, prompts: Mapping[int, Ids], seeds: Mapping[int, int], rooms: Mapping[int, int]) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.completer, self.prompts, self.seeds, self.rooms = completer, prompts, seeds, rooms
        self.gaps: dict[int, list[Tensor]] = {place: [] for place in prompts}
        self.stopped: dict[int, int] = {}
        self._rows: list[int] = []
        self._steps: list[int] = []

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Tensor) -> Tensor:
        """Before a step, in the manager's thread: whose the logits will be, and which of them have said enough."""
        states = [request.state for request in requests_in_batch if request.has_new_token]
        written = {int(state.request_id): self._written(state) for state in states}
        self._rows, self._steps = list(written), [len(ids) for ids in written.values()]
        for place, ids in written.items():
            if place not in self.stopped and self.completer.wording.stopped(ids):
                self.stopped[place] = len(ids)
        return arg_storage

    def _written(self, state: Any) -> Ids:
        """The tokens so far; a prompt that had to leave the cache is read again together with those it had."""
        length = len(self.prompts[int(state.request_id)])
        return [*state.initial_tokens[length:], *state.generated_tokens]

    def __call__(self, input_ids: Any, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        """`scores` [rows, vocabulary]; what follows the announced rows belongs to prompts that are not read to their end."""
        count = len(self._rows)
        for place, gap in zip(self._rows, lead(scores[:count]), strict=True):
            self.gaps[place].append(gap)
        if self.completer.chooser is not None:
            scores[:count] = self.completer.chooser(scores[:count], [self.seeds[place] for place in self._rows], self._steps)
        if enough := [row for row, place in enumerate(self._rows) if place in self.stopped]:
            scores[enough] = -torch.inf
            scores[enough, self.completer.ends[0]] = 0.0
        return scores

    def completion(self, output: Any) -> Completion:
        """Of a request that ended."""
        place = int(output.request_id)
        gaps = torch.stack(self.gaps.pop(place)).tolist()
        return self.completer.completion(list(output.generated_tokens)[: self.stopped.get(place)], self.rooms[place], gaps)


@contextmanager
def running(completer: Completer, watch: Watch, *, blocks: int, size: int) -> Iterator[Any]:
    """The manager at work in its thread on the watch's prompts, with `blocks` pages of cache; gone afterwards, with what is not done."""
    model = completer.model
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=completer.ends, pad_token_id=completer.pad),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=blocks,
            max_batch_tokens=max(READ_AT_ONCE, size),
            max_requests_per_batch=size,
            auto_switch_to_flash=False,  # it may ask the Hub for a kernel, and both ways of batching shall compute alike
            use_async_batching=False,  # a stop string has to be seen before the next step
            use_cuda_graph=False,
        ),
    )
    manager.logit_processor = watch
    log = logging.getLogger(MANAGERS_LOG)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    gc.freeze()  # the manager collects garbage when it ends, which goes through all objects of transformers otherwise
    try:
        with apart(model):
            for place, prompt in watch.prompts.items():  # all before the first step, so that the same prompts always meet the same others
                manager.add_request(prompt, str(place), max_new_tokens=watch.rooms[place], eos_token_id=completer.ends)
            manager.start()
            try:
                yield manager
            finally:
                manager.stop(block=True, hard_stop=True)
                manager.destroy()
    finally:
        gc.unfreeze()
        log.setLevel(level)


def arrived(manager: Any) -> list[Any]:
    """The requests that ended since the last call, at least one; raises what ended the manager before."""
    outputs: list[Any] = []
    while True:
        output = manager.get_result(timeout=0 if outputs else PATIENCE)
        if output is not None and output.error is None:
            outputs.append(output)
        elif output is not None or not (outputs or manager.is_running()):
            raise failure(manager, "continuous batching ended early" if output is None else output.error)
        elif outputs:
            return outputs


def failure(manager: Any, words: str) -> Exception:
    """What ended the manager: its own exception where it was one."""
    manager.stop(block=True, hard_stop=True)  # it notes its exception last
    return manager.background_thread_status.fatal_error or RuntimeError(words)


@contextmanager
def apart(model: Any) -> Iterator[None]:
    """On a CPU, prompts attend one after the other, each to its own keys alone.

    All their queries and keys lie in one tensor, and transformers' attention computes every product among them and masks most. That
    suits a GPU; on a CPU it takes longer than all the rest of the model.
    """
    if model.device.type != "cpu":
        yield
        return
    AttentionInterface.register("sdpa", attention_apart)
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", sdpa_attention_forward)


def attention_apart(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, cache: Any = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa` for each prompt of a running batch; as it is where there is none.

    Args:
        query, key, value: [1, heads, tokens, width], the prompts' tokens behind each other.
        attention_mask: [1, 1, tokens, read and new tokens].
        cache: the running batch's keys and values.
    """
    if cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    outputs = []
    ends_q, ends_k = kwargs["cu_seq_lens_q"].tolist(), kwargs["cu_seq_lens_k"].tolist()
    for (start_q, end_q), (start_k, end_k) in zip(pairwise(ends_q), pairwise(ends_k), strict=True):
        mask = attention_mask[..., start_q:end_q, start_k:end_k] if attention_mask is not None else None
        own_query, own_key, own_value = query[:, :, start_q:end_q], key[:, :, start_k:end_k], value[:, :, start_k:end_k]
        outputs.append(sdpa_attention_forward(module, own_query, own_key, own_value, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def refusal(model: Any, tokenizer: Any, prompts: Sequence[Ids]) -> str:
    """Why a model can't be run so, nothing where it can: it has to write what it writes in a padded batch, as surely, up to rounding.

    Args:
        prompts: two of these are tried, with a few tokens each.
    """
    if is_offloaded(model):
        return "its weights lie in several places (model.max_memory)"
    probe = Completer(model, tokenizer, stops=(), max_new_tokens=PROBE)
    tried = sorted(filter(probe.room, prompts), key=len)[:2]
    wanted = probe.complete(tried)
    try:
        found = dict(one for ended in ContinuousCompleter(probe, size=2).complete(tried) for one in ended)
    except Exception as error:  # whatever a model's own code makes of tensors that it was not written for
        if is_memory_full(error):
            raise
        return (str(error).splitlines() or [type(error).__name__])[0]
    noise = NOISE if model.dtype == torch.float32 else COARSE_NOISE
    for place, padded in enumerate(wanted):
        gaps = [one.smallest_gap or 0.0 for one in (padded, found[place])]
        if (found[place].text != padded.text and min(gaps) > noise) or abs(gaps[0] - gaps[1]) > noise:
            return "its first tokens are not those of a padded batch"
    return ""
