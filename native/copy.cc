// Many copies between ArrayBuffers, or between them and files, by one call (CopyList). A call into the addon costs a
// tenth of what it takes to make the subarrays that TypedArray.set wants, and leaves no garbage; in a row the memory of
// the next copy is fetched during this one.
//
// A file is read and written by this thread, and holes are punched into it: what may take long is for the caller to
// leave out, or to rule out by RWF_NOWAIT.
//
// `run` is a plain Node-API function: it is called for each batch of a disk's commands, and wrappers cost as much as
// the call.
#include <fcntl.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "addon.h"
#include "arguments.h"
#include "file_end.h"
#include "guard.h"

namespace {

// As index.ts describes it.
struct Entry {
  uint32_t source, source_offset, target, target_offset, length, file_offset_high;
};

// What copies are made from and to: a buffer's bytes, or a file with the flags of preadv2 and pwritev2.
struct Place {
  uint8_t* data;
  size_t length;
  int fd;
  int flags;

  bool is_file() const { return data == nullptr && fd >= 0; }
};

constexpr size_t kMaxEntries = 65536;
// In the place of a source: the target is a file, of which the range becomes a hole.
constexpr uint32_t kHole = UINT32_MAX;
// The first cache lines of the next copy: those behind them come by the processor's own prefetching.
constexpr size_t kPrefetch = 256;
constexpr size_t kCacheLine = 64;

struct List {
  std::unique_ptr<Entry[]> entries;
  size_t capacity;
  std::unique_ptr<int32_t[]> results;
  std::vector<Place> places;
  // By place: they keep the buffers' memory where it is.
  std::vector<Napi::Reference<Napi::ArrayBuffer>> references;
};
using Shared = std::shared_ptr<List>;

bool Within(const List& list, uint32_t place, uint32_t offset, uint32_t length) {
  if (place >= list.places.size()) return false;
  return list.places[place].is_file() || uint64_t{offset} + length <= list.places[place].length;
}

void Prefetch(const List& list, const Entry& entry) {
  if (!Within(list, entry.source, entry.source_offset, entry.length) || list.places[entry.source].is_file()) return;
  const uint8_t* start = list.places[entry.source].data + entry.source_offset;
  for (size_t at = 0; at < kPrefetch; at += kCacheLine) __builtin_prefetch(start + at);
}

bool PlaceIsLost(const Place& place, uint32_t offset, uint32_t length) {
  return !place.is_file() && IsLost(place.data + offset, length);
}

// Returns 0 or an errno; what is moved in part only is EIO.
int Move(const Entry& entry, const Place& source, const Place& target, FileEnd& file_end) {
  if (!source.is_file() && !target.is_file()) {
    memmove(target.data + entry.target_offset, source.data + entry.source_offset, entry.length);
    return 0;
  }
  if (source.is_file() && target.is_file()) return EINVAL;
  off_t high = off_t{entry.file_offset_high} << 32;
  if (target.is_file()) {
    int error = file_end.Check(target.fd, (high | entry.target_offset) + entry.length);
    if (error != 0) return error;
  }
  ssize_t moved;
  do {
    if (source.is_file()) {
      iovec part = {target.data + entry.target_offset, entry.length};
      moved = preadv2(source.fd, &part, 1, high | entry.source_offset, source.flags);
    } else {
      iovec part = {source.data + entry.source_offset, entry.length};
      moved = pwritev2(target.fd, &part, 1, high | entry.target_offset, target.flags);
    }
  } while (moved < 0 && errno == EINTR);
  if (moved < 0) return errno;
  return static_cast<size_t>(moved) == entry.length ? 0 : EIO;
}

// Memory that is gone is zeros, which a system call does not notice either: what is known to be gone is not copied at
// all.
int Copy(const Entry& entry, const Place& source, const Place& target, FileEnd& file_end) {
  if (PlaceIsLost(source, entry.source_offset, entry.length)) return EFAULT;
  int error = Move(entry, source, target, file_end);
  if (error != 0) return error;
  bool isLost = PlaceIsLost(source, entry.source_offset, entry.length) ||
                PlaceIsLost(target, entry.target_offset, entry.length);
  return isLost ? EFAULT : 0;
}

// Returns 0 or an errno.
int PunchHole(const Entry& entry, const Place& target) {
  off_t start = off_t{entry.file_offset_high} << 32 | entry.target_offset;
  int result;
  do {
    result = fallocate(target.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, start, entry.length);
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

napi_value Run(napi_env env, napi_callback_info info) {
  napi_value argument;
  size_t argc = 1;
  void* data;
  uint32_t count;
  napi_get_cb_info(env, info, &argc, &argument, nullptr, &data);
  const List& list = **static_cast<Shared*>(data);
  if (argc < 1 || napi_get_value_uint32(env, argument, &count) != napi_ok || count > list.capacity) {
    napi_throw_range_error(env, nullptr, "no such number of copies");
    return nullptr;
  }
  uint32_t failures = 0;
  FileEnd file_end;
  for (uint32_t n = 0; n < count; n++) {
    const Entry entry = list.entries[n];
    bool is_hole = entry.source == kHole;
    bool is_within = Within(list, entry.target, entry.target_offset, entry.length) &&
                     (is_hole ? list.places[entry.target].is_file()
                              : Within(list, entry.source, entry.source_offset, entry.length));
    if (!is_within) {
      napi_throw_range_error(env, nullptr, "a copy is not within its buffers");
      return nullptr;
    }
    if (n + 1 < count) Prefetch(list, list.entries[n + 1]);
    const Place& target = list.places[entry.target];
    list.results[n] =
        is_hole ? PunchHole(entry, target) : Copy(entry, list.places[entry.source], target, file_end);
    if (list.results[n] != 0) failures++;
  }
  napi_value result;
  napi_create_uint32(env, failures, &result);
  return result;
}

Napi::Value Add(const Napi::CallbackInfo& info) {
  List& list = **static_cast<Shared*>(info.Data());
  Bytes bytes = ArrayBufferBytes(info[0], "buffer");
  list.places.push_back({bytes.data, bytes.length, -1, 0});
  list.references.push_back(Napi::Persistent(info[0].As<Napi::ArrayBuffer>()));
  return Napi::Number::New(info.Env(), static_cast<double>(list.places.size() - 1));
}

Napi::Value Replace(const Napi::CallbackInfo& info) {
  List& list = **static_cast<Shared*>(info.Data());
  size_t number = Integer(info[0], "number", 0, static_cast<double>(list.places.size()) - 1);
  Bytes bytes = ArrayBufferBytes(info[1], "buffer");
  if (list.places[number].fd >= 0) throw Napi::RangeError::New(info.Env(), "this place is a file");
  list.places[number] = {bytes.data, bytes.length, -1, 0};
  list.references[number] = Napi::Persistent(info[1].As<Napi::ArrayBuffer>());
  return info.Env().Undefined();
}

Napi::Value AddFile(const Napi::CallbackInfo& info) {
  List& list = **static_cast<Shared*>(info.Data());
  int fd = static_cast<int>(Integer(info[0], "fd", 0, INT32_MAX));
  list.places.push_back({nullptr, 0, fd, static_cast<int>(Integer(info[1], "flags", 0, INT32_MAX))});
  list.references.emplace_back();
  return Napi::Number::New(info.Env(), static_cast<double>(list.places.size() - 1));
}

Napi::Value CreateCopyList(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  size_t capacity = Integer(info[0], "capacity", 1, kMaxEntries);
  Shared list = std::make_shared<List>();
  list->entries = std::make_unique<Entry[]>(capacity);
  list->results = std::make_unique<int32_t[]>(capacity);
  list->capacity = capacity;
  // Each part that scripts get holds the list, whichever is collected last.
  auto holder = [&list] { return new Shared(list); };
  auto drop = [](Napi::Env, void*, Shared* one) { delete one; };

  Shared* for_run = holder();
  napi_value run;
  if (napi_create_function(env, "run", NAPI_AUTO_LENGTH, Run, for_run, &run) != napi_ok) {
    delete for_run;
    throw Napi::Error::New(env);
  }
  Napi::Function(env, run).AddFinalizer([](Napi::Env, Shared* one) { delete one; }, for_run);
  Shared* for_add = holder();
  Napi::Function add = Napi::Function::New<Add>(env, "add", for_add);
  add.AddFinalizer([](Napi::Env, Shared* one) { delete one; }, for_add);
  Shared* for_replace = holder();
  Napi::Function replace = Napi::Function::New<Replace>(env, "replace", for_replace);
  replace.AddFinalizer([](Napi::Env, Shared* one) { delete one; }, for_replace);
  Shared* for_add_file = holder();
  Napi::Function add_file = Napi::Function::New<AddFile>(env, "addFile", for_add_file);
  add_file.AddFinalizer([](Napi::Env, Shared* one) { delete one; }, for_add_file);
  Napi::ArrayBuffer entries =
      Napi::ArrayBuffer::New(env, list->entries.get(), capacity * sizeof(Entry), drop, holder());
  Napi::ArrayBuffer results =
      Napi::ArrayBuffer::New(env, list->results.get(), capacity * sizeof(int32_t), drop, holder());

  Napi::Object result = Napi::Object::New(env);
  result.Set("results", Napi::Int32Array::New(env, capacity, results, 0));
  result.Set("entries", Napi::Uint32Array::New(env, capacity * sizeof(Entry) / 4, entries, 0));
  result.Set("run", Napi::Function(env, run));
  result.Set("add", add);
  result.Set("replace", replace);
  result.Set("addFile", add_file);
  return result;
}

}  // namespace

void InitCopy(Napi::Env env, Napi::Object exports) { Export<CreateCopyList>(env, exports, "createCopyList"); }
