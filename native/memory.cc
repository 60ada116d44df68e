// Address space that is reserved once and mapped into many times (Reservation), and maps that live as long as their
// ArrayBuffer (mapFile). No ArrayBuffer is ever made for a map into a Reservation: making one costs a garbage collection.
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "addon.h"
#include "arguments.h"
#include "error.h"
#include "guard.h"

namespace {

constexpr size_t kPage = 4096;
constexpr double kMaxBuffer = 4294967296.0;  // Node 20's largest ArrayBuffer
constexpr double kMaxReservation = 1099511627776.0 * 16;
constexpr size_t kLargePage = size_t{1} << 21;
constexpr size_t kHugePage = size_t{1} << 30;
constexpr int kZeroFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

// Whether mmap keeps to what it is told: of a file of huge pages it maps whole ones, over what is next to the place, and such a
// map cannot be taken away in part.
bool MapsExactly(int fd, size_t place, size_t length) {
  constexpr unsigned kHugetlbfs = 0x958458f6;
  struct statfs status;
  if (fstatfs(fd, &status) != 0 || static_cast<unsigned>(status.f_type) != kHugetlbfs) return true;
  size_t page = static_cast<size_t>(status.f_bsize);
  return place % page == 0 && length % page == 0;
}

// Addresses that stay ours until the last ArrayBuffer and the Reservation itself are gone.
struct Region {
  void* base;
  size_t size;
  std::optional<GuardedRange> guard;

  ~Region() {
    guard.reset();  // before the addresses may become somebody else's
    munmap(base, size);
  }
};

// Zero pages at an address that is aligned as large pages want it, so that maps at such offsets can have them.
void* Reserve(size_t size) {
  size_t alignment = size >= kHugePage ? kHugePage : kLargePage;
  void* found = mmap(nullptr, size + alignment, PROT_READ | PROT_WRITE, kZeroFlags, -1, 0);
  if (found == MAP_FAILED) return found;
  uintptr_t start = reinterpret_cast<uintptr_t>(found);
  uintptr_t base = (start + alignment - 1) & ~(alignment - 1);
  if (base > start) munmap(found, base - start);
  size_t rest = alignment - (base - start);
  if (rest > 0) munmap(reinterpret_cast<void*>(base + size), rest);
  return reinterpret_cast<void*>(base);
}

class Reservation : public Napi::ObjectWrap<Reservation> {
 public:
  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("Reservation", DefineClass(env, "Reservation",
                                           {
                                               InstanceAccessor<&Reservation::Size>("size"),
                                               InstanceAccessor<&Reservation::Address>("address"),
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
    void* base = Reserve(size_);
    if (base == MAP_FAILED) throw SystemError(env, errno, "mmap");
    region_ = std::make_shared<Region>(base, size_);
    region_->guard.emplace(base, size_);
    if (!region_->guard->registered()) throw SystemError(env, ENOMEM, "mmap");
    pieces_.resize((size_ + piece_size_ - 1) / piece_size_);
  }

 private:
  Napi::Value Size(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(size_));
  }

  Napi::Value Address(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(reinterpret_cast<uintptr_t>(Base(info.Env()))));
  }

  Napi::Value Piece(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    uint8_t* base = Base(env);
    size_t index = Integer(info[0], "index", 0, static_cast<double>(pieces_.size()) - 1);
    if (!pieces_[index].IsEmpty()) return pieces_[index].Value();
    size_t offset = index * piece_size_;
    auto owner = std::make_unique<std::shared_ptr<Region>>(region_);
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(
        env, base + offset, std::min(piece_size_, size_ - offset),
        [](Napi::Env, void*, std::shared_ptr<Region>* one) { delete one; }, owner.get());
    owner.release();
    pieces_[index] = Napi::Persistent(buffer);
    return buffer;
  }

  Napi::Value Map(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    uint8_t* base = Base(env);
    auto [offset, length] = Part(info);
    int fd = Fd(info[2]);
    off_t fd_offset = Integer(info[3], "fdOffset", 0, kMaxSafeInteger - static_cast<double>(length));
    int protection = static_cast<int>(Integer(info[4], "protection", 0, PROT_READ | PROT_WRITE));
    if (fd_offset % kPage != 0) throw Napi::RangeError::New(env, "fdOffset must be a multiple of the page size");
    if (!MapsExactly(fd, offset, length)) throw SystemError(env, EINVAL, "mmap");
    // Recorded first: a record of what is not mapped does no harm.
    region_->guard->Mapped(offset, length);
    if (mmap(base + offset, length, protection, MAP_SHARED | MAP_FIXED, fd, fd_offset) == MAP_FAILED) {
      int error = errno;
      // What was there before may be gone: nothing but zeros is known to be right.
      mmap(base + offset, length, PROT_READ | PROT_WRITE, kZeroFlags | MAP_FIXED, -1, 0);
      throw SystemError(env, error, "mmap");
    }
    // A dump of this process must not hold a VM's memory.
    madvise(base + offset, length, MADV_DONTDUMP);
    return env.Undefined();
  }

  Napi::Value Unmap(const Napi::CallbackInfo& info) {
    uint8_t* base = Base(info.Env());
    auto [offset, length] = Part(info);
    PutZeros(info.Env(), base + offset, length);
    region_->guard->Unmapped(offset, length);
    return info.Env().Undefined();
  }

  Napi::Value Release(const Napi::CallbackInfo& info) {
    if (region_ == nullptr) return info.Env().Undefined();
    PutZeros(info.Env(), Base(info.Env()), size_);
    region_->guard->Unmapped(0, size_);
    pieces_.clear();
    region_ = nullptr;
    return info.Env().Undefined();
  }

  uint8_t* Base(Napi::Env env) {
    if (region_ == nullptr) throw Napi::Error::New(env, "the reservation was released");
    return static_cast<uint8_t*>(region_->base);
  }

  std::pair<size_t, size_t> Part(const Napi::CallbackInfo& info) {
    size_t offset = Integer(info[0], "offset", 0, static_cast<double>(size_));
    size_t length = Integer(info[1], "length", kPage, static_cast<double>(size_ - offset));
    if (offset % kPage != 0 || length % kPage != 0) {
      throw Napi::RangeError::New(info.Env(), "offset and length must be multiples of the page size");
    }
    return {offset, length};
  }

  void PutZeros(Napi::Env env, void* place, size_t length) {
    if (mmap(place, length, PROT_READ | PROT_WRITE, kZeroFlags | MAP_FIXED, -1, 0) == MAP_FAILED) {
      throw SystemError(env, errno, "mmap");
    }
  }

  size_t size_ = 0;
  size_t piece_size_ = 0;
  std::shared_ptr<Region> region_;
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
  auto region = std::make_unique<Region>(base, length);
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

}  // namespace

void InitMemory(Napi::Env env, Napi::Object exports) {
  Reservation::Init(env, exports);
  Export<MapFile>(env, exports, "mapFile");
}
