// Memory for the arrays of a workspace: one block for all of them, in huge pages if it is large.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels.hpp"

namespace pyfastnn {

// A block of zeros, aligned to 64 bytes.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t size) : block_(allocate(size), {size}) {}

  std::byte* data() const { return block_.get(); }
  size_t size() const { return block_.get_deleter().size; }

 private:
  struct Release {
    size_t size;
    void operator()(std::byte*) const;
  };
  static std::byte* allocate(size_t size);

  std::unique_ptr<std::byte, Release> block_;
};

// Arrays that lie one behind another. Without memory it only counts what they take, and all of them are null.
class Arena {
 public:
  Arena() = default;
  explicit Arena(const Memory& memory) : block_(memory.data()) {}

  // An array in cache lines of its own. Padding may come to hold anything: nothing reads it into a real element,
  // since sums run over real depths only.
  template <class T>
  T* take(index count) {
    constexpr size_t line = 64;
    T* const array = block_ ? reinterpret_cast<T*>(block_ + size_) : nullptr;
    size_ += (size_t(count) * sizeof(T) + line - 1) / line * line;
    return array;
  }
  size_t size() const { return size_; }

 private:
  std::byte* block_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pyfastnn
