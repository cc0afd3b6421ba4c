// The contract between the instruction-set objects (isa.cpp, compiled once per instruction set) and
// the rest: plain pointers, sizes and strides. Matrices are row-major; sizes may be zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyfastnn {

using index = std::ptrdiff_t;

// Rows of a batch that go through the layers together; the depth that a product sums at once of columns of a.
constexpr index max_tile_rows = 384;
constexpr index max_depth = 256;
// And of rows of a: 4 KB each, so that a tile's stay in the first-level cache.
template <class T>
constexpr index max_row_depth = 4096 / index(sizeof(T));
// What a product packs: of b half a megabyte, part of the second-level cache. Columns of a are packed too, for so many
// rows of the result, and again for each block of b, which is twice as large for that.
template <class T>
constexpr index packed_size = (index(1) << 19) / index(sizeof(T));
template <class T>
constexpr index packed_beside_a = 2 * packed_size<T>;
constexpr index packed_rows = 192;
// Elements of scratch that one product needs.
template <class T>
constexpr index scratch_size = packed_beside_a<T> + packed_rows * max_depth;

// Outputs of a layer up to which its weights may be kept transposed.
constexpr index most_transposed = 4;

// A matrix in panels: two vectors of columns each, the last one maybe a single vector, whose rows lie behind
// one another. A product reads or writes one from end to end.
struct Panels {
  index rows, width, panel_width;  // width: the columns, rounded up to whole vectors

  // Inlined everywhere: see isa.cpp.
  __attribute__((always_inline)) index count() const { return (width + panel_width - 1) / panel_width; }
  // Of panel p: its width, and where its row r starts.
  __attribute__((always_inline)) index width_of(index p) const {
    const index rest = width - p * panel_width;
    return rest < panel_width ? rest : panel_width;
  }
  __attribute__((always_inline)) index begin(index p, index r) const {
    return p * rows * panel_width + r * width_of(p);
  }
};

// c (rows, columns) = start + a b, where every element is summed from start in the order of depth,
// by one fused multiply-add per step, whatever the blocking. Two products that are not padded and have one start add it
// last instead. A column by itself (ldb = ldc = 1) is summed as by gemm_dots. Two to four columns that are all of b
// (ldb = columns), of a depth from 32 on, are interleaved sums, folded by halves: as many as 64 bytes have room for
// four elements.
template <class T>
struct Gemm {
  index rows, columns, depth;
  const T* a;  // (rows, depth), or (depth, rows) in gemm_at
  index lda;
  const T* b;  // (depth, columns), or (columns, depth) in gemm_bt
  index ldb;
  const T* start;  // (rows, columns) with stride start_stride, 0 to repeat one row; null: zero
  index start_stride;
  T* c;
  index ldc;
  T* scratch;  // scratch_size<T>, aligned to 64 bytes
  // The rows of b (of gemm, gemm_at), start and c have room for whole vectors past the last column:
  // what they hold there is read and written.
  bool padded = false;
  // Unless null, the rows of a of gemm and gemm_at (of a transposed, its rows of `depth`) lie at a_rows[i] + a_offset
  // instead: a shuffled batch needs no copy.
  const T* const* a_rows = nullptr;
  index a_offset = 0;
  // Of gemm_at, unless zero: the rows of the next such product lie at a_rows[i + a_next] + a_offset, and begin to
  // arrive.
  index a_next = 0;
  // Unless null, b of gemm and gemm_bt is a matrix in panels, from its row panel_row on; so are c and start of gemm_at.
  // Their strides are not used then.
  const Panels* panels = nullptr;
  index panel_row = 0;
  // Instead of all that, c -= rate a b, of a padded product without start: of gemm_at with depth <= max_depth, of gemm
  // <= max_row_depth.
  bool descends = false;
  T rate = 0;
};

// On rows of `columns`, `stride` apart; what lies between may be read and written.
template <class T>
struct Activation {
  const char* name;
  bool elementwise;                                                                        // else a row is one argument
  void (*value)(index rows, index columns, index stride, const T* z, T* a);                // a may be z
  void (*delta)(index rows, index columns, index stride, const T* d, const T* s, T* out);  // out may be d
};

