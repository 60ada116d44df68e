// Errors as JavaScript sees them: a failed system call becomes an Error with errno (positive), code and syscall, worded
// as Node words its own ("ENOENT: no such file or directory, connect '/run/x'").
#pragma once

#include <napi.h>
#include <uv.h>

#include <cerrno>
#include <string>

inline Napi::Error SystemError(Napi::Env env, int error, const char* syscall, const std::string& path = {}) {
  // The _r functions: the others leak for a number that libuv does not know.
  char code[64];
  char text[128];
  uv_err_name_r(-error, code, sizeof code);
  uv_strerror_r(-error, text, sizeof text);
  std::string message = std::string(code) + ": " + text + ", " + syscall;
  if (!path.empty()) message += " '" + path + "'";
  Napi::Error result = Napi::Error::New(env, message);
  result.Set("errno", Napi::Number::New(env, error));
  result.Set("code", Napi::String::New(env, code));
  result.Set("syscall", Napi::String::New(env, syscall));
  return result;
}

// Throws when a system call returned -1; hands its result on otherwise.
template <typename Result>
inline Result Check(Napi::Env env, Result result, const char* syscall) {
  if (result == static_cast<Result>(-1)) throw SystemError(env, errno, syscall);
  return result;
}
