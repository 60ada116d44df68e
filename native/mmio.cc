// Loads and stores of exactly one width, for device registers: JavaScript's own may be split, merged or left out.
// Little-endian processors only, as PCI is.
#include <bit>

#include "addon.h"
#include "arguments.h"

static_assert(std::endian::native == std::endian::little);

namespace {

template <typename Word>
volatile Word* Register(const Napi::CallbackInfo& info) {
  Bytes bytes = ArrayBufferBytes(info[0], "buffer");
  double last = static_cast<double>(bytes.length) - sizeof(Word);
  uint8_t* place = bytes.data + Integer(info[1], "offset", 0, last);
  if (reinterpret_cast<uintptr_t>(place) % sizeof(Word) != 0) {
    throw Napi::RangeError::New(info.Env(), "offset is not aligned to the access");
  }
  return reinterpret_cast<volatile Word*>(place);
}

template <typename Word>
Napi::Value Load(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), *Register<Word>(info));
}

template <typename Word>
Napi::Value Store(const Napi::CallbackInfo& info) {
  volatile Word* place = Register<Word>(info);
  *place = static_cast<Word>(Integer(info[2], "value", 0, static_cast<Word>(-1)));
  return info.Env().Undefined();
}

Napi::Value AddressOf(const Napi::CallbackInfo& info) {
  Bytes bytes = ArrayBufferBytes(info[0], "buffer");
  return Napi::Number::New(info.Env(), static_cast<double>(reinterpret_cast<uintptr_t>(bytes.data)));
}

}  // namespace

void InitMmio(Napi::Env env, Napi::Object exports) {
  Export<Load<uint8_t>>(env, exports, "load8");
  Export<Load<uint16_t>>(env, exports, "load16");
  Export<Load<uint32_t>>(env, exports, "load32");
  Export<Store<uint8_t>>(env, exports, "store8");
  Export<Store<uint16_t>>(env, exports, "store16");
  Export<Store<uint32_t>>(env, exports, "store32");
  Export<AddressOf>(env, exports, "addressOf");
}