// Rows whose losses are summed together, whatever the threads.
constexpr index loss_rows = 16;

// Outputs and targets of a batch, and where the derivative goes; what lies between rows may be written.
template <class T>
struct LossRows {
  index rows, columns;
  const T* a;
  index stride;  // of a and d
  const T* y;
  index y_stride;
  const T* weight;  // null: 1 throughout
  double scale;
  bool matched;
  T* d;                // null: not wanted
  double* sums;        // sum_i weight_i l_i of each loss_rows rows
  index y_beyond = 0;  // elements that may be read past the last row of y
};

template <class T>
struct Loss {
  const char* name;
  // Writes to d scale weight_i times a - y where matched, else dl/da.
  void (*rows)(const LossRows<T>&);
};

// An optimizer's update of a range of parameters: w, and what it remembers in `slots` arrays, from
// the gradient g and the numbers of the step.
constexpr int max_slots = 2;
template <class T>
struct Rule {
  const char* name;
  int slots, numbers;
  bool descends;  // w -= numbers[0] g, which a product can do as it leaves the registers
  void (*apply)(index count, T* w, const T* g, T* const* slots, const double* numbers);
};

// A matrix, or the sum of two, if there is another.
template <class T>
struct Term {
  const T *one, *another;
};

template <class T>
struct KernelTable {
  void (*gemm)(const Gemm<T>&);
  void (*gemm_at)(const Gemm<T>&);
  void (*gemm_bt)(const Gemm<T>&);
  // As gemm_bt, without start: every element summed in 64 bytes of lanes by fused multiply-adds, the lanes then folded
  // by halves. Nothing is transposed, so for one row or column of the result, or few.
  void (*gemm_dots)(const Gemm<T>&);
  // With at most most_transposed outputs. The first: c (rows, outputs) = start + a b^T, b (outputs, depth), start one
  // row, summed in 64 bytes of lanes as by gemm_dots. The second: as gemm_at, c (outputs, columns) with room for whole
  // vectors, b too if padded, without panels; even and odd steps of depth are summed apart, and added.
  void (*few_outputs)(const Gemm<T>&);
  void (*few_outputs_at)(const Gemm<T>&);
  // to (columns, rows) = from (rows, columns) transposed; the rows of `to` have room for whole vectors,
  // which is filled with zeros.
  void (*transpose)(index rows, index columns, const T* from, index from_stride, T* to, index to_stride);
  // `columns` of each row to rows with room for whole vectors, which is filled with zeros.
  void (*spread)(index rows, index columns, const T* from, index from_stride, T* to, index to_stride);
  // Rows order[i] of `from` (rows, columns) to rows i < count. Those that come next are fetched ahead: the order goes
  // on until `reach` >= count.
  void (*gather)(index count, index rows, index columns, const T* from, const std::int64_t* order, index reach, T* to,
                 index to_stride);
  index lanes;
  // sums (columns) += the rows of x.
  void (*add_rows)(index rows, index columns, index stride, const T* x, T* sums);
  // c (rows, columns) = the row start (null: zero), plus each term in turn, of which one row follows the other. Columns
  // fill vectors.
  void (*add_terms)(index rows, index columns, const T* start, index count, const Term<T>* terms, T* c, index ldc);

  const Activation<T>* activations;
  int activation_count;
  const Loss<T>* losses;
  int loss_count;
  // Cross-entropy with integer labels instead of y: as Loss::rows with matched, y the one-hot rows.
  void (*label_cross_entropy)(const LossRows<T>&, const std::int64_t* labels);

  const Rule<T>* rules;
  int rule_count;

  // The machine's limits: rounds of multiply_adds_per_round, and a pass over count elements.
  T (*multiply_add_rounds)(index rounds);
  index multiply_adds_per_round;
  T (*read_all)(index count, const T* x);
};

}  // namespace pyfastnn
