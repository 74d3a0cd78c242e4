-- Hands cdata to a thread of C, which writes to it all the time (`scribble` of host.c), while the heap around it becomes
-- sparse, is idle and is moved about. No write may be lost. Says at last whether pages came to share memory.
--
--   scribble.lua THREAD RUN RUNS

local _, run, runs = ...
local ffi = require("ffi")
local kept = package.loaded.kept or { words = {}, others = {} }
package.loaded.kept = kept
local function word(cdata) return ffi.cast("uint64_t *", cdata) end

if run == 0 then
  ffi.cdef([[ void scribble(uint64_t *); uint64_t scribbled(void); ]])
  local sizes, all = { 1, 2, 3, 6, 13, 30 }, {}
  -- Their headers are not where their blocks begin.
  local aligned = {
    ffi.typeof("struct { uint64_t w[2]; } __attribute__((aligned(16)))"),
    ffi.typeof("struct { uint64_t w[8]; } __attribute__((aligned(64)))"),
  }
  local function new(n)
    local kind = aligned[math.floor(n / 2) % 4 + 1]
    return kind and kind() or ffi.new("uint64_t[?]", sizes[n % #sizes + 1])
  end
  for i = 1, 120000 do
    if i % 3 == 0 then all[i] = new(i / 3)
    elseif i % 3 == 1 then all[i] = { i, tostring(i) }
    else all[i] = ("string %d "):format(i):rep(i % 12) end
  end
  for i = 1, 119998, 150 do
    kept.others[i], kept.others[i + 1] = all[i], all[i + 1]
    kept.words[#kept.words + 1] = all[i + 2]
    ffi.C.scribble(word(all[i + 2]))
  end
  all = nil
  collectgarbage()
  collectgarbage()
end

-- A little of everything, as a service that is nearly idle.
local litter = {}
for i = 1, 3000 do litter[i] = { i, "litter " .. i, ffi.new("uint64_t[2]") } end

for i, it in pairs(kept.others) do
  local text = i % 3 == 1 and it[2] or it
  assert(text == (i % 3 == 1 and tostring(i) or ("string %d "):format(i):rep(i % 12)), "what was kept has changed")
end
if run + 1 < tonumber(runs) then return "on" end

local last = ffi.C.scribbled()
for i, cdata in ipairs(kept.words) do
  assert(word(cdata)[0] == last, "a write of C was lost: word " .. i)
end
assert(last > 100, "nothing was written")
local maps = io.open("/proc/self/maps"):read("*a")
return maps:find("memfd:ebbtide lua", 1, true) and "meshed" or "not meshed"
