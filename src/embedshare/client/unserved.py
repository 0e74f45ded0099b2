"""The rest of SentenceTransformer's public names: each works, has no effect, or is NotServed with the
alternative.

A method is NotServed when it is called. A property is NotServed when it is read, which is an AttributeError
too: `hasattr(model, "tokenizer")` is False, and `getattr` with a default gives that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn

from embedshare.client.embedder import Embedder
from embedshare.client.images import is_single
from embedshare.client.similarity import NAMES
from embedshare.errors import NotServed
from embedshare.identity import ModelDescription

WEIGHTS = "the weights are in the model server; load a SentenceTransformer of your own to work on them"
TRAINING = (
    "a shared model is not trained; train a SentenceTransformer of your own, and have the server serve its "
    "folder with swap_model(folder)"
)
_SAVING = "the model's files are the server's; its folder or name is EMBEDDING_MODEL_NAME"
_TOKENIZER = "tokenize(texts) gives the shared tokenizer's ids, tokens(texts) each token with its place"

_OF_THEWEIGHTS = """
    active_adapter active_adapters add_adapter add_module append buffers check_peft_compatible_model
    children delete_adapter disable_adapters enable_adapters extend forward get_adapter_state_dict
    get_buffer get_extra_state get_parameter get_sentence_features get_submodule insert load load_adapter
    load_state_dict merge modules named_buffers named_children named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook set_adapter set_extra_state set_pooling_include_prompt set_submodule
    to_empty
"""
#: Methods that need the model itself, and their alternatives.
METHODS: dict[str, str] = {
    **dict.fromkeys(_OF_THEWEIGHTS.split(), WEIGHTS),
    **dict.fromkeys(["fit", "gradient_checkpointing_enable", "old_fit", "smart_batching_collate"], TRAINING),
    **dict.fromkeys(["push_to_hub", "save", "save_pretrained", "save_to_hub"], _SAVING),
}
#: Properties that need it, and their alternatives.
PROPERTIES: dict[str, str] = {
    **dict.fromkeys(["T_destination", "config", "model_card_data_class", "transformers_model"], WEIGHTS),
    "processor": _TOKENIZER,
    "tokenizer": _TOKENIZER,
    "trust_remote_code": "EMBEDDING_TRUST_REMOTE_CODE is a setting of the model server",
}
#: Methods that convert the model, and the precision that they ask for.
_PRECISIONS = {"float": "float32", "half": "float16", "bfloat16": "bfloat16", "double": "float64"}
#: Methods that move the model, and the kind of device that they ask for.
_DEVICES = ("cpu", "cuda", "ipu", "mtia", "xpu")


class ModelCardData:
    """Evaluators' results: `eval_results_dict`, by evaluator."""

    def __init__(self, described: ModelDescription) -> None:
        self.model_name = self.base_model = described.model_name
        self.base_model_revision: str | None = None
        self.model_id: str | None = None
        self.eval_results_dict: dict[Any, dict[str, Any]] = {}
        self.training_logs: list[dict[str, Any]] = []

    def set_evaluation_metrics(
        self, evaluator: Any, metrics: dict[str, Any], epoch: int = 0, step: int = 0
    ) -> None:
        """Note an evaluator's results."""
        self.eval_results_dict[evaluator] = dict(metrics)

    def __getattr__(self, name: str) -> NoReturn:
        raise NotServed(f"model_card_data.{name}: a shared model has no model card; {WEIGHTS}")


