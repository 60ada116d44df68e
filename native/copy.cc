// Many copies between ArrayBuffers by one call (CopyList). A call into the addon costs a tenth of what it takes to make the
// subarrays that TypedArray.set wants, and leaves no garbage; in a row the memory of the next copy is fetched during this one.
//
// `run` is a plain Node-API function: it is called for each batch of a disk's commands, and wrappers cost as much as the call.
#include <cstring>
#include <memory>
#include <vector>

#include "addon.h"
#include "arguments.h"

namespace {

// As index.ts describes it.
struct Entry {
  uint32_t source, source_offset, target, target_offset, length;
};

constexpr size_t kMaxEntries = 65536;
// The first cache lines of the next copy: those behind them come by the processor's own prefetching.
constexpr size_t kPrefetch = 256;
constexpr size_t kCacheLine = 64;

struct List {
  std::unique_ptr<Entry[]> entries;
  size_t capacity;
  std::vector<Bytes> buffers;
  // They keep the buffers' memory where it is.
  std::vector<Napi::Reference<Napi::ArrayBuffer>> references;
};
using Shared = std::shared_ptr<List>;

bool Within(const List& list, uint32_t buffer, uint32_t offset, uint32_t length) {
  return buffer < list.buffers.size() && uint64_t{offset} + length <= list.buffers[buffer].length;
}

void Prefetch(const List& list, const Entry& entry) {
  if (!Within(list, entry.source, entry.source_offset, entry.length)) return;
  const uint8_t* start = list.buffers[entry.source].data + entry.source_offset;
  for (size_t at = 0; at < kPrefetch; at += kCacheLine) __builtin_prefetch(start + at);
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
  for (uint32_t n = 0; n < count; n++) {
    const Entry& entry = list.entries[n];
    if (!Within(list, entry.source, entry.source_offset, entry.length) ||
        !Within(list, entry.target, entry.target_offset, entry.length)) {
      napi_throw_range_error(env, nullptr, "a copy is not within its buffers");
      return nullptr;
    }
    if (n + 1 < count) Prefetch(list, list.entries[n + 1]);
    memmove(list.buffers[entry.target].data + entry.target_offset, list.buffers[entry.source].data + entry.source_offset,
            entry.length);
  }
  return nullptr;
}

Napi::Value Add(const Napi::CallbackInfo& info) {
  List& list = **static_cast<Shared*>(info.Data());
  Bytes bytes = ArrayBufferBytes(info[0], "buffer");
  list.buffers.push_back(bytes);
  list.references.push_back(Napi::Persistent(info[0].As<Napi::ArrayBuffer>()));
  return Napi::Number::New(info.Env(), static_cast<double>(list.buffers.size() - 1));
}

Napi::Value CreateCopyList(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  size_t capacity = Integer(info[0], "capacity", 1, kMaxEntries);
  Shared list = std::make_shared<List>();
  list->entries = std::make_unique<Entry[]>(capacity);
  list->capacity = capacity;
  // Each of the three that scripts get holds the list, whichever is collected last.
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
  Napi::ArrayBuffer entries =
      Napi::ArrayBuffer::New(env, list->entries.get(), capacity * sizeof(Entry), drop, holder());

  Napi::Object result = Napi::Object::New(env);
  result.Set("entries", Napi::Uint32Array::New(env, capacity * sizeof(Entry) / 4, entries, 0));
  result.Set("run", Napi::Function(env, run));
  result.Set("add", add);
  return result;
}

}  // namespace

void InitCopy(Napi::Env env, Napi::Object exports) { Export<CreateCopyList>(env, exports, "createCopyList"); }
