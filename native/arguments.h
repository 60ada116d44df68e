// Checked arguments. A wrong type is a TypeError, a number out of range a RangeError; nothing is converted silently.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>

constexpr double kMaxSafeInteger = 9007199254740991.0;

// An integer in [least, most].
inline int64_t Integer(Napi::Value value, const char* name, double least = 0, double most = kMaxSafeInteger) {
  double number;
  if (napi_get_value_double(value.Env(), value, &number) != napi_ok) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a number");
  }
  // The comparison is false for NaN, so the conversion below is always defined.
  if (!(number >= least && number <= most) || number != static_cast<double>(static_cast<int64_t>(number))) {
    throw Napi::RangeError::New(value.Env(), std::string(name) + " is out of range");
  }
  return static_cast<int64_t>(number);
}

// A file descriptor. A negative one is left to the kernel, which says EBADF.
inline int Fd(Napi::Value value, const char* name = "fd") {
  return static_cast<int>(Integer(value, name, INT32_MIN, INT32_MAX));
}

// The elements of a typed array, of which there are to be at least `least`.
template <typename Element>
struct Elements {
  Element* data;
  size_t length;
};

template <typename Element, napi_typedarray_type kType>
Elements<Element> TypedArray(Napi::Value value, const char* name, const char* kind, size_t least = 0) {
  napi_typedarray_type type;
  size_t length;
  void* data;
  if (napi_get_typedarray_info(value.Env(), value, &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != kType) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be " + kind);
  }
  if (length < least) throw Napi::RangeError::New(value.Env(), std::string(name) + " is too short");
  return {static_cast<Element*>(data), length};
}

inline Elements<int32_t> Int32Array(Napi::Value value, const char* name, size_t least = 0) {
  return TypedArray<int32_t, napi_int32_array>(value, name, "an Int32Array", least);
}

using Bytes = Elements<uint8_t>;

// The bytes of a Uint8Array (a Buffer is one).
inline Bytes ByteArray(Napi::Value value, const char* name) {
  return TypedArray<uint8_t, napi_uint8_array>(value, name, "a Uint8Array");
}

// Keeps a value as long as `owner`, an object of JavaScript's. Unlike a Persistent this keeps nothing alive that refers
// to the owner itself.
inline void Keep(Napi::Value owner, const char* name, Napi::Value value) { owner.As<Napi::Object>().Set(name, value); }

inline Bytes ArrayBufferBytes(Napi::Value value, const char* name) {
  void* data;
  size_t length;
  if (napi_get_arraybuffer_info(value.Env(), value, &data, &length) != napi_ok) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be an ArrayBuffer");
  }
  return {static_cast<uint8_t*>(data), length};
}

// bytes[offset, offset + length), which must hold at least one byte: zero bytes from a socket mean the end of the
// stream.
inline Bytes Slice(Napi::Value bytes, Napi::Value offset, Napi::Value length) {
  Bytes all = ByteArray(bytes, "bytes");
  size_t start = Integer(offset, "offset", 0, static_cast<double>(all.length));
  size_t count = Integer(length, "length", 1, static_cast<double>(all.length - start));
  return {all.data + start, count};
}

// The same as a pointer, of an array that is kept alive by `kept`, unless that is null.
template <typename Word>
Word* TypedWords(Napi::Value value, napi_typedarray_type wanted, const char* name, size_t least,
                 Napi::ObjectReference* kept) {
  Napi::Env env = value.Env();
  napi_typedarray_type type;
  size_t length;
  void* data;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok || type != wanted) {
    throw Napi::TypeError::New(env, std::string(name) + " is another kind of array");
  }
  if (length < least) throw Napi::RangeError::New(env, std::string(name) + " is too short");
  if (kept != nullptr) *kept = Napi::Persistent(value.As<Napi::Object>());
  return static_cast<Word*>(data);
}

inline std::string Text(Napi::Value value, const char* name) {
  if (!value.IsString()) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a string");
  std::string text = value.As<Napi::String>().Utf8Value();
  if (text.find('\0') != std::string::npos) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must not contain a zero byte");
  }
  return text;
}
