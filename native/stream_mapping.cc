#include "stream_mapping.h"

#include <sys/mman.h>
#include <sys/types.h>

const char* StreamMapping::Map(int fd, size_t offset, const std::array<size_t, 3>& sizes) {
  size_t whole = sizes[0] + 2 * (sizes[1] + sizes[2]);
  void* base = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return "mmap";
  base_ = base;
  size_ = whole;
  uint8_t* place = static_cast<uint8_t*>(base);
  int flags = MAP_SHARED | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS | MAP_NORESERVE : 0);
  for (size_t n = 0; n < sizes.size(); n++) {
    void* first = mmap(place, sizes[n], PROT_READ | PROT_WRITE, flags, fd, fd < 0 ? 0 : static_cast<off_t>(offset));
    if (first == MAP_FAILED) return "mmap";
    offset += sizes[n];
    place += sizes[n];
    if (n == 0) continue;
    // With an old size of 0 the pages of a shared map are mapped once more.
    if (mremap(first, 0, sizes[n], MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) return "mremap";
    place += sizes[n];
  }
  return nullptr;
}

void StreamMapping::End() {
  if (base_ != nullptr) munmap(base_, size_);
  base_ = nullptr;
}
