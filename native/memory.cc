// Address space that is mapped into many times (Reservation), and maps that live as long as their ArrayBuffer
// (mapFile). No ArrayBuffer is ever made for a map into a Reservation: making one costs a garbage collection.
//
// Each piece of a Reservation is reserved when it is first needed, without access: it takes addresses, and neither
// memory nor the promise of any, which vm.overcommit_memory=2 counts.
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "addon.h"
#include "arguments.h"
#include "error.h"
#include "guard.h"
#include "huge_pages.h"

namespace {

constexpr size_t kPage = 4096;
constexpr double kMaxBuffer = 4294967296.0;  // Node 20's largest ArrayBuffer
constexpr double kMaxReservation = 1099511627776.0 * 16;
constexpr size_t kLargePage = size_t{1} << 21;
constexpr size_t kHugePage = size_t{1} << 30;
constexpr int kEmptyFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

// Whether mmap keeps to what it is asked for: of a file of huge pages it maps whole ones, over what is next to the
// place, and such a map cannot be taken away in part.
bool MapsExactly(size_t page, uintptr_t place, size_t length) { return place % page == 0 && length % page == 0; }

// Addresses that stay ours until the last ArrayBuffer and the Reservation itself are gone.
struct Region {
  uint8_t* base;
  size_t size;
  std::optional<GuardedRange> guard;

  ~Region() {
    guard.reset();  // before the addresses may become somebody else's
    munmap(base, size);
  }
};

void* ReserveAligned(size_t size, size_t alignment) {
  void* found = mmap(nullptr, size + alignment, PROT_NONE, kEmptyFlags, -1, 0);
  if (found == MAP_FAILED) return found;
  uintptr_t start = reinterpret_cast<uintptr_t>(found);
  uintptr_t base = (start + alignment - 1) & ~(alignment - 1);
  if (base > start) munmap(found, base - start);
  size_t rest = alignment - (base - start);
  if (rest > 0) munmap(reinterpret_cast<void*>(base + size), rest);
  return reinterpret_cast<void*>(base);
}

// Nothing, at an address that is aligned as large pages want it, so that maps at such offsets can have them.
void* Reserve(size_t size) {
  void* found = size >= kHugePage ? ReserveAligned(size, kHugePage) : MAP_FAILED;
  return found != MAP_FAILED ? found : ReserveAligned(size, kLargePage);
}

class Reservation : public Napi::ObjectWrap<Reservation> {
 public:
  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("Reservation", DefineClass(env, "Reservation",
                                           {
                                               InstanceAccessor<&Reservation::Size>("size"),
                                               InstanceAccessor<&Reservation::Repairs>("repairs"),
                                               InstanceMethod<&Reservation::Piece>("piece"),
                                               InstanceMethod<&Reservation::Map>("map"),
                                               InstanceMethod<&Reservation::Unmap>("unmap"),
                                               InstanceMethod<&Reservation::Release>("release"),
                                           }));
  }

  explicit Reservation(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Reservation>(info) {
    Napi::Env env = info.Env();
    size_ = Integer(info[0], "size", kPage, kMaxReservation);
    piece_size_ = Integer(info[1], "pieceSize", kPage, kMaxBuffer);
    if (size_ % kPage != 0 || piece_size_ % kPage != 0) {
      throw Napi::RangeError::New(env, "size and pieceSize must be multiples of the page size");
    }
    if (!info[2].IsUndefined()) stray_ = Fd(info[2], "stray");
    size_t count = (size_ + piece_size_ - 1) / piece_size_;
    regions_.resize(count);
    pieces_.resize(count);
    RegionOf(env, 0);
  }

 private:
  // A part of a map that lies in one piece.
  struct Part {
    Region& region;
    size_t offset;  // in the piece
    size_t length;
    size_t before;  // bytes of the map in front of it
  };

  Napi::Value Size(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(size_));
  }

  Napi::Value Repairs(const Napi::CallbackInfo& info) {
    double repairs = 0;
    for (const auto& region : regions_) {
      if (region != nullptr) repairs += region->guard->repairs();
    }
    return Napi::Number::New(info.Env(), repairs);
  }

