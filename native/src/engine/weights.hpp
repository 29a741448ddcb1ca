// The tensors of a Phi model, found by their names in a GGUF file and checked against its shape.
#pragma once

#include "../kernels/kernels.hpp"
#include "config.hpp"
#include "vectors.hpp"

#include <map>
#include <string>
#include <vector>

namespace phi {

// A tensor as it is handed in; the bytes stay where they are.
struct Tensor {
    std::string type;
    int64_t rows, cols; // a vector is one row
    const uint8_t *data;
    size_t bytes;
};

using Tensors = std::map<std::string, Tensor>;

// A matrix, and what is added to its products: (rows), or null.
struct Linear {
    Matrix weight;
    const float *bias;
};

struct Norm {
    const float *weight = nullptr; // (hidden)
    const float *bias = nullptr;   // (hidden); null for an RMSNorm
    Codings codings;               // of the matrices that read it
};

// One feed-forward part of a layer. `up` is fc1, a matrix with gate rows and then up rows, or gate and up apart.
struct FeedForwardWeights {
    std::vector<Linear> up; // (ffn or 2 * ffn in all, hidden)
    Linear down;            // (hidden, ffn)
};

struct LayerWeights {
    Norm attention_norm;
    std::vector<Linear> qkv; // (query, key, value rows; hidden), one matrix or three
    Linear attention_out;    // (hidden, heads * head_size)
    Norm ffn_norm;           // without weights in a parallel layer, whose parts share the other one
    Linear router;           // (experts, hidden)
    std::vector<FeedForwardWeights> experts; // without a router only one
    Codings expert_codings;                  // of what the experts read
};

struct Weights {
    Matrix embedding{}; // (vocabulary, hidden); not set where the first layers are computed elsewhere
    std::vector<LayerWeights> layers;
    Norm output_norm;
    Linear output; // (vocabulary, hidden); the embedding where the file has none

    // Every matrix that vectors are multiplied with, under its name in a GGUF file: one, or those of all experts.
    std::map<std::string, std::vector<Matrix>> multiplied;
};

namespace detail {

// Takes tensors out of the list one by one, so that at the end only unknown ones are left.
class TensorList {
  public:
    explicit TensorList(const Tensors &tensors) : tensors_(tensors) {}

    bool has(const std::string &name) const { return tensors_.count(name) != 0; }

    Matrix take(const std::string &name, int64_t rows, int64_t cols) {
        const auto found = tensors_.find(name);
        require(found != tensors_.end(), "tensor " + name + " is missing");
        const Matrix matrix = checked(name, found->second, rows, cols);
        tensors_.erase(found);
        return matrix;
    }

    const float *take_floats(const std::string &name, int64_t n) {
        const Matrix matrix = take(name, 1, n);
        require(matrix.type == Type::F32, "tensor " + name + " must be F32");
        return reinterpret_cast<const float *>(matrix.data);
    }

    Norm take_norm(const std::string &name, int64_t n, bool has_bias) {
        return {take_floats(name + ".weight", n), has_bias ? take_floats(name + ".bias", n) : nullptr, {}};
    }

    // The weights are kept in mind as `multiplied`.
    Linear take_linear(const std::string &name, int64_t rows, int64_t cols, bool has_bias = false) {
        const Matrix weight = take(name + ".weight", rows, cols);
        multiplied[name + ".weight"] = {weight};
        return {weight, has_bias ? take_floats(name + ".bias", rows) : nullptr};
    }

    // The experts' matrices, which lie one below the other in one tensor.
    const std::vector<Matrix> &take_stacked(const std::string &name, int64_t n, int64_t rows, int64_t cols) {
        const Matrix all = take(name + ".weight", n * rows, cols);
        std::vector<Matrix> &matrices = multiplied[name + ".weight"];
        for (int64_t i = 0; i < n; ++i)
            matrices.push_back({all.type, rows, cols, all.row_bytes, all.data + i * rows * all.row_bytes});
        return matrices;
    }

    void ignore(const std::string &name) { tensors_.erase(name); }

    void require_empty(const Architecture &architecture) const {
        if (!tensors_.empty())
            throw std::invalid_argument("tensor " + tensors_.begin()->first + " has no place in a " +
                                        architecture.name + " model");
    }

    std::map<std::string, std::vector<Matrix>> multiplied;

  private:
    static std::string shape(int64_t rows, int64_t cols) {
        return std::to_string(rows) + " rows of " + std::to_string(cols);
    }

    static Matrix checked(const std::string &name, const Tensor &tensor, int64_t rows, int64_t cols) {
        const std::string what = "tensor " + name;
        const TypeInfo &info = named_type(what, tensor.type);
        check_grid(info);
        require(tensor.rows == rows && tensor.cols == cols,
                what + " has " + shape(tensor.rows, tensor.cols) + ", expected " + shape(rows, cols));
        require(cols % info.block == 0, what + ": rows of " + std::to_string(cols) + " weights are not whole " +
                                            tensor.type + " blocks of " + std::to_string(info.block));
        const int64_t bytes = info.row_bytes(cols);
        require(tensor.bytes == static_cast<uint64_t>(rows) * bytes,
                what + " has " + std::to_string(tensor.bytes) + " bytes, expected " + std::to_string(rows * bytes));
        const size_t alignment = info.type == Type::F32 ? 4 : 2;
        require(reinterpret_cast<uintptr_t>(tensor.data) % alignment == 0,
                what + " must begin at an address divisible by " + std::to_string(alignment));
        return {info.type, rows, cols, bytes, tensor.data};
    }

