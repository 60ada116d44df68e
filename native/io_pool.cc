// The IoPool class: io_threads.h's threads for JavaScript, which writes requests as numbers into one buffer and reads
// completions from another.
//
// `submit` is a plain Node-API function: it is called for each batch of a disk's commands.
#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "addon.h"
#include "arguments.h"
#include "error.h"
#include "io_threads.h"

namespace {

constexpr uint32_t kMaxRequests = 4096;
constexpr unsigned kMaxThreads = 64;
constexpr uint32_t kMaxWords = 1 << 20;

// As index.ts describes them.
struct Head {
  uint32_t number, operation, fd, position_low, position_high, pieces;
};
struct Piece {
  uint32_t buffer, offset, length;
};
struct Range {
  uint32_t mode, length_low, length_high;
};
static_assert(sizeof(Range) == sizeof(Piece));

struct Pool {
  struct Buffer {
    Bytes bytes;
    Napi::Reference<Napi::ArrayBuffer> reference;
  };

  ~Pool() { Close(); }

  // The memory of requests in flight is the caller's: when this returns, none of it is touched any more.
  void Close() {
    threads.reset();
    if (hooked) napi_remove_env_cleanup_hook(env, OnEnvironmentEnd, this);
    hooked = false;
  }

  static void OnEnvironmentEnd(void* data) {
    Pool* pool = static_cast<Pool*>(data);
    pool->hooked = false;
    pool->Close();
  }

