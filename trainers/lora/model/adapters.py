"""The adapters of several trials on one base model, one of them active at a time.

Wraps PEFT. Plain adapters, which can share a pass, are entries of one ``Frame``; another kind is added
as PEFT does it. Adapter weights are float32 whatever the base model's type, and start from the trial's
own seed. A start that takes its part out of the base model's weights (PiSSA, OLoRA) is saved as PEFT
converts it: a plain adapter of twice the rank, the trained factors beside the negated start.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from trainers.lora.model.base_model import BaseModel
from trainers.lora.model.frame import PREFIX, Frame
from trainers.lora.model.residue import FIRST, SECOND, Residue, layer_weight
from trainers.lora.model.starts import drawn_start, plain_start
from trainers.lora.model.weights import (
    Parameters,
    check_shares_base,
    contiguous,
    is_undecayed,
    read_tensors,
    undecayed_parameters,
)
from trainers.lora.options import ALL_LINEAR, LoraOptions
from trainers.lora.options.method import is_pattern
from trainers.lora.pack.stacks import Stacks
from trainers.lora.seeds import derive_seed

_WEIGHTS = "adapter_model.safetensors"


class AdapterPool:
    """Adds adapters to a base model and removes them again.

    Attributes:
        stacks: Of those adapters that can share a pass.
    """

    def __init__(self, base: BaseModel) -> None:
        self.stacks = Stacks(base.dtype)
        self._base = base
        self._frame: Frame | None = None
        self._peft: PeftModel | None = None
        self._framed: dict[int, tuple[str, ...]] = {}
        """Trials in the frame, with the layers that they adapt."""
        self._present: dict[int, LoraOptions] = {}
        self._parameters: dict[int, Parameters] = {}
        self._residue: Residue | None = None
        """Of the one trial that has changed the base model."""
        self._is_visited = False

    def num_parameters(self, options: LoraOptions) -> int:
        targets = self._base.targets(options).values()
        count = options.lora_r * sum(map(sum, targets))
        if options.use_dora:
            count += sum(num_out for _, num_out in targets)
        for name in self._whole_modules(options):
            module = self._base.model.get_submodule(name)
            count += sum(parameter.numel() for parameter in _unwrapped(module).parameters())
        return count

    def add(self, trial: int, options: LoraOptions, saved: Path | None = None) -> Parameters:
        check_shares_base(options, () if self._is_visited else self._present.values())
        num_parameters = self.num_parameters(options)
        tensors = None if saved is None else read_tensors(saved / _WEIGHTS)
        self._attach(trial, options)
        try:
            parameters = self._parameters_of(trial)
            assert sum(weight.numel() for weight in parameters.values()) == num_parameters
            assert all(weight.dtype == torch.float32 for weight in parameters.values())
            if options.changes_base:
                self._residue = Residue(self._layers(trial))
            if tensors is None:
                self._start(trial, parameters, options)
            else:
                self._load(trial, parameters, tensors, f"{saved}")
            if options.packing_problem is None:
                layers = self._layers(trial)
                self.stacks.add(trial, layers, _name(trial), options.lora_dropout)
        except Exception:
            self.remove(trial)
            raise
        self._parameters[trial] = parameters
        return parameters

    def activate(self, trial: int) -> None:
        # All other adapters are frozen by this: right here, as passes run one trial at a time.
        if trial in self._framed:
            assert self._frame is not None
            self._frame.activate(_name(trial))
        else:
            assert self._peft is not None
            self._peft.set_adapter(_name(trial))

    def remove(self, trial: int) -> None:
        options = self._present.pop(trial)
        self._parameters.pop(trial, None)
        if trial in self.stacks:
            self.stacks.remove(trial)
        if options.changes_base and self._residue is not None:
            self._residue.originals.restore()
            self._residue = None
        self._detach(trial)

    def save(self, trial: int, folder: Path) -> None:
        config = self.config(self._present[trial])
        weights: dict[str, Tensor] = dict(self._parameters[trial])
        config.init_lora_weights = True
        if self._residue is not None:
            weights = self._residue.convert(weights)
            # The scale must stay: alpha / r, with rsLoRA alpha / sqrt(r).
            config.r *= 2
            config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
        config.inference_mode = True
        config.save_pretrained(str(folder))
        save_file(contiguous(weights), folder / _WEIGHTS, metadata={"format": "pt"})

    @contextlib.contextmanager
    def visited(self) -> Iterator[None]:
        residue, self._residue, self._is_visited = self._residue, None, True
        try:
            with contextlib.nullcontext() if residue is None else residue.originals.swapped_in():
                yield
        finally:
            self._residue, self._is_visited = residue, False

    def config(self, options: LoraOptions) -> LoraConfig:
        """Return PEFT's config for a trial, as it is written next to its weights."""
        targets = options.target_modules
        if targets == ALL_LINEAR:
            names = _shortest_names(self._base.linear_shapes)
        elif isinstance(targets, str):
            assert is_pattern(targets)
            names = list(self._base.targets(options))  # a pattern may match other modules too
        else:
            names = list(targets)
        return LoraConfig(
            r=options.lora_r,
            lora_alpha=options.alpha,
            lora_dropout=options.lora_dropout,
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
            target_modules=names,
            modules_to_save=self._whole_modules(options) or None,  # PEFT goes by endings
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=options.model_name_or_path,
            revision=options.model_revision,
        )

    def _attach(self, trial: int, options: LoraOptions) -> None:
        """Give the model an adapter whose weights are yet to be set."""
        name, config = _name(trial), self.config(options)
        is_plain = options.packing_problem is None
        if not self._present:
            self._begin(is_plain)
        if is_plain and self._frame is not None:
            targets = tuple(self._base.targets(options))
            self._frame.put(name, config, targets)
            self._peft = self._frame.peft
            self._present[trial], self._framed[trial] = options, targets
            return
        with torch.random.fork_rng(devices=[]):  # PEFT draws a start of its own, replaced later
            if self._peft is None:
                self._peft = PeftModel(self._base.model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        self._present[trial] = options
        for module in self._peft.modules():
            if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
                module.modules_to_save[name].float()
                module.modules_to_save[name].requires_grad_(True)
                module.original_module.requires_grad_(False)

    def _detach(self, trial: int) -> None:
        """Take a trial's adapter from the model; the frame stays for the next."""
        name = _name(trial)
        if trial in self._framed:
            assert self._frame is not None
            self._frame.take_out(name, self._framed.pop(trial))
            return
        assert self._peft is not None
        if not self._present and self._frame is None:
            for module in self._peft.modules():
                if isinstance(module, ModulesToSaveWrapper):
                    module.delete_adapter(name, None)  # unload() would leave the trained copy
            # PEFT is left with no active adapter otherwise, which later calls do not expect.
            self._peft.unload()
            self._peft = None
        else:
            other = next(name for name in self._peft.peft_config if name != _name(trial))
            self._peft.set_adapter(other)  # PEFT warns when the active adapter is deleted
            self._peft.delete_adapter(name)
            if self._frame is not None:
                self._frame.activate(None)

    def _begin(self, is_plain: bool) -> None:
        """Prepare a base model without adapters for the first one."""
        if is_plain and self._frame is None:
            self._frame = Frame(self._base)
        elif not is_plain and self._frame is not None:
            self._frame.close()
            self._frame = self._peft = None

    def _parameters_of(self, trial: int) -> Parameters:
        if trial in self._framed:
            assert self._frame is not None
            framed = Parameters(self._frame.weights(_name(trial), self._framed[trial]))
            framed.undecayed = frozenset(name for name in framed if is_undecayed(name))
            return framed
        assert self._peft is not None
        part = re.compile(rf"\.{_name(trial)}(?=\.)")
        undecayed = undecayed_parameters(self._peft)
        parameters, not_decayed = Parameters(), set()
        for full_name, parameter in self._peft.named_parameters():
            if not part.search(full_name):
                continue
            name = part.sub("", full_name.replace(f".modules_to_save.{_name(trial)}.", "."))
            name = name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
            parameters[name] = parameter
            if id(parameter) in undecayed:
                not_decayed.add(name)
        parameters.undecayed = frozenset(not_decayed)
        return parameters

    def _layers(self, trial: int) -> dict[str, LoraLayer]:
        """Return the layers that a trial adapts, by the names that PEFT gives them."""
        if trial in self._framed:
            assert self._frame is not None
            return {PREFIX + name: self._frame.layers[name] for name in self._framed[trial]}
        assert self._peft is not None
        return {
            name: module
            for name, module in self._peft.named_modules()
            if isinstance(module, LoraLayer) and _name(trial) in module.lora_A
        }

    @torch.no_grad()
    def _start(self, trial: int, parameters: Parameters, options: LoraOptions) -> None:
        """Set the adapter's beginning, from one seed on every device."""
        kind = options.init_lora_weights
        if kind is True or kind == "gaussian":
            generator = torch.Generator().manual_seed(derive_seed(options.seed, "init"))
            for name, parameter in parameters.items():
                if name.endswith(FIRST):
                    parameter.copy_(plain_start(kind, parameter.shape, generator))
                elif name.endswith(SECOND):
                    parameter.zero_()
            return
        config = self.config(options)
        config.init_lora_weights, config.use_dora = kind, False
        for name, layer in self._layers(trial).items():
            seed = derive_seed(options.seed, "init", name)
            first, second = drawn_start(config, layer_weight(layer), seed)
            parameters[name + FIRST].copy_(first)
            parameters[name + SECOND].copy_(second)
            if self._residue is not None:
                self._residue.take_out(name, layer, _name(trial), first, second)

    def _load(
        self, trial: int, parameters: Parameters, tensors: Mapping[str, Tensor], where: str
    ) -> None:
        """Set an adapter's weights, and the base model's where its start changes them."""
        if self._residue is not None:
            tensors = self._residue.split(tensors, self._layers(trial), _name(trial), where)
        shapes = {name: weight.shape for name, weight in parameters.items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise ValueError(
                f"{where} is an adapter of other options: it has other layers or another rank."
            )
        load_weights(parameters, tensors)

    def _whole_modules(self, options: LoraOptions) -> list[str]:
        """Return the names of the modules that a trial trains whole.

        Raises:
            ValueError: There is none of such a name, or it cannot be copied for a trial.
        """
        if not options.modules_to_save:
            return []
        model = self._base.model
        names = [name for name, _ in _modules_without_peft(model)]
        found: list[str] = []
        for module in options.modules_to_save:
            matching = [name for name in names if name == module or name.endswith(f".{module}")]
            if not matching:
                leaves = sorted({name.rpartition(".")[2] for name in names if name})
                raise ValueError(
                    f"modules_to_save: {module!r} is no module of this model. Known: "
                    f"{', '.join(name for name in leaves if not name.isdigit())}."
                )
            found += matching
        adapted = set(self._base.targets(options))
        for name in found:
            inner = [layer for layer in adapted if layer == name or layer.startswith(f"{name}.")]
            if inner:
                raise ValueError(
                    f"modules_to_save: {name!r} is trained whole, and target_modules give "
                    f"{inner[0]!r} an adapter. Leave it out of one of them."
                )
        if model.config.get_text_config().tie_word_embeddings:
            ends = (model.get_input_embeddings(), model.get_output_embeddings())
            for name in found:
                if any(_unwrapped(model.get_submodule(name)) is _unwrapped(end) for end in ends):
                    raise ValueError(
                        f"modules_to_save: this model's input and output embeddings are one "
                        f"tensor, and a trained copy of {name!r} would part them. Leave it out, or "
                        f"train finetuning_type: full."
                    )
        return found


def load_weights(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Set weights from tensors of the same names."""
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _modules_without_peft(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a model's modules by name as if no adapter were there."""
    inside = ("base_layer", "original_module", "modules_to_save", "lora_")
    for name, module in model.named_modules():
        if not any(part.startswith(inside) for part in name.split(".")):
            yield name, module


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.original_module if isinstance(module, ModulesToSaveWrapper) else module


def _shortest_names(layers: Iterable[str]) -> list[str]:
    """Return the layers' last names, as in ``q_proj``; whole names where the last is a number."""
    names = {
        name if name.rpartition(".")[2].isdigit() else name.rpartition(".")[2] for name in layers
    }
    return sorted(names)


def _name(trial: int) -> str:
    return f"trial{trial}"
