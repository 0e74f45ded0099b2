"""Settings of the model: its name, its runtime, and the size of its batches."""

from __future__ import annotations

import dataclasses

from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting

#: Among the names of a model: any name in a request.
ANY_NAME = "*"


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
    TITLE = "Model"

    # fmt: off
    name: str = setting("EMBEDDING_MODEL_NAME", parsing.required_text, "all-MiniLM-L6-v2",
        "Model to serve: a folder, a name whose weights come as a package, or a name on the Hugging Face hub")
    cache_dir: str | None = setting("EMBEDDING_MODEL_CACHE_DIR", parsing.optional_text, None,
        "Directory for weights from the hub. Default: the Hugging Face cache")
    converted_dir: str | None = setting("EMBEDDING_CACHE_DIR", parsing.optional_text, None,
        "Directory for converted models, which the next start reuses. Default: the user's cache folder")
    aliases: tuple[str, ...] = setting("EMBEDDING_MODEL_ALIASES", parsing.names, (ANY_NAME,),
        "Names, separated by commas, that OpenAI and Ollama clients may request the model by, in addition to "
        "its own; `*` is any name, empty is none")
    trust_remote_code: tuple[str, ...] = setting("EMBEDDING_TRUST_REMOTE_CODE", parsing.trusted_models, (),
        "Models whose own Python code may run: names and folders separated by commas. Or true for the model "
        "of `EMBEDDING_MODEL_NAME`, and for no model that replaces it in a swap", shown="false")
    device: str = setting("EMBEDDING_DEVICE", parsing.device, "auto",
        "Device that runs the model: auto (a GPU if there is one), cpu, cuda, cuda:1, …, or mps")
    dtype: str = setting("EMBEDDING_DTYPE", parsing.choice("auto", "float32", "bfloat16", "float16"), "auto",
        "Precision of the computation: auto, float32, bfloat16 or float16; auto is half precision on a GPU "
        "or CPU that is faster with it, else float32")
    runtime: str = setting("EMBEDDING_RUNTIME", parsing.choice("auto", "torch", "openvino"), "auto",
        "Library that runs the model: auto, torch or openvino; auto is OpenVINO on a CPU if it is installed "
        "and fits the model, else torch")
    family: str = setting("EMBEDDING_FAMILY",
        parsing.choice("auto", "embedding", "cross-encoder", "sparse", "multi-vector"), "auto",
        "Family that the model is served as: auto, embedding, cross-encoder, sparse or multi-vector; auto is "
        "the one that its files say")
    max_concurrent_operations: int = setting("MAX_CONCURRENT_OPERATIONS", parsing.integer(1, 64), 3,
        "Maximum batches inside the runtime at the same time, short and long ones together. A CPU never runs "
        "more than three")
    max_batch_tokens: int = setting("EMBEDDING_MAX_BATCH_TOKENS", parsing.integer(0, 1_000_000), 0,
        "Maximum tokens in one batch; 0 leaves the limit to the runtime (1,024 on a CPU, 16,384 on a GPU)")
    models_file: str | None = setting("EMBEDDING_MODELS_FILE", parsing.optional_text, None,
        "Path of a YAML file with the models to serve, see docs/models.md. Default: the one model of "
        "`EMBEDDING_MODEL_NAME`")
    max_model_bytes: int = setting("EMBEDDING_MAX_MODEL_BYTES", parsing.integer(0, 1 << 50), 0,
        "Maximum memory of all loaded models in bytes. Beyond the limit the least recently used idle model "
        "is unloaded. 0 is what the machine, its container or the GPU has free, less a tenth of its whole")
    max_batch_size: int = setting("EMBEDDING_MAX_BATCH_SIZE", parsing.integer(0, 1_000_000), 0,
        "Maximum texts in one batch, in addition to the limit in tokens; 0 sets no limit")
