#include "order.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace pyfastnn {

// From the last place down, each changes with one at or below it, itself included. Which one: numbers cut to the
// bits of the place, until one is no greater (Durstenfeld, Algorithm 235 (1964); Generator.shuffle). Between a
// quarter and none are, at random: a branch on that would be mispredicted for most places, so the places are
// drawn without one, some hundred ahead of the exchanges.
void permutation(const BitGenerator& generator, index count, std::int64_t* order) {
  constexpr index ahead = 256;
  std::uint32_t chosen[ahead];
  std::iota(order, order + count, std::int64_t(0));
  for (index place = count - 1; place > 0;) {
    std::uint32_t mask = std::uint32_t(place);
    for (int shift = 1; shift < 32; shift *= 2) mask |= mask >> shift;
    const index places = std::min(place - index(mask >> 1), ahead);  // of the same mask
    for (index drawn = 0; drawn < places;) {
      chosen[drawn] = generator.next_uint32(generator.state) & mask;
      drawn += chosen[drawn] <= std::uint32_t(place - drawn);
    }
    for (index i = 0; i < places; i++, place--) std::swap(order[place], order[chosen[i]]);
  }
}

}  // namespace pyfastnn
