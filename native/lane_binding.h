// What the files that offer lanes to JavaScript have in common: objects that find each other's insides by their tags.
#pragma once

#include <napi.h>

#include <memory>

#include "arguments.h"
#include "lane.h"

constexpr napi_type_tag kLaneContextTag = {0x6c616e65636f6e74, 0x8f0d3c52b1e94a61};
constexpr napi_type_tag kLaneTag = {0x6c616e652d2d2d2d, 0x2b7f5e0c94d34f18};

// As shared/address.ts has them: those of 2^63 or more are negative.
inline uint64_t LaneAddress(Napi::Value value, const char* name) {
  return static_cast<uint64_t>(Integer(value, name, -kMaxSafeInteger, kMaxSafeInteger));
}

inline uint32_t LaneNumber(Napi::Value value, const char* name, double most = UINT32_MAX) {
  return static_cast<uint32_t>(Integer(value, name, 0, most));
}

// The object behind one of JavaScript's. Throws a TypeError for one of another kind.
template <typename Object>
Object& LaneUnwrap(Napi::Value value, const napi_type_tag& tag, const char* name) {
  bool is_tagged = false;
  if (!value.IsObject() || napi_check_object_type_tag(value.Env(), value, &tag, &is_tagged) != napi_ok || !is_tagged) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " is of another kind");
  }
  return *Object::Unwrap(value.As<Napi::Object>());
}

// Of a LaneContext.
std::shared_ptr<LaneContext> LaneContextOf(Napi::Value value);
// Of a Lane that is not closed, with its context.
struct LaneAndContext {
  std::shared_ptr<Lane> lane;
  std::shared_ptr<LaneContext> context;
};
LaneAndContext LaneOf(Napi::Value value);

Napi::Function DefineLaneContext(Napi::Env env);
Napi::Function DefineNvmeLane(Napi::Env env);