  Napi::Value Piece(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    CheckOpen(env);
    size_t index = Integer(info[0], "index", 0, static_cast<double>(pieces_.size()) - 1);
    if (!pieces_[index].IsEmpty()) return pieces_[index].Value();
    Region& region = RegionOf(env, index);
    auto owner = std::make_unique<std::shared_ptr<Region>>(regions_[index]);
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(
        env, region.base, region.size, [](Napi::Env, void*, std::shared_ptr<Region>* one) { delete one; }, owner.get());
    owner.release();
    pieces_[index] = Napi::Persistent(buffer);
    return buffer;
  }

  Napi::Value Map(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    CheckOpen(env);
    auto [offset, length] = Range(info);
    int fd = Fd(info[2]);
    off_t fd_offset = Integer(info[3], "fdOffset", 0, kMaxSafeInteger - static_cast<double>(length));
    int protection = static_cast<int>(Integer(info[4], "protection", 0, PROT_READ | PROT_WRITE));
    if (fd_offset % kPage != 0) throw Napi::RangeError::New(env, "fdOffset must be a multiple of the page size");
    for (size_t n = offset / piece_size_; n <= (offset + length - 1) / piece_size_; n++) RegionOf(env, n);
    size_t page = HugePageSize(fd);
    EachPart(offset, length, [&](Part part) {
      uintptr_t place = reinterpret_cast<uintptr_t>(part.region.base + part.offset);
      if (page != 0 && !MapsExactly(page, place, part.length)) throw SystemError(env, EINVAL, "mmap");
    });
    // Huge pages that their owner has not got yet are not claimed for him: touched without one, they are as if
    // truncated.
    int flags = MAP_SHARED | MAP_FIXED | (page != 0 ? MAP_NORESERVE : 0);
    int error = 0;
    EachPart(offset, length, [&](Part part) {
      if (error != 0) return;
      // Recorded first: a fault finds what it is about.
      part.region.guard->Mapped(part.offset, part.length);
      uint8_t* place = part.region.base + part.offset;
      if (mmap(place, part.length, protection, flags, fd, fd_offset + part.before) == MAP_FAILED) {
        error = errno;
      } else {
        // A dump of this process must not hold a VM's memory.
        madvise(place, part.length, MADV_DONTDUMP);
      }
    });
    if (error != 0) {
      // What was there before may be gone: only nothing is known to be right.
      Empty(offset, length);
      throw SystemError(env, error, "mmap");
    }
    return env.Undefined();
  }

  Napi::Value Unmap(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    CheckOpen(env);
    auto [offset, length] = Range(info);
    int error = Empty(offset, length);
    if (error != 0) throw SystemError(env, error, "mmap");
    return env.Undefined();
  }

  Napi::Value Release(const Napi::CallbackInfo& info) {
    if (isReleased_) return info.Env().Undefined();
    int error = Empty(0, size_);
    if (error != 0) throw SystemError(info.Env(), error, "mmap");
    for (const auto& region : regions_) {
      if (region != nullptr) region->guard->TellStrays(-1);
    }
    isReleased_ = true;
    pieces_.clear();
    regions_.clear();
    return info.Env().Undefined();
  }

  void CheckOpen(Napi::Env env) {
    if (isReleased_) throw Napi::Error::New(env, "the reservation was released");
  }

  Region& RegionOf(Napi::Env env, size_t index) {
    std::shared_ptr<Region>& region = regions_[index];
    if (region != nullptr) return *region;
    size_t size = std::min(piece_size_, size_ - index * piece_size_);
    void* base = Reserve(size);
    if (base == MAP_FAILED) throw SystemError(env, errno, "mmap");
    auto made = std::make_shared<Region>(static_cast<uint8_t*>(base), size);
    made->guard.emplace(base, size);
    if (!made->guard->registered()) throw SystemError(env, ENOMEM, "mmap");
    made->guard->TellStrays(stray_);
    region = std::move(made);
    return *region;
  }

  std::pair<size_t, size_t> Range(const Napi::CallbackInfo& info) {
    size_t offset = Integer(info[0], "offset", 0, static_cast<double>(size_));
    size_t length = Integer(info[1], "length", kPage, static_cast<double>(size_ - offset));
    if (offset % kPage != 0 || length % kPage != 0) {
      throw Napi::RangeError::New(info.Env(), "offset and length must be multiples of the page size");
    }
    return {offset, length};
  }