class Unserved:
    """The names of SentenceTransformer that are not part of embedding."""

    SUPPORTED_SIMILARITY_FN_NAMES: ClassVar[tuple[str, ...]] = NAMES
    default_huggingface_organization: ClassVar[str | None] = "sentence-transformers"
    model_type: ClassVar[str] = "SentenceTransformer"
    call_super_init: ClassVar = False
    dump_patches: ClassVar = False
    is_hpu_graph_enabled: ClassVar = False
    training: ClassVar = False
    #: A torch.nn.Module that holds this object among its modules reads them: it has no submodules.
    _modules: ClassVar[dict[str, Any]] = {}
    _load_state_dict_post_hooks: ClassVar[dict[int, Any]] = {}

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._card: ModelCardData | None = None

    def describe(self) -> ModelDescription:
        """The model that answers."""
        return self._embedder.describe()

    @property
    def model_card_data(self) -> ModelCardData:
        """The place where evaluators note their results."""
        if self._card is None:
            self._card = ModelCardData(self.describe())
        return self._card

    @property
    def modalities(self) -> list[str]:
        """The kinds of input that the model embeds: text, image."""
        return list(self.describe().modalities)

    def supports(self, modality: Any) -> bool:
        """Whether the model embeds a modality; none embeds several as one input."""
        return modality in self.describe().modalities

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether this is one input, not a batch."""
        return is_single(inputs)

    @property
    def module_kwargs(self) -> dict[str, Any]:
        """None: the shared model's modules take texts alone."""
        return {}

    def get_model_kwargs(self) -> list[str]:
        """None: `encode` takes no argument of the model's own."""
        return []

    @property
    def backend(self) -> str:
        """The runtime of the model: openvino or torch."""
        return self.describe().runtime

    def get_backend(self) -> str:
        """`backend`, as a method."""
        return self.backend

    @property
    def dtype(self) -> Any:
        """The precision that the model computes in, a torch.dtype. The vectors are always float32."""
        import torch  # for its type of a precision

        return getattr(torch, self.describe().dtype)

    def evaluate(self, evaluator: Callable[[Any, str | None], Any], output_path: str | None = None) -> Any:
        """The evaluator's result for this model; it writes into the folder `output_path`."""
        if output_path is not None:
            os.makedirs(output_path, exist_ok=True)
        return evaluator(self, output_path)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """This object, if the model is on that device and computes in that precision already; else
        NotServed."""
        wanted = [*args, kwargs.get("device"), kwargs.get("dtype"), kwargs.get("tensor")]
        for one in wanted:
            if one is None or isinstance(one, bool):  # `non_blocking`
                continue
            if hasattr(one, "dtype"):  # a tensor, for its device and precision
                self.to(one.device, one.dtype)
            elif hasattr(one, "is_floating_point"):
                self._check_precision(str(one).removeprefix("torch."))
            else:
                self._check_device(f"cuda:{one}" if isinstance(one, int) else str(one))
        return self

    def eval(self) -> Any:
        """This object: the shared model always computes as it does after `eval`."""
        return self

    def train(self, mode: bool = True) -> Any:
        """This object, whatever the mode: as SentenceTransformer's, `encode` computes as after `eval`."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """This object, for False: the shared model's weights never get gradients."""
        if requires_grad:
            raise NotServed(f"requires_grad_(): {TRAINING}")
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: there are no gradients."""
        return None

    def apply(self, fn: Callable[[Any], object]) -> Any:
        """This object: the shared model has no modules in this process to apply anything to."""
        return self

    def smart_apply(self, *args: Any, **kwargs: Any) -> Any:
        """`apply`, under the name that transformers adds to every module."""
        return self

    def share_memory(self) -> Any:
        """This object: the model is shared already."""
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the model server has compiled the model."""
        return None

    def clear_placement_cache(self) -> None:
        """Nothing: there is no such cache."""
        return None

    def has_peft_compatible_model(self) -> bool:
        """False: adapters need the model itself."""
        return False

    def extra_repr(self) -> str:
        """Nothing."""
        return ""

    def named_modules(
        self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Any]]:
        """NotServed; none for a module that holds this object, which asks with its `memo`."""
        if memo is None:
            raise _refusal("named_modules()", WEIGHTS)
        return iter(())

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """NotServed; adds nothing for a module that holds this object, which asks with its `destination`."""
        if destination is None:
            raise _refusal("state_dict()", WEIGHTS)
        return destination

    def _apply(self, fn: Callable[[Any], object], recurse: bool = True) -> Any:
        """A module that holds this object moves its own tensors; this one has none."""
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        """A module that holds this object loads its own tensors; this one has none."""
        return None

    def __getitem__(self, index: Any) -> NoReturn:
        raise _refusal(f"model[{index!r}]", WEIGHTS)

    def _check_device(self, wanted: str) -> None:
        here = self.describe().device
        if not _same_device(wanted, here):
            raise NotServed(
                f"the shared model computes on {here}; a client cannot move it to {wanted}. Omit the "
                "move, or set EMBEDDING_DEVICE for the model server"
            )

    def _check_precision(self, wanted: str) -> None:
        here = self.describe().dtype
        if wanted != here:
            raise NotServed(
                f"the shared model computes in {here}; a client cannot convert it to {wanted}. Omit "
                "the conversion, or set EMBEDDING_DTYPE for the model server"
            )


def _same_device(one: str, other: str) -> bool:
    (kind, _, index), (other_kind, _, other_index) = one.partition(":"), other.partition(":")
    return (kind, index or "0") == (other_kind, other_index or "0")


def _refusal(what: str, instead: str) -> NotServed:
    return NotServed(f"{what} needs the model itself, which all workers share: {instead}")


def refused_method(name: str, instead: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise _refusal(f"{name}()", instead)

    return _named(refuse, name, f"NotServed: {instead}.")


def refused_property(name: str, instead: str) -> property:
    def refuse(self: Any) -> NoReturn:
        raise _refusal(name, instead)

    return property(_named(refuse, name, f"NotServed: {instead}."))


def _converts(name: str, precision: str) -> Any:
    def convert(self: Any) -> Any:
        self._check_precision(precision)
        return self

    return _named(
        convert, name, f"This object, if the model computes in {precision} already; else NotServed."
    )


def _moves(name: str) -> Any:
    def move(self: Any, device: Any = None) -> Any:
        return self.to(f"{name}:{device}" if isinstance(device, int) else device or name)

    return _named(move, name, "This object, if the model is on such a device already; else NotServed.")


def _of_type(self: Any, dst_type: Any) -> Any:
    """This object, if the model computes in that already; else NotServed."""
    self._check_precision(str(dst_type).removeprefix("torch."))
    return self


def _named(function: Any, name: str, meaning: str) -> Any:
    function.__name__, function.__qualname__, function.__doc__ = name, f"Unserved.{name}", meaning
    return function


# Set from outside: a method called `float` or `type` would hide the built-in one from the class's own lines.
for _name, _convert in {
    **{name: _converts(name, to) for name, to in _PRECISIONS.items()},
    "type": _of_type,
}.items():
    setattr(Unserved, _name, _convert)
for _name, _instead in METHODS.items():
    setattr(Unserved, _name, refused_method(_name, _instead))
for _name, _instead in PROPERTIES.items():
    setattr(Unserved, _name, refused_property(_name, _instead))
for _name in _DEVICES:
    setattr(Unserved, _name, _moves(_name))
