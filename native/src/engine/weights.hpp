// The tensors of a Phi-3 model, found by their names in a GGUF file and checked against its shape.
#pragma once

#include "../kernels/kernels.hpp"
#include "config.hpp"

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

struct LayerWeights {
    const float *attention_norm, *ffn_norm; // (hidden)
    Matrix qkv;                             // (query, key, value rows; hidden)
    Matrix attention_out;                   // (hidden, heads * head_size)
    Matrix gate_up;                         // (gate rows, then up rows; hidden)
    Matrix down;                            // (hidden, ffn)
};

struct Weights {
    Matrix embedding; // (vocabulary, hidden)
    std::vector<LayerWeights> layers;
    const float *output_norm; // (hidden)
    Matrix output;            // (vocabulary, hidden); the embedding where the file has none
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

    void ignore(const std::string &name) { tensors_.erase(name); }

    void require_empty() const {
        if (!tensors_.empty())
            throw std::invalid_argument("tensor " + tensors_.begin()->first + " has no place in a Phi-3 model");
    }

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

inline LayerWeights take_layer(TensorList &tensors, const Config &config, int64_t index) {
    const std::string prefix = "blk." + std::to_string(index) + ".";
    LayerWeights layer;
    layer.attention_norm = tensors.take_floats(prefix + "attn_norm.weight", config.hidden_size);
    layer.ffn_norm = tensors.take_floats(prefix + "ffn_norm.weight", config.hidden_size);
    layer.qkv = tensors.take(prefix + "attn_qkv.weight", config.qkv_size(), config.hidden_size);
    layer.attention_out = tensors.take(prefix + "attn_output.weight", config.hidden_size, config.query_size());
    layer.gate_up = tensors.take(prefix + "ffn_up.weight", 2 * config.ffn_size, config.hidden_size);
    layer.down = tensors.take(prefix + "ffn_down.weight", config.hidden_size, config.ffn_size);
    return layer;
}

} // namespace detail

// Throws std::invalid_argument, which names the tensor that is missing, unknown, or has another type, shape
// or size than it must. LongRoPE's factors come with the configuration, their tensors are passed over.
inline Weights find_weights(const Config &config, const Tensors &all) {
    detail::TensorList tensors(all);
    Weights weights;
    weights.embedding = tensors.take("token_embd.weight", config.vocab_size, config.hidden_size);
    for (int64_t i = 0; i < config.n_layers; ++i) weights.layers.push_back(detail::take_layer(tensors, config, i));
    weights.output_norm = tensors.take_floats("output_norm.weight", config.hidden_size);
    weights.output = tensors.has("output.weight") ? tensors.take("output.weight", config.vocab_size, config.hidden_size)
                                                  : weights.embedding;
    tensors.ignore("rope_factors_short.weight");
    tensors.ignore("rope_factors_long.weight");
    tensors.require_empty();
    return weights;
}

} // namespace phi