  // Of [offset, offset + length), what lies in pieces that are reserved.
  template <typename Action>
  void EachPart(size_t offset, size_t length, Action action) {
    for (size_t done = 0; done < length;) {
      size_t index = (offset + done) / piece_size_;
      size_t start = (offset + done) % piece_size_;
      size_t here = std::min(length - done, piece_size_ - start);
      if (regions_[index] != nullptr) action(Part{*regions_[index], start, here, done});
      done += here;
    }
  }

  // Takes away what is mapped. Returns 0 or an errno.
  int Empty(size_t offset, size_t length) {
    int error = 0;
    EachPart(offset, length, [&](Part part) {
      uint8_t* place = part.region.base + part.offset;
      if (mmap(place, part.length, PROT_NONE, kEmptyFlags | MAP_FIXED, -1, 0) == MAP_FAILED) error = errno;
      else part.region.guard->Unmapped(part.offset, part.length);
    });
    return error;
  }

  size_t size_ = 0;
  size_t piece_size_ = 0;
  int stray_ = -1;
  bool isReleased_ = false;
  // Null where nothing was needed yet.
  std::vector<std::shared_ptr<Region>> regions_;
  std::vector<Napi::Reference<Napi::ArrayBuffer>> pieces_;
};

Napi::Value MapFile(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  size_t length = Integer(info[2], "length", 1, kMaxBuffer);
  off_t offset = Integer(info[1], "offset", 0, kMaxSafeInteger - static_cast<double>(length));
  int protection = static_cast<int>(Integer(info[3], "protection", 0, PROT_READ | PROT_WRITE));
  struct stat status;
  Check(env, fstat(fd, &status), "fstat");
  void* base = mmap(nullptr, length, protection, MAP_SHARED, fd, offset);
  if (base == MAP_FAILED) throw SystemError(env, errno, "mmap");
  auto region = std::make_unique<Region>(static_cast<uint8_t*>(base), length);
  // A file's owner may truncate it. A device's registers that fault are no zeros, and whoever maps them must know.
  if (S_ISREG(status.st_mode)) {
    size_t pages = (length + kPage - 1) & ~(kPage - 1);
    region->guard.emplace(base, pages);
    if (!region->guard->registered()) throw SystemError(env, ENOMEM, "mmap");
    region->guard->Mapped(0, pages);
  }
  Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(
      env, base, length, [](Napi::Env, void*, Region* one) { delete one; }, region.get());
  region.release();
  return buffer;
}

// Memory of this process alone, at an address that large pages want: it is made of such where the kernel has some. A
// child process does not get it: what a device writes to must not be copied when either of them writes.
Napi::Value AllocateAligned(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  size_t length = Integer(info[0], "length", 1, kMaxBuffer);
  if (length % kLargePage != 0) throw Napi::RangeError::New(env, "length must be a multiple of a large page");
  void* base = ReserveAligned(length, kLargePage);
  if (base == MAP_FAILED) throw SystemError(env, errno, "mmap");
  auto region = std::make_unique<Region>(static_cast<uint8_t*>(base), length);
  if (mprotect(base, length, PROT_READ | PROT_WRITE) != 0) throw SystemError(env, errno, "mprotect");
  madvise(base, length, MADV_HUGEPAGE);
  madvise(base, length, MADV_DONTFORK);
  Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(
      env, base, length, [](Napi::Env, void*, Region* one) { delete one; }, region.get());
  region.release();
  return buffer;
}

Napi::Value FindLost(const Napi::CallbackInfo& info) {
  Bytes bytes = Slice(info[0], info[1], info[2]);
  return Napi::Boolean::New(info.Env(), IsLost(bytes.data, bytes.length));
}

}  // namespace

void InitMemory(Napi::Env env, Napi::Object exports) {
  Reservation::Init(env, exports);
  static_assert(sizeof any_lost == sizeof(uint32_t));
  Napi::ArrayBuffer count = Napi::ArrayBuffer::New(env, &any_lost, sizeof any_lost);
  exports.Set("anyLost", Napi::Uint32Array::New(env, 1, count, 0));
  Export<FindLost>(env, exports, "isLost");
  Export<MapFile>(env, exports, "mapFile");
  Export<AllocateAligned>(env, exports, "allocateAligned");
}
