// The compiled module phicourse.native: the only file here that knows Python.
#include "blocks.hpp"
#include "engine/engine.hpp"
#include "engine/multiply.hpp"
#include "isa.hpp"
#include "quantize/quantize.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

namespace nb = nanobind;
using namespace nb::literals;

// ---- instruction sets ------------------------------------------------------------------------

static std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (phi::Isa isa : phi::available_isas()) names.emplace_back(name(isa));
    return names;
}

static phi::Isa isa_or_active(const std::optional<std::string> &wanted) {
    if (!wanted) return phi::active_isa();
    for (phi::Isa isa : phi::available_isas())
        if (*wanted == name(isa)) return isa;
    throw nb::value_error(("instruction set " + *wanted + " cannot run here").c_str());
}

static void bind_isa(nb::module_ &m) {
    m.def("isa", [] { return std::string(name(phi::active_isa())); }, "Name of the instruction set in use.");
    m.def("isas", isa_names, "Names of the instruction sets that can run here, slowest first.");
}

// ---- quantizers ------------------------------------------------------------------------------

template <class T> using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Importance = std::optional<nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>>;

// Shapes are checked here, so that the C++ side may trust its pointers.
static void check_shapes(const phi::TypeInfo &type, size_t rows, size_t n, size_t data_rows, size_t row_bytes) {
    if (n % type.block != 0)
        throw nb::value_error((std::string(type.name) + " has blocks of " + std::to_string(type.block) +
                               " weights, which do not divide rows of " + std::to_string(n))
                                  .c_str());
    const size_t expected = type.row_bytes(n);
    if (rows != data_rows || row_bytes != expected)
        throw nb::value_error(("quantized rows have shape (" + std::to_string(data_rows) + ", " +
                               std::to_string(row_bytes) + "), expected (" + std::to_string(rows) + ", " +
                               std::to_string(expected) + ")")
                                  .c_str());
}

// NumPy makes arrays that begin anywhere; compiled loops rely on whole numbers of elements.
template <class T> static void check_aligned(const char *name, const T *data) {
    if (reinterpret_cast<uintptr_t>(data) % alignof(T) != 0)
        throw nb::value_error(
            (std::string(name) + " must begin at an address divisible by " + std::to_string(alignof(T))).c_str());
}

// F is the storage of a source weight: float, or the bits of a float16 or bfloat16.
template <phi::Type source, class F>
static std::optional<int64_t> quantize(const std::string &type_name, Matrix<const F> x, Matrix<uint8_t> out, int threads,
                                       const std::optional<std::string> &isa, const Importance &importance, bool best) {
    const phi::TypeInfo &type = phi::type_info(type_name);
    if (importance && importance->size() != x.shape(1))
        throw nb::value_error(("importance has " + std::to_string(importance->size()) + " numbers, rows have " +
                               std::to_string(x.shape(1)))
                                  .c_str());
    check_shapes(type, x.shape(0), x.shape(1), out.shape(0), out.shape(1));
    check_aligned("x", x.data());
    if (importance) check_aligned("importance", importance->data());
    const phi::Isa chosen = isa_or_active(isa);
    try {
        nb::gil_scoped_release release;
        return phi::quantize(type.type, source, x.data(), x.shape(0), x.shape(1), out.data(), threads, chosen,
                             importance ? importance->data() : nullptr,
                             best ? phi::Search::best : phi::Search::reference);
    } catch (const phi::NonFiniteError &error) {
        throw nb::value_error(error.what());
    }
}

static void dequantize(const std::string &type_name, Matrix<const uint8_t> data, Matrix<float> out, int threads,
                       const std::optional<std::string> &isa) {
    const phi::TypeInfo &type = phi::type_info(type_name);
    check_shapes(type, out.shape(0), out.shape(1), data.shape(0), data.shape(1));
    check_aligned("out", out.data());
    const phi::Isa chosen = isa_or_active(isa);
    nb::gil_scoped_release release;
    phi::dequantize(type.type, data.data(), out.shape(0), out.shape(1), out.data(), threads, chosen);
}

static std::vector<std::string> better_searches() {
    std::vector<std::string> names;
    for (const phi::TypeInfo &type : phi::type_infos())
        if (phi::has_better_search(type.type)) names.emplace_back(type.name);
    return names;
}