  napi_env env;
  bool hooked = false;
  std::unique_ptr<IoThreads> threads;
  std::unique_ptr<uint32_t[]> words;
  size_t capacity;
  std::vector<Buffer> buffers;
  std::vector<uint32_t> free_buffers;
};
using Shared = std::shared_ptr<Pool>;

Pool& Of(const Napi::CallbackInfo& info) { return **static_cast<Shared*>(info.Data()); }

// Takes the request that begins at `words`. Returns how many words it is, 0 when it is invalid.
size_t Take(Pool& pool, const uint32_t* words, size_t left) {
  constexpr size_t kHead = sizeof(Head) / 4;
  constexpr size_t kPiece = sizeof(Piece) / 4;
  if (left < kHead) return 0;
  const Head& head = *reinterpret_cast<const Head*>(words);
  if (head.number >= pool.threads->most() || head.operation > IoRequest::kSetAttribute || head.fd > INT32_MAX ||
      head.position_high > INT32_MAX || head.pieces > (left - kHead) / kPiece) {
    return 0;
  }
  IoRequest& request = pool.threads->request(head.number);
  if (request.busy.load(std::memory_order_acquire)) return 0;
  request.pieces.clear();
  bool is_range = head.operation == IoRequest::kAllocate;
  if (is_range) {
    const Range& range = *reinterpret_cast<const Range*>(words + kHead);
    if (head.pieces != 1 || range.mode > INT32_MAX || range.length_high > INT32_MAX) return 0;
    request.mode = static_cast<int>(range.mode);
    request.length = off_t{range.length_high} << 32 | range.length_low;
  }
  bool is_sync = head.operation == IoRequest::kSync || head.operation == IoRequest::kSyncAll;
  if (is_sync && head.pieces != 0) return 0;
  for (uint32_t n = 0; n < head.pieces && !is_range; n++) {
    const Piece& piece = *reinterpret_cast<const Piece*>(words + kHead + n * kPiece);
    if (piece.buffer >= pool.buffers.size()) return 0;
    const Bytes& bytes = pool.buffers[piece.buffer].bytes;
    if (uint64_t{piece.offset} + piece.length > bytes.length) return 0;
    request.pieces.push_back({bytes.data + piece.offset, piece.length});
  }
  if (head.operation == IoRequest::kSetAttribute) {
    if (head.pieces != 2) return 0;
    const iovec& name = request.pieces[0];
    if (name.iov_len == 0 || static_cast<const char*>(name.iov_base)[name.iov_len - 1] != 0) return 0;
  }
  if (head.operation == IoRequest::kCopy) {
    if (head.pieces % 2 != 0) return 0;
    for (uint32_t n = 0; n < head.pieces; n += 2) {
      if (request.pieces[n].iov_len != request.pieces[n + 1].iov_len) return 0;
    }
  }
  request.operation = static_cast<IoRequest::Operation>(head.operation);
  request.fd = static_cast<int>(head.fd);
  request.position = off_t{head.position_high} << 32 | head.position_low;
  request.busy.store(true, std::memory_order_relaxed);
  pool.threads->Add(head.number);
  return kHead + head.pieces * kPiece;
}

napi_value Submit(napi_env env, napi_callback_info info) {
  napi_value argument;
  size_t argc = 1;
  void* data;
  uint32_t count;
  napi_get_cb_info(env, info, &argc, &argument, nullptr, &data);
  Pool& pool = **static_cast<Shared*>(data);
  if (argc < 1 || napi_get_value_uint32(env, argument, &count) != napi_ok || count > pool.capacity) {
    napi_throw_range_error(env, nullptr, "no such number of words");
    return nullptr;
  }
  if (pool.threads == nullptr) {
    napi_throw_error(env, nullptr, "the pool was closed");
    return nullptr;
  }
  size_t at = 0;
  while (at < count) {
    size_t taken = Take(pool, pool.words.get() + at, count - at);
    if (taken == 0) break;
    at += taken;
  }
  pool.threads->Start();
  if (at < count) napi_throw_range_error(env, nullptr, "a request is invalid");
  return nullptr;
}

Napi::Value AddWorkers(const Napi::CallbackInfo& info) {
  Pool& pool = Of(info);
  if (pool.threads == nullptr) throw Napi::Error::New(info.Env(), "the pool was closed");
  pool.threads->AddWorkers();
  return info.Env().Undefined();
}

Napi::Value Add(const Napi::CallbackInfo& info) {
  Pool& pool = Of(info);
  Bytes bytes = ArrayBufferBytes(info[0], "buffer");
  if (bytes.length > UINT32_MAX + size_t{1}) throw Napi::RangeError::New(info.Env(), "the buffer is larger than 4 GiB");
  Pool::Buffer buffer{bytes, Napi::Persistent(info[0].As<Napi::ArrayBuffer>())};
  if (pool.free_buffers.empty()) {
    pool.buffers.push_back(std::move(buffer));
    return Napi::Number::New(info.Env(), static_cast<double>(pool.buffers.size() - 1));
  }
  uint32_t number = pool.free_buffers.back();
  pool.free_buffers.pop_back();
  pool.buffers[number] = std::move(buffer);
  return Napi::Number::New(info.Env(), number);
}

Napi::Value Remove(const Napi::CallbackInfo& info) {
  Pool& pool = Of(info);
  uint32_t number = static_cast<uint32_t>(Integer(info[0], "number", 0, static_cast<double>(pool.buffers.size()) - 1));
  if (pool.buffers[number].reference.IsEmpty()) throw Napi::RangeError::New(info.Env(), "the buffer was removed");
  pool.buffers[number] = {};
  pool.free_buffers.push_back(number);
  return info.Env().Undefined();
}

Napi::Value Wait(const Napi::CallbackInfo& info) {
  Pool& pool = Of(info);
  uint32_t seen = static_cast<uint32_t>(Integer(info[0], "count", INT32_MIN, UINT32_MAX));
  if (pool.threads == nullptr) throw Napi::Error::New(info.Env(), "the pool was closed");
  pool.threads->Wait(seen);
  return info.Env().Undefined();
}

Napi::Value Close(const Napi::CallbackInfo& info) {
  Of(info).Close();
  return info.Env().Undefined();
}

void SetMethod(Napi::Object object, const char* name, Napi::Function method, Shared* holder) {
  method.AddFinalizer([](Napi::Env, Shared* one) { delete one; }, holder);
  object.Set(name, method);
}

template <Napi::Value (*method)(const Napi::CallbackInfo&)>
void SetMethod(Napi::Object object, const char* name, const Shared& pool) {
  Shared* holder = new Shared(pool);
  SetMethod(object, name, Napi::Function::New<method>(object.Env(), name, holder), holder);
}

Napi::Value CreateIoPool(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint32_t most = static_cast<uint32_t>(Integer(info[0], "requests", 1, kMaxRequests));
  if ((most & (most - 1)) != 0) throw Napi::RangeError::New(env, "requests must be a power of two");
  unsigned max_threads = static_cast<unsigned>(Integer(info[1], "threads", 1, kMaxThreads));
  size_t capacity = static_cast<size_t>(Integer(info[2], "words", 16, kMaxWords));
  int signal_fd = Check(env, fcntl(Fd(info[3], "signal"), F_DUPFD_CLOEXEC, 0), "fcntl");
  Shared pool = std::make_shared<Pool>();
  pool->env = env;
  pool->threads = std::make_unique<IoThreads>(most, max_threads, signal_fd);
  pool->words = std::make_unique<uint32_t[]>(capacity);
  pool->capacity = capacity;
  napi_add_env_cleanup_hook(env, Pool::OnEnvironmentEnd, pool.get());
  pool->hooked = true;

  // Each part that scripts get holds the pool, whichever is collected last.
  Napi::Object result = Napi::Object::New(env);
  Shared* for_submit = new Shared(pool);
  napi_value submit;
  if (napi_create_function(env, "submit", NAPI_AUTO_LENGTH, Submit, for_submit, &submit) != napi_ok) {
    delete for_submit;
    throw Napi::Error::New(env);
  }
  SetMethod(result, "submit", Napi::Function(env, submit), for_submit);
  SetMethod<Add>(result, "add", pool);
  SetMethod<Remove>(result, "remove", pool);
  SetMethod<AddWorkers>(result, "addWorkers", pool);
  SetMethod<Wait>(result, "wait", pool);
  SetMethod<Close>(result, "close", pool);

  auto drop = [](Napi::Env, void*, auto* one) { delete one; };
  Napi::ArrayBuffer words =
      Napi::ArrayBuffer::New(env, pool->words.get(), capacity * sizeof(uint32_t), drop, new Shared(pool));
  auto completions = pool->threads->completions();
  size_t completions_size = pool->threads->completions_size();
  Napi::ArrayBuffer completions_buffer = Napi::ArrayBuffer::New(env, completions.get(), completions_size, drop,
                                                                new std::shared_ptr<IoCompletions>(completions));
  result.Set("requests", Napi::Uint32Array::New(env, capacity, words, 0));
  result.Set("completions", Napi::Int32Array::New(env, completions_size / sizeof(uint32_t), completions_buffer, 0));
  return result;
}

}  // namespace

void InitIoPool(Napi::Env env, Napi::Object exports) { Export<CreateIoPool>(env, exports, "createIoPool"); }
