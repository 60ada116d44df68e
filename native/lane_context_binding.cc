// LaneContext for JavaScript. What changes something that lanes use holds all of them meanwhile.
#include <fcntl.h>
#include <unistd.h>

#include <memory>

#include "error.h"
#include "lane_binding.h"

namespace {

class ContextObject : public Napi::ObjectWrap<ContextObject> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "LaneContext",
                       {
                           InstanceMethod<&ContextObject::Map>("map"),
                           InstanceMethod<&ContextObject::Unmap>("unmap"),
                           InstanceMethod<&ContextObject::UnmapAll>("unmapAll"),
                           InstanceMethod<&ContextObject::Permit>("permit"),
                           InstanceMethod<&ContextObject::StartLog>("startLog"),
                           InstanceMethod<&ContextObject::StopLog>("stopLog"),
                           InstanceMethod<&ContextObject::TakeLog>("takeLog"),
                           InstanceMethod<&ContextObject::SetEventfd>("setEventfd"),
                           InstanceMethod<&ContextObject::SetRegister>("setRegister"),
                           InstanceMethod<&ContextObject::ClearVector>("clearVector"),
                           InstanceMethod<&ContextObject::AddMemoryDisk>("addMemoryDisk"),
                           InstanceMethod<&ContextObject::AddFileDisk>("addFileDisk"),
                           InstanceMethod<&ContextObject::RemoveDisk>("removeDisk"),
                           InstanceMethod<&ContextObject::SetDisk>("setDisk"),
                           InstanceMethod<&ContextObject::EnterDisk>("enterDisk"),
                           InstanceMethod<&ContextObject::LeaveDisk>("leaveDisk"),
                       });
  }

  explicit ContextObject(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<ContextObject>(info),
        context(std::make_shared<LaneContext>(Integer(info[0], "vectors", 0, 4096))) {
    napi_type_tag_object(info.Env(), info.This(), &kLaneContextTag);
  }

  std::shared_ptr<LaneContext> context;

 private:
  Napi::Value Map(const Napi::CallbackInfo& info) {
    Bytes bytes = ArrayBufferBytes(info[2], "buffer");
    size_t offset = Integer(info[3], "offset", 0, static_cast<double>(bytes.length));
    uint64_t size = Integer(info[1], "size", 1, static_cast<double>(bytes.length - offset));
    LaneMemory::Map map{LaneAddress(info[0], "address"), size, bytes.data + offset, info[4].ToBoolean(),
                        info[5].ToBoolean()};
    LaneContext::Hold hold(*context);
    return Napi::Boolean::New(info.Env(), context->memory.Add(map));
  }

  Napi::Value Unmap(const Napi::CallbackInfo& info) {
    uint64_t address = LaneAddress(info[0], "address");
    uint64_t size = Integer(info[1], "size");
    LaneContext::Hold hold(*context);
    context->memory.Remove(address, size);
    return info.Env().Undefined();
  }

  Napi::Value UnmapAll(const Napi::CallbackInfo& info) {
    LaneContext::Hold hold(*context);
    context->memory.Clear();
    return info.Env().Undefined();
  }

  Napi::Value Permit(const Napi::CallbackInfo& info) {
    LaneContext::Hold hold(*context);
    context->memory.Permit(info[0].ToBoolean());
    return info.Env().Undefined();
  }

  Napi::Value StartLog(const Napi::CallbackInfo& info) {
    uint32_t page_shift = static_cast<uint32_t>(Integer(info[0], "pageShift", 12, 30));
    LaneContext::Hold hold(*context);
    context->memory.StartLog(page_shift);
    return info.Env().Undefined();
  }

  Napi::Value StopLog(const Napi::CallbackInfo& info) {
    LaneContext::Hold hold(*context);
    context->memory.StopLog();
    return info.Env().Undefined();
  }

  Napi::Value TakeLog(const Napi::CallbackInfo& info) {
    std::vector<std::pair<uint64_t, uint64_t>> runs;
    {
      LaneContext::Hold hold(*context);
      if (!context->memory.TakeLog(&runs)) return info.Env().Undefined();
    }
    Napi::Float64Array result = Napi::Float64Array::New(info.Env(), runs.size() * 2);
    for (size_t n = 0; n < runs.size(); n++) {
      result[n * 2] = static_cast<double>(static_cast<int64_t>(runs[n].first));
      result[n * 2 + 1] = static_cast<double>(runs[n].second);
    }
    return result;
  }

  LaneVector& Vector(const Napi::CallbackInfo& info) {
    return context->vectors[Integer(info[0], "vector", 0, static_cast<double>(context->vectors.size()) - 1)];
  }

  void Put(LaneVector& vector, const LaneVector& other) {
    int old = vector.fd;
    {
      LaneContext::Hold hold(*context);
      vector = other;
    }
    if (old >= 0) close(old);
  }

  // The fd is duplicated: it may be closed before this hears of it.
  Napi::Value SetEventfd(const Napi::CallbackInfo& info) {
    LaneVector& vector = Vector(info);
    int fd = Check(info.Env(), fcntl(Fd(info[1]), F_DUPFD_CLOEXEC, 0), "fcntl");
    Put(vector, {LaneVector::kEventfd, fd, nullptr, 0});
    return info.Env().Undefined();
  }

  Napi::Value SetRegister(const Napi::CallbackInfo& info) {
    LaneVector& vector = Vector(info);
    Bytes bytes = ArrayBufferBytes(info[1], "buffer");
    size_t offset = Integer(info[2], "offset", 0, static_cast<double>(bytes.length) - 2);
    if (offset % 2 != 0) throw Napi::RangeError::New(info.Env(), "offset must be even");
    uint16_t value = static_cast<uint16_t>(Integer(info[3], "value", 0, UINT16_MAX));
    Put(vector, {LaneVector::kRegister, -1, reinterpret_cast<volatile uint16_t*>(bytes.data + offset), value});
    return info.Env().Undefined();
  }

  Napi::Value ClearVector(const Napi::CallbackInfo& info) {
    Put(Vector(info), {});
    return info.Env().Undefined();
  }

  Napi::Value Put(const Napi::CallbackInfo& info, std::unique_ptr<LaneDisk> disk) {
    size_t number = Integer(info[0], "number", 0, 1024);
    bool is_there = disk != nullptr;
    LaneContext::Hold hold(*context);
    if (context->disks.size() <= number) context->disks.resize(number + 1);
    context->disks[number] = std::move(disk);
    return Napi::Boolean::New(info.Env(), is_there);
  }

  Napi::Value AddMemoryDisk(const Napi::CallbackInfo& info) {
    return Put(info, LaneDisk::Memory(Fd(info[1]), Integer(info[2], "size", 1)));
  }

  Napi::Value AddFileDisk(const Napi::CallbackInfo& info) {
    int read_flags = static_cast<int>(Integer(info[2], "readFlags", -1, INT32_MAX));
    int write_flags = static_cast<int>(Integer(info[3], "writeFlags", -1, INT32_MAX));
    return Put(info, LaneDisk::File(Fd(info[1]), read_flags, write_flags, info[4].ToBoolean()));
  }

  Napi::Value RemoveDisk(const Napi::CallbackInfo& info) { return Put(info, nullptr); }

  LaneDisk& Disk(const Napi::CallbackInfo& info) {
    size_t number = Integer(info[0], "number", 0, static_cast<double>(context->disks.size()) - 1);
    if (context->disks[number] == nullptr) throw Napi::RangeError::New(info.Env(), "there is no such disk");
    return *context->disks[number];
  }

  Napi::Value SetDisk(const Napi::CallbackInfo& info) {
    LaneDisk& disk = Disk(info);
    uint32_t shift = static_cast<uint32_t>(Integer(info[1], "blockShift", 9, 16));
    uint64_t count = Integer(info[2], "blockCount");
    LaneContext::Hold hold(*context);
    disk.block_shift = shift;
    disk.block_count = count;
    disk.is_open = info[3].ToBoolean();
    disk.is_writable = info[4].ToBoolean();
    disk.may_cache = info[5].ToBoolean();
    return info.Env().Undefined();
  }

  Napi::Value EnterDisk(const Napi::CallbackInfo& info) {
    LaneDisk& disk = Disk(info);
    uint64_t start = Integer(info[1], "start");
    uint64_t end = Integer(info[2], "end");
    LaneContext::Hold hold(*context);
    return Napi::Number::New(info.Env(), disk.Enter(start, end, info[3].ToBoolean()));
  }

  Napi::Value LeaveDisk(const Napi::CallbackInfo& info) {
    LaneDisk& disk = Disk(info);
    uint32_t number = LaneNumber(info[1], "transfer");
    LaneContext::Hold hold(*context);
    disk.Leave(number);
    return info.Env().Undefined();
  }
};

}  // namespace

std::shared_ptr<LaneContext> LaneContextOf(Napi::Value value) {
  return LaneUnwrap<ContextObject>(value, kLaneContextTag, "context").context;
}

Napi::Function DefineLaneContext(Napi::Env env) { return ContextObject::Define(env); }