static void set_grid(const std::string &type_name, Matrix<const int8_t> points) {
    const phi::TypeInfo &type = phi::type_info(type_name);
    nb::gil_scoped_release release;
    phi::set_grid(type.type, points.data(), points.shape(0), points.shape(1));
}

#define FIELD(block, field) layout[#field] = offsetof(phi::Block##block, field)
#define LAYOUT(block, ...) \
    { \
        nb::dict layout; \
        __VA_ARGS__; \
        nb::dict entry; \
        entry["size"] = sizeof(phi::Block##block); \
        entry["fields"] = layout; \
        layouts[#block] = entry; \
    }

// {type: {"size": bytes, "fields": {name: offset}}}, as the compiler laid the structs out.
static nb::dict block_layouts() {
    nb::dict layouts;
    LAYOUT(Q8_0, FIELD(Q8_0, d), FIELD(Q8_0, qs))
    LAYOUT(Q4_0, FIELD(Q4_0, d), FIELD(Q4_0, qs))
    LAYOUT(Q4_1, FIELD(Q4_1, d), FIELD(Q4_1, m), FIELD(Q4_1, qs))
    LAYOUT(Q5_0, FIELD(Q5_0, d), FIELD(Q5_0, qh), FIELD(Q5_0, qs))
    LAYOUT(Q5_1, FIELD(Q5_1, d), FIELD(Q5_1, m), FIELD(Q5_1, qh), FIELD(Q5_1, qs))
    LAYOUT(Q2_K, FIELD(Q2_K, scales), FIELD(Q2_K, qs), FIELD(Q2_K, d), FIELD(Q2_K, dmin))
    LAYOUT(Q3_K, FIELD(Q3_K, hmask), FIELD(Q3_K, qs), FIELD(Q3_K, scales), FIELD(Q3_K, d))
    LAYOUT(Q4_K, FIELD(Q4_K, d), FIELD(Q4_K, dmin), FIELD(Q4_K, scales), FIELD(Q4_K, qs))
    LAYOUT(Q5_K, FIELD(Q5_K, d), FIELD(Q5_K, dmin), FIELD(Q5_K, scales), FIELD(Q5_K, qh), FIELD(Q5_K, qs))
    LAYOUT(Q6_K, FIELD(Q6_K, ql), FIELD(Q6_K, qh), FIELD(Q6_K, scales), FIELD(Q6_K, d))
    LAYOUT(IQ4_NL, FIELD(IQ4_NL, d), FIELD(IQ4_NL, qs))
    LAYOUT(IQ4_XS, FIELD(IQ4_XS, d), FIELD(IQ4_XS, scales_h), FIELD(IQ4_XS, scales_l), FIELD(IQ4_XS, qs))
    LAYOUT(IQ3_S, FIELD(IQ3_S, d), FIELD(IQ3_S, qs), FIELD(IQ3_S, qh), FIELD(IQ3_S, signs), FIELD(IQ3_S, scales))
    LAYOUT(IQ3_XXS, FIELD(IQ3_XXS, d), FIELD(IQ3_XXS, qs))
    LAYOUT(IQ2_S, FIELD(IQ2_S, d), FIELD(IQ2_S, qs), FIELD(IQ2_S, qh), FIELD(IQ2_S, scales))
    LAYOUT(IQ2_XS, FIELD(IQ2_XS, d), FIELD(IQ2_XS, qs), FIELD(IQ2_XS, scales))
    LAYOUT(IQ2_XXS, FIELD(IQ2_XXS, d), FIELD(IQ2_XXS, qs))
    LAYOUT(IQ1_M, FIELD(IQ1_M, qs), FIELD(IQ1_M, qh), FIELD(IQ1_M, scales))
    LAYOUT(IQ1_S, FIELD(IQ1_S, d), FIELD(IQ1_S, qs), FIELD(IQ1_S, qh))
    LAYOUT(TQ1_0, FIELD(TQ1_0, qs), FIELD(TQ1_0, qh), FIELD(TQ1_0, d))
    LAYOUT(TQ2_0, FIELD(TQ2_0, qs), FIELD(TQ2_0, d))
    LAYOUT(MXFP4, FIELD(MXFP4, e), FIELD(MXFP4, qs))
    LAYOUT(NVFP4, FIELD(NVFP4, d), FIELD(NVFP4, qs))
    LAYOUT(Q1_0, FIELD(Q1_0, d), FIELD(Q1_0, qs))
    LAYOUT(Q2_0, FIELD(Q2_0, d), FIELD(Q2_0, qs))
    return layouts;
}

#undef LAYOUT
#undef FIELD

static void bind_quantize(nb::module_ &m) {
    m.def("quantize", quantize<phi::Type::F32, float>, "type"_a, "x"_a.noconvert(), "out"_a.noconvert(),
          "threads"_a = 1, "isa"_a = nb::none(), "importance"_a.noconvert() = nb::none(), "best"_a = false);
    m.def("quantize_f16", quantize<phi::Type::F16, uint16_t>, "type"_a, "x"_a.noconvert(), "out"_a.noconvert(),
          "threads"_a = 1, "isa"_a = nb::none(), "importance"_a.noconvert() = nb::none(), "best"_a = false);
    m.def("quantize_bf16", quantize<phi::Type::BF16, uint16_t>, "type"_a, "x"_a.noconvert(), "out"_a.noconvert(),
          "threads"_a = 1, "isa"_a = nb::none(), "importance"_a.noconvert() = nb::none(), "best"_a = false);
    m.def("dequantize", dequantize, "type"_a, "data"_a.noconvert(), "out"_a.noconvert(), "threads"_a = 1,
          "isa"_a = nb::none());
    m.def("better_searches", better_searches);
    m.def("set_grid", set_grid, "type"_a, "points"_a.noconvert());
    m.def("block_layouts", block_layouts);
}

// ---- engine ----------------------------------------------------------------------------------

template <class T> static T field(const nb::dict &config, const char *name) {
    if (!config.contains(name)) throw nb::key_error(("config has no " + std::string(name)).c_str());
    try {
        return nb::cast<T>(config[name]);
    } catch (const nb::cast_error &) {
        throw nb::type_error(("config: " + std::string(name) + " has the wrong type").c_str());
    }
}

// A field that may be missing or None.
template <class T> static T field_or(const nb::dict &config, const char *name, const T &otherwise) {
    return config.contains(name) && !config[name].is_none() ? field<T>(config, name) : otherwise;
}

static phi::Config config_from(const nb::dict &fields) {
    phi::Config config;
    config.architecture = &phi::find_architecture(field<std::string>(fields, "architecture"));
    config.hidden_size = field<int64_t>(fields, "hidden_size");
    config.n_layers = field<int64_t>(fields, "n_layers");
    config.first_layer = field_or<int64_t>(fields, "first_layer", 0);
    config.n_heads = field<int64_t>(fields, "n_heads");
    config.n_kv_heads = field<int64_t>(fields, "n_kv_heads");
    config.head_size = field<int64_t>(fields, "head_size");
    config.ffn_size = field<int64_t>(fields, "ffn_size");
    config.vocab_size = field<int64_t>(fields, "vocab_size");
    config.context_length = field<int64_t>(fields, "context_length");
    config.original_context_length = field<int64_t>(fields, "original_context_length");
    config.norm_eps = field<double>(fields, "norm_eps");
    config.rope_theta = field<double>(fields, "rope_theta");
    config.rope_size = field<int64_t>(fields, "rope_size");
    const double attention_factor = field_or<double>(fields, "attention_factor", 1.0);
    config.short_magnitude = field_or<double>(fields, "short_mscale", attention_factor);
    config.long_magnitude = field_or<double>(fields, "long_mscale", attention_factor);
    config.sliding_window = field_or<int64_t>(fields, "sliding_window", 0);
    config.short_factor = field_or<std::vector<float>>(fields, "short_factor", {});
    config.long_factor = field_or<std::vector<float>>(fields, "long_factor", {});
    config.attention_bias = field_or<bool>(fields, "attention_bias", false);
    config.output_bias = field_or<bool>(fields, "output_bias", false);
    config.n_experts = field_or<int64_t>(fields, "n_experts", 0);
    config.n_experts_used = field_or<int64_t>(fields, "n_experts_used", 0);
    config.router_jitter = field_or<double>(fields, "router_jitter", 0.01);
    return config;
}

// The engine with the arrays that its weights lie in, which must live as long as it does. While it works Python's
// other threads run; those that call it wait until it is free.
class PythonEngine {
  public:
    using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    using Part = std::pair<int64_t, Tokens>; // what a sequence reads

    PythonEngine(const nb::dict &config, const nb::dict &tensors, int64_t n_ctx, int threads,
                 const std::string &cache_type, int64_t n_sequences)
        : engine_(config_from(config), keep(tensors), n_ctx, threads, phi::type_info(cache_type).type,
                  phi::active_isa(), n_sequences) {}

    nb::object forward(const Tokens &tokens, bool all_logits) { return forward_many({{0, tokens}}, all_logits); }

    nb::object forward_many(const std::vector<Part> &parts, bool all_logits) {
        std::vector<phi::Reading> readings;
        size_t rows = 0;
        for (const auto &[sequence, tokens] : parts) {
            check_aligned("tokens", tokens.data());
            readings.push_back({sequence, {tokens.data(), tokens.size()}});
            rows += all_logits ? tokens.size() : 1;
        }
        return logits_of(rows,
                         [&](float *logits) { engine_.forward(readings, all_logits, logits, check_signals); });
    }

    nb::object forward_hidden(Matrix<const float> hidden, int64_t n_logits, int64_t text_length) {
        if (n_logits < 0 || static_cast<size_t>(n_logits) > hidden.shape(0))
            throw nb::value_error("n_logits must be from 0 to the number of hidden states");
        check_aligned("hidden", hidden.data());
        return logits_of(n_logits, [&](float *logits) {
            engine_.forward_hidden({hidden.data(), hidden.size()}, n_logits, text_length, logits, check_signals);
        });
    }

    nb::dict input_squares(const Tokens &tokens) {
        check_aligned("tokens", tokens.data());
        phi::InputSquares squares;
        alone([&] { squares = engine_.input_squares({tokens.data(), tokens.size()}, check_signals); });
        nb::dict arrays;
        for (auto &[name, tensor] : squares) {
            using Sums = nb::ndarray<nb::numpy, double, nb::ndim<2>>;
            using Counts = nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>;
            const size_t n = tensor.tokens.size();
            const Sums sums(tensor.sums.data(), {n, tensor.sums.size() / n});
            const Counts counts(tensor.tokens.data(), {n});
            arrays[name.c_str()] = nb::make_tuple(nb::cast(sums, nb::rv_policy::copy),
                                                  nb::cast(counts, nb::rv_policy::copy));
        }
        return arrays;
    }

    void truncate(int64_t length, int64_t sequence) {
        alone([&] { engine_.truncate(length, sequence); });
    }
    void copy(int64_t source, int64_t target, int64_t length) {
        alone([&] { engine_.copy(source, target, length); });
    }
    int64_t length(int64_t sequence) {
        int64_t length = 0;
        alone([&] { length = engine_.position(sequence); });
        return length;
    }
    int64_t position() { return length(0); }
    int64_t n_ctx() const { return engine_.n_ctx(); }
    int64_t n_sequences() const { return engine_.n_sequences(); }
    size_t cache_bytes() const { return engine_.cache_bytes(); }
    size_t work_bytes() const { return engine_.work_bytes(); }

  private:
    // Waits for the engine without the GIL, which the one that has it may ask for.
    template <class Work> void alone(const Work &work) {
        nb::gil_scoped_release release;
        const std::lock_guard lock(busy_);
        work();
    }

    // An array (rows, vocabulary) that `compute` has filled.
    template <class Compute> nb::object logits_of(size_t rows, const Compute &compute) {
        const size_t cols = engine_.config().vocab_size;
        auto logits = std::make_unique_for_overwrite<float[]>(rows * cols);
        alone([&] { compute(logits.get()); });
        float *data = logits.release();
        nb::capsule owner(data, [](void *memory) noexcept { delete[] static_cast<float *>(memory); });
        return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(data, {rows, cols}, owner));
    }

    // Between batches of a long prompt: Ctrl-C stops it.
    static void check_signals() {
        nb::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }

    phi::Tensors keep(const nb::dict &tensors) {
        phi::Tensors kept;
        for (const auto &[key, value] : tensors) {
            const auto name = nb::cast<std::string>(key);
            try {
                using Entry = std::tuple<std::string, int64_t, int64_t, Bytes>;
                const auto [type, rows, cols, bytes] = nb::cast<Entry>(value);
                kept[name] = {type, rows, cols, bytes.data(), bytes.size()};
                buffers_.push_back(bytes);
            } catch (const nb::cast_error &) {
                throw nb::type_error(
                    ("tensor " + name + " must be (type, rows, cols, uint8 array of 1 dimension)").c_str());
            }
        }
        return kept;
    }

    std::vector<Bytes> buffers_; // before engine_, which keep() runs ahead of
    phi::Engine engine_;
    std::mutex busy_;
};

// Types of floats are read in place, so that they must lie where such numbers may.
static void multiply(const std::string &type_name, Matrix<const uint8_t> data, Matrix<const float> x,
                     Matrix<float> out, int threads, const std::optional<std::string> &isa) {
    const phi::TypeInfo &type = phi::type_info(type_name);
    phi::check_grid(type);
    check_shapes(type, out.shape(1), x.shape(1), data.shape(0), data.shape(1));
    if (out.shape(0) != x.shape(0))
        throw nb::value_error(("out has rows for " + std::to_string(out.shape(0)) + " vectors, x has " +
                               std::to_string(x.shape(0)))
                                  .c_str());
    check_aligned("x", x.data());
    check_aligned("out", out.data());
    if (reinterpret_cast<uintptr_t>(data.data()) % (type.type == phi::Type::F32 ? 4 : 2) != 0)
        throw nb::value_error("the weights must begin at an address divisible by the size of their numbers");
    const phi::Isa chosen = isa_or_active(isa);
    nb::gil_scoped_release release;
    const phi::Matrix weight{type.type, static_cast<int64_t>(data.shape(0)), static_cast<int64_t>(x.shape(1)),
                             static_cast<int64_t>(data.shape(1)), data.data()};
    phi::multiply(weight, x.data(), static_cast<int>(x.shape(0)), out.data(), threads, chosen);
}

static void bind_engine(nb::module_ &m) {
    m.def("multiply", multiply, "type"_a, "data"_a.noconvert(), "x"_a.noconvert(), "out"_a.noconvert(),
          "threads"_a = 1, "isa"_a = nb::none());
    nb::class_<PythonEngine>(m, "Engine")
        .def(nb::init<const nb::dict &, const nb::dict &, int64_t, int, const std::string &, int64_t>(), "config"_a,
             "tensors"_a, "n_ctx"_a, "threads"_a, "cache_type"_a = "F16", "n_sequences"_a = 1)
        .def("forward", &PythonEngine::forward, "tokens"_a.noconvert(), "all_logits"_a)
        .def("forward_many", &PythonEngine::forward_many, "parts"_a.noconvert(), "all_logits"_a)
        .def("forward_hidden", &PythonEngine::forward_hidden, "hidden"_a.noconvert(), "n_logits"_a, "text_length"_a)
        .def("input_squares", &PythonEngine::input_squares, "tokens"_a.noconvert())
        .def("truncate", &PythonEngine::truncate, "length"_a, "sequence"_a = 0)
        .def("copy", &PythonEngine::copy, "source"_a, "target"_a, "length"_a)
        .def("length", &PythonEngine::length, "sequence"_a)
        .def_prop_ro("position", &PythonEngine::position)
        .def_prop_ro("n_ctx", &PythonEngine::n_ctx)
        .def_prop_ro("n_sequences", &PythonEngine::n_sequences)
        .def_prop_ro("cache_bytes", &PythonEngine::cache_bytes)
        .def_prop_ro("work_bytes", &PythonEngine::work_bytes);
}

// ----------------------------------------------------------------------------------------------

NB_MODULE(native, m) {
    m.doc() = "The C++ half of phicourse: quantizers and the engine.";
    bind_isa(m);
    bind_quantize(m);
    bind_engine(m);
}
