-- A Wireshark dissector for recorded messages of vfio-user and virtio-vfio-user. Copy it into Wireshark's folder of
-- personal Lua plugins, or name it: tshark -X lua_script:vfio-user.lua -r FILE
--
-- Made by `npm run protocol` from shared/spec: not to be edited.

local protocols = {}
--@TABLES@

local HEADER_SIZE, CAPTURE_SIZE = 16, 4
local TYPE_MASK, TYPE_REPLY, NO_REPLY, ERROR = 0xf, 1, 0x10, 0x20
-- The deepest list of capabilities that is followed.
local MOST_CAPABILITIES = 64

local add_uint = { [1] = ProtoField.uint8, [2] = ProtoField.uint16, [4] = ProtoField.uint32, [8] = ProtoField.uint64 }

-- A protocol's fields by "structure.field", and its notes of what is wrong.
local function declare(definition)
  local proto = Proto(definition.id, definition.title)
  local fields, list = {}, {}
  local function add(key, field)
    fields[key] = field
    list[#list + 1] = field
  end
  for name, struct in pairs(definition.structs) do
    for _, field in ipairs(struct.fields) do
      local key = name .. "." .. field.name
      local abbreviation = definition.id .. "." .. key
      if field.bytes then
        add(key, ProtoField.bytes(abbreviation, field.name))
      else
        add(key, add_uint[field.size](abbreviation, field.name, field.values and base.DEC or base.HEX_DEC, field.values))
        for bit, mask in pairs(field.bits or {}) do
          add(key .. "." .. bit, ProtoField.bool(abbreviation .. "." .. bit, bit, 8 * field.size, nil, mask))
        end
      end
    end
  end
  add("data", ProtoField.bytes(definition.id .. ".data", "data"))
  add("text", ProtoField.string(definition.id .. ".text", "text"))
  add("word", ProtoField.uint64(definition.id .. ".word", "word", base.HEX_DEC))
  add("direction", ProtoField.uint8(definition.id .. ".direction", "direction", base.DEC,
    { [0] = "to the device", [1] = "from the device" }))
  add("fds", ProtoField.uint16(definition.id .. ".fds", "file descriptors"))
  proto.fields = list
  local malformed = ProtoExpert.new(definition.id .. ".malformed", "malformed", expert.group.MALFORMED,
    expert.severity.ERROR)
  proto.experts = { malformed }
  return proto, fields, malformed
end

-- One message's bytes from `at` to `last`. A part that does not fit ends it, by an error with a table.
local Reader = {}
Reader.__index = Reader

function Reader:need(size, what)
  if self.at + size > self.last then
    error({ why = what .. " of " .. size .. " bytes has " .. (self.last - self.at) })
  end
  local range = self.buffer(self.at, size)
  self.at = self.at + size
  return range
end

function Reader:struct(name, label, tree)
  local struct = self.definition.structs[name]
  local range = self:need(struct.size, label)
  local values, branch = {}, tree:add(self.proto, range, label)
  local at = 0
  for _, field in ipairs(struct.fields) do
    local key = name .. "." .. field.name
    local part = range(at, field.bytes or field.size)
    local item = branch:add_le(self.fields[key], part)
    if not field.bytes then values[field.name] = field.size == 8 and part:le_uint64() or part:le_uint() end
    for bit in pairs(field.bits or {}) do item:add_le(self.fields[key .. "." .. bit], part) end
    at = at + (field.bytes or field.size)
  end
  self.values[label] = values
  return values
end

local function number(value)
  return type(value) == "number" and value or value:tonumber()
end

-- How many of something of `size` bytes follow.
function Reader:count(count, size)
  local left = self.last - self.at
  if count == "rest" then
    if left % size ~= 0 then error({ why = left .. " bytes, in pieces of " .. size }) end
    return left / size
  end
  local wanted = type(count) == "table" and number(self.values[count[1]][count[2]]) or count
  if wanted * size > left then error({ why = wanted .. " times " .. size .. " bytes in " .. left }) end
  return wanted
end

function Reader:capabilities(start, at, tree)
  for _ = 1, MOST_CAPABILITIES do
    self.at = start + at
    local header = self:struct("region_cap_header", "capability", tree)
    if header.id == 1 then
      local sparse = self:struct("sparse_mmap", "sparse_mmap", tree)
      for _ = 1, sparse.areas do self:struct("sparse_mmap_area", "area", tree) end
    elseif header.id == 2 then
      self:struct("region_type", "type", tree)
    end
    if header.next == 0 then break end
    if header.next <= at then error({ why = "a capability that leads back" }) end
    at = header.next
  end
  self.at = self.last
end

local parts = {}

function parts.struct(reader, part, tree) reader:struct(part.struct, part.name, tree) end

function parts.structs(reader, part, tree)
  local size = reader.definition.structs[part.struct].size
  for _ = 1, reader:count(part.count, size) do reader:struct(part.struct, part.name, tree) end
end

function parts.words(reader, part, tree)
  for _ = 1, reader:count(part.count, part.size) do
    tree:add_le(reader.fields.word, reader:need(part.size, part.name)):prepend_text(part.name .. ": ")
  end
end

function parts.bytes(reader, part, tree)
  local size = reader:count(part.count, 1)
  if size > 0 then tree:add(reader.fields.data, reader:need(size, part.name)):prepend_text(part.name .. ": ") end
end

function parts.text(reader, part, tree)
  local range = reader:need(reader.last - reader.at, part.name)
  local text = range:stringz()
  if #text ~= range:len() - 1 then error({ why = "text that does not end with a NUL" }) end
  tree:add(reader.fields.text, range, text)
end

function parts.choice(reader, part, tree)
  local value = bit.band(number(reader.values[part.of][part.field]), part.mask)
  local body = part.bodies[value]
  if body then reader:body(body, tree) else parts.bytes(reader, { name = part.name, count = "rest" }, tree) end
end

function parts.capabilities(reader, part, tree)
  local info = reader.values[part.of]
  local start = reader.at - reader.definition.structs[part.struct].size
  if bit.band(info.flags, part.flag) ~= 0 and info.cap_offset ~= 0 then
    reader:capabilities(start, info.cap_offset, tree)
  end
  reader.at = reader.last
end

function Reader:body(body, tree)
  local is_optional = false
  for _, part in ipairs(body.parts) do
    is_optional = is_optional or part.optional
    if is_optional and self.at == self.last then return end
    parts[part.kind](self, part, tree)
  end
  if body.padded then self.at = self.last end
end

-- The first structure's fields, for the line of the list.
local function summary(reader, body)
  local first = body.parts[1]
  local values = first and reader.values[first.name]
  if not values then return "" end
  local words = {}
  for _, field in ipairs(reader.definition.structs[first.struct].fields) do
    local value = values[field.name]
    if value and field.name ~= "argsz" and not field.name:find("^reserved") then
      words[#words + 1] = field.name .. " " .. (field.values and field.values[number(value)] or
        string.format(number(value) < 1024 and "%d" or "0x%x", number(value)))
    end
  end
  return ", " .. table.concat(words, ", ")
end

local function dissector(definition)
  local proto, fields, malformed = declare(definition)

  local function message(buffer, pinfo, tree)
    local reader = setmetatable({
      buffer = buffer, at = CAPTURE_SIZE, last = buffer:len(), definition = definition, proto = proto, fields = fields,
      values = {},
    }, Reader)
    local header = reader:struct("header", "header", tree)
    local is_reply = bit.band(header.flags, TYPE_MASK) == TYPE_REPLY
    local known = definition.messages[header.command]
    local name = known and known.name or ("command " .. header.command)
    local kind = is_reply and "reply" or "request"
    pinfo.cols.info = string.format("%s %s %d", name, kind, header.id)
    if bit.band(header.flags, TYPE_MASK) > TYPE_REPLY then error({ why = "a message of an unknown type" }) end
    if header.size ~= buffer:reported_len() - CAPTURE_SIZE then
      error({ why = "a size of " .. header.size .. " in a message of " .. buffer:reported_len() - CAPTURE_SIZE })
    end
    if not known then error({ why = name .. ", which does not exist" }) end
    if bit.band(header.flags, ERROR) ~= 0 then
      pinfo.cols.info:append(", error " .. header.errno)
    else
      local body = is_reply and known.reply or known.request
      local handles = known.handles and is_reply and header.errno or 0
      if buffer:len() == buffer:reported_len() then reader.last = reader.last - 4 * handles end
      if reader.last < reader.at then error({ why = handles .. " handles" }) end
      reader:body(body, tree)
      pinfo.cols.info:append(summary(reader, body))
      if reader.at ~= reader.last then error({ why = reader.last - reader.at .. " bytes too many" }) end
      reader.last = reader.last + 4 * handles
      parts.words(reader, { name = "handle", size = 4, count = handles }, tree)
    end
    if reader.at ~= reader.last then error({ why = reader.last - reader.at .. " bytes too many" }) end
  end

  function proto.dissector(buffer, pinfo, root)
    pinfo.cols.protocol = definition.title
    local tree = root:add(proto, buffer(), definition.title)
    if buffer:len() < CAPTURE_SIZE then
      tree:add_proto_expert_info(malformed, "no capture header")
      return
    end
    tree:add(fields.direction, buffer(1, 1))
    tree:add_le(fields.fds, buffer(2, 2))
    local to_device = buffer(1, 1):uint() == 0
    pinfo.cols.src = to_device and "client" or "device"
    pinfo.cols.dst = to_device and "device" or "client"
    local is_whole, problem = pcall(message, buffer, pinfo, tree)
    if is_whole then return end
    -- What was too long to be recorded whole ends early, and that is no fault of its sender's.
    if type(problem) == "table" and buffer:len() < buffer:reported_len() then return end
    tree:add_proto_expert_info(malformed, type(problem) == "table" and problem.why or tostring(problem))
    pinfo.cols.info:append(" [malformed]")
  end

  return proto
end

local encapsulations = { wtap.USER0, wtap.USER1 }
for n, definition in ipairs(protocols) do
  DissectorTable.get("wtap_encap"):add(encapsulations[n], dissector(definition))
end
