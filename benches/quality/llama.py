"""Log-probabilities of a GGUF file, by way of llama-cpp-python's bindings.

The environment variable LLAMA_CPP_LIB_PATH names the folder of the shared library.
"""

import ctypes

import llama_cpp.llama_cpp as api
import numpy as np


@api.llama_log_callback
def _errors_only(level, text, _):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        print("llama.cpp:", text.decode("utf-8", "replace").rstrip())


class Model:
    """A GGUF file in memory, on the CPU; attention and its cache in f32, so that only the weights differ."""

    def __init__(self, path, window, threads):
        api.llama_log_set(_errors_only, None)
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = window
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = api.GGML_TYPE_F32
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"{path}: llama.cpp cannot make a context of {window} tokens")
        self.batch = api.llama_batch_init(window, 0, 1)
        self.vocabulary = api.llama_model_get_vocab(self.model)

    def close(self):
        """Frees what the library holds."""
        api.llama_batch_free(self.batch)
        api.llama_free(self.context)
        api.llama_model_free(self.model)

    def tokenize(self, text):
        """The ids of a text as llama.cpp's own tokenizer has them: no special tokens but those that the text names."""
        data = text.encode("utf-8")
        ids = (api.llama_token * len(data))()
        count = api.llama_tokenize(self.vocabulary, data, len(data), ids, len(data), False, True)
        return list(ids[:count])

    def log_probabilities(self, ids):
        """[tokens, vocabulary] in f32: row i is the distribution of token i + 1 in a fresh context."""
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        self.batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            self.batch.token[i] = token
            self.batch.pos[i] = i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = 1
        code = api.llama_decode(self.context, self.batch)
        if code != 0:
            raise SystemExit(f"llama_decode failed with code {code}")
        size = api.llama_vocab_n_tokens(self.vocabulary)
        logits = ctypes.cast(api.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
        logits = np.ctypeslib.as_array(logits, (len(ids), size)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits.astype(np.float32)