    static const TypeInfo &named_type(const std::string &what, const std::string &type) {
        try {
            return type_info(type);
        } catch (const std::invalid_argument &error) {
            throw std::invalid_argument(what + ": " + error.what());
        }
    }

    Tensors tensors_;
};

inline std::vector<Linear> take_qkv(TensorList &tensors, const Config &config, const std::string &prefix) {
    const int64_t hidden = config.hidden_size;
    const bool bias = config.attention_bias;
    if (config.architecture->has_fused_qkv)
        return {tensors.take_linear(prefix + "attn_qkv", config.qkv_size(), hidden, bias)};
    return {tensors.take_linear(prefix + "attn_q", config.query_size(), hidden, bias),
            tensors.take_linear(prefix + "attn_k", config.kv_size(), hidden, bias),
            tensors.take_linear(prefix + "attn_v", config.kv_size(), hidden, bias)};
}

inline std::vector<FeedForwardWeights> take_experts(TensorList &tensors, const Config &config,
                                                    const std::string &prefix) {
    const int64_t n = config.n_experts, hidden = config.hidden_size, ffn = config.ffn_size;
    const std::vector<Matrix> &gates = tensors.take_stacked(prefix + "ffn_gate_exps", n, ffn, hidden);
    const std::vector<Matrix> &ups = tensors.take_stacked(prefix + "ffn_up_exps", n, ffn, hidden);
    const std::vector<Matrix> &downs = tensors.take_stacked(prefix + "ffn_down_exps", n, hidden, ffn);
    std::vector<FeedForwardWeights> experts;
    for (int64_t i = 0; i < n; ++i)
        experts.push_back({{{gates[i], nullptr}, {ups[i], nullptr}}, {downs[i], nullptr}});
    return experts;
}

inline FeedForwardWeights take_mlp(TensorList &tensors, const Config &config, const std::string &prefix) {
    const bool bias = config.architecture->feed_forward == FeedForward::gelu;
    return {{tensors.take_linear(prefix + "ffn_up", config.up_size(), config.hidden_size, bias)},
            tensors.take_linear(prefix + "ffn_down", config.hidden_size, config.ffn_size, bias)};
}

inline Codings codings_of(const std::vector<Linear> &matrices) {
    Codings codings;
    for (const Linear &matrix : matrices) codings.add(matrix.weight.type);
    return codings;
}

inline LayerWeights take_layer(TensorList &tensors, const Config &config, int64_t index) {
    const Architecture &architecture = *config.architecture;
    const std::string prefix = "blk." + std::to_string(index) + ".";
    const int64_t hidden = config.hidden_size;
    LayerWeights layer;
    layer.attention_norm = tensors.take_norm(prefix + "attn_norm", hidden, architecture.has_layer_norms);
    layer.qkv = take_qkv(tensors, config, prefix);
    layer.attention_norm.codings = codings_of(layer.qkv);
    layer.attention_out =
        tensors.take_linear(prefix + "attn_output", hidden, config.query_size(), config.attention_bias);
    if (!architecture.is_parallel)
        layer.ffn_norm = tensors.take_norm(prefix + "ffn_norm", hidden, architecture.has_layer_norms);
    Norm &read = architecture.is_parallel ? layer.attention_norm : layer.ffn_norm;
    if (config.has_experts()) {
        layer.router = tensors.take_linear(prefix + "ffn_gate_inp", config.n_experts, hidden);
        layer.experts = take_experts(tensors, config, prefix);
        layer.expert_codings = codings_of(layer.experts[0].up);
        read.codings.add(layer.router.weight.type);
    } else {
        layer.experts = {take_mlp(tensors, config, prefix)};
        read.codings.add(layer.experts[0].up[0].weight.type);
    }
    return layer;
}

inline Matrix take_embedding(TensorList &tensors, const Config &config) {
    return tensors.take("token_embd.weight", config.vocab_size, config.hidden_size);
}

inline Linear take_output(TensorList &tensors, const Config &config, const Matrix &embedding) {
    const int64_t rows = config.vocab_size;
    if (tensors.has("output.weight"))
        return tensors.take_linear("output", rows, config.hidden_size, config.output_bias);
    return {embedding.data != nullptr ? embedding : take_embedding(tensors, config),
            config.output_bias ? tensors.take_floats("output.bias", rows) : nullptr};
}

} // namespace detail

// Throws std::invalid_argument, which names the tensor that is missing, unknown, or has another type, shape
// or size than it must. LongRoPE's factors come with the configuration, their tensors are passed over.
inline Weights find_weights(const Config &config, const Tensors &all) {
    detail::TensorList tensors(all);
    Weights weights;
    if (config.first_layer == 0) weights.embedding = detail::take_embedding(tensors, config);
    for (int64_t i = config.first_layer; i < config.n_layers; ++i)
        weights.layers.push_back(detail::take_layer(tensors, config, i));
    weights.output_norm = tensors.take_norm("output_norm", config.hidden_size, config.architecture->has_layer_norms);
    weights.output = detail::take_output(tensors, config, weights.embedding);
    weights.output_norm.codings.add(weights.output.weight.type);
    tensors.ignore("rope_factors_short.weight");
    tensors.ignore("rope_factors_long.weight");
    tensors.require_empty(*config.architecture);
    weights.multiplied = std::move(tensors.multiplied);
    return weights;
}

} // namespace phi
