-- Kinds of values for fuzz.lua: FFI cdata of all shapes, with and without finalisers, and memory of C beside it.
local shared = ...
local random, size, mix = shared.random, shared.size, shared.mix
local ffi = require("ffi")

-- Threads share no state, but one state may run this file more than once.
if not package.loaded["fuzz.cdef"] then
  package.loaded["fuzz.cdef"] = true
  ffi.cdef([[
    typedef struct { int32_t id; double weight; uint8_t tag[7]; } fuzz_record;
    typedef struct { int64_t n; struct { float x, y; } at[?]; } fuzz_variable;
    void *malloc(size_t); void free(void *); int memcmp(const void *, const void *, size_t);
  ]])
end

local arrays = {}
local types = { "uint8_t[?]", "int16_t[?]", "int32_t[?]", "double[?]", "int64_t[?]" }

function arrays.make()
  local n = size() + 1
  local a = ffi.new(types[random(#types)], n)
  for i = 0, n - 1 do a[i] = i % 100 end
  return { a = a, n = n }
end

function arrays.change(v)
  if random(3) == 1 then return arrays.make() end
  local other = ffi.new(ffi.typeof(v.a), v.n)
  ffi.copy(other, v.a, ffi.sizeof(v.a))
  v.a = other
end

function arrays.read(v)
  local sum = 0
  for i = 0, v.n - 1 do
    local x = tonumber(v.a[i])
    assert(x == i % 100, "an array of C lost an element")
    sum = sum + x
  end
  return sum
end

local records = {}

function records.make()
  local list = {}
  for i = 1, size() % 2000 do list[i] = ffi.new("fuzz_record", i, i / 2, { i % 256, 2, 3 }) end
  return list
end

function records.change(list)
  if #list == 0 then return records.make() end
  local i = random(#list)
  list[i] = ffi.new("fuzz_record", i, i / 2, { i % 256, 2, 3 })
  if random(10) == 1 then
    for k = #list, math.floor(#list / 2) + 1, -1 do list[k] = nil end
  end
end

function records.read(list)
  local sum = 0
  for i, r in ipairs(list) do
    assert(r.id == i and r.weight == i / 2 and r.tag[0] == i % 256 and r.tag[6] == 0, "a record changed")
    sum = sum + r.tag[2]
  end
  return sum
end

-- Objects with a metatype, and 64-bit numbers, boxed by the thousand.
local numbers = {}
function numbers.make() return { n = 1ULL, steps = 0 } end

function numbers.change(v)
  for _ = 1, random(300) do v.n = v.n * 6364136223846793005ULL + 1442695040888963407ULL end
end

function numbers.read(v) return tostring(v.n) end

local variable = {}

function variable.make()
  local n = size() % 3000 + 1
  local v = ffi.new("fuzz_variable", n)
  v.n = n
  for i = 0, n - 1 do v.at[i].x = i v.at[i].y = -i end
  return v
end

function variable.change() return variable.make() end

function variable.read(v)
  local sum = 0
  for i = 0, tonumber(v.n) - 1 do sum = sum + v.at[i].x + v.at[i].y end
  assert(sum == 0, "a structure of variable length changed")
  return tonumber(v.n)
end

-- Finalisers of cdata, and blocks of the C library that they free.
local owned = {}

function owned.make()
  local list = {}
  for i = 1, size() % 200 + 1 do
    local n = size() + 16
    shared.born()
    local block = ffi.gc(ffi.cast("uint8_t *", ffi.C.malloc(n)), function(p)
      ffi.C.free(p)
      shared.died()
    end)
    ffi.fill(block, n, i % 256)
    list[i] = { block = block, n = n }
  end
  return list
end

function owned.change(list)
  local i = random(#list)
  if random(3) == 1 then
    -- Freed by hand: the finaliser is taken off.
    ffi.gc(list[i].block, nil)
    ffi.C.free(list[i].block)
    shared.died()
    table.remove(list, i)
    if #list == 0 then return owned.make() end
  elseif random(8) == 1 then
    return owned.make()
  end
end

function owned.read(list)
  local sum = 0
  for _, o in ipairs(list) do
    assert(o.block[0] == o.block[o.n - 1], "a block of the C library changed")
    sum = sum + o.block[0]
  end
  return sum
end

-- Strings to C and back.
local copies = {}
function copies.make() return { s = ("c%d "):format(random(1000)):rep(size()) } end
function copies.change() return copies.make() end

function copies.read(v)
  local n = #v.s
  local buffer = ffi.new("char[?]", n + 1)
  ffi.copy(buffer, v.s)
  assert(ffi.string(buffer, n) == v.s and ffi.C.memcmp(buffer, v.s, n) == 0, "a string was not copied")
  mix(n)
  return ffi.string(buffer, math.min(n, 100))
end

return { arrays, records, numbers, variable, owned, copies }
