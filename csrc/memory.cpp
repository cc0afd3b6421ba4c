#include "memory.hpp"

#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pyfastnn {
namespace {

constexpr auto alignment = std::align_val_t(64);

#if defined(__linux__)
constexpr size_t huge_page = size_t(1) << 21;

// In whole huge pages; 0 of a block that would leave more than five eighths of one empty: there may be thousands.
constexpr size_t mapped_size(size_t size) {
  return size < 3 * huge_page / 8 ? 0 : (size + huge_page - 1) / huge_page * huge_page;
}

// Fresh pages: those of the heap may have been touched before, and stay small then. A step whose arrays lie in small
// ones asks for more addresses than the processor's tables hold, and to look one up takes long in a virtual machine.
std::byte* map(size_t size) {
  void* const pages = mmap(nullptr, size + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  const size_t before = -reinterpret_cast<std::uintptr_t>(pages) % huge_page;
  std::byte* const block = static_cast<std::byte*>(pages) + before;
  if (before) munmap(pages, before);
  munmap(block + size, huge_page - before);
  madvise(block, size, MADV_HUGEPAGE);  // an older or otherwise configured kernel does without
  return block;
}
#endif

}  // namespace

std::byte* Memory::allocate(size_t size) {
#if defined(__linux__)
  if (const size_t mapped = mapped_size(size)) return map(mapped);
#endif
  void* const block = ::operator new(size, alignment);
  return static_cast<std::byte*>(std::memset(block, 0, size));
}

void Memory::Release::operator()(std::byte* block) const {
#if defined(__linux__)
  if (const size_t mapped = mapped_size(size)) {
    munmap(block, mapped);
    return;
  }
#endif
  ::operator delete(block, alignment);
}

}  // namespace pyfastnn
