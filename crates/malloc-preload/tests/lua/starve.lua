-- Takes memory in every shape until there is no more (`host -s`), and goes on: the error is "not enough memory", what
-- lived before lives on unharmed, and what is taken afterwards works. In every second starving run the error is left to
-- the host. A run that does not starve takes a bounded amount instead, and must not fail.
--
--   starve.lua THREAD RUN SEED

local thread, run, seed = ...
local ffi = require("ffi")
local has_buffer, buffer = pcall(require, "string.buffer")
local starving = run % 2 == 1

-- LuaJIT 2.1-20230119 dies with its own allocator, too, where the collector runs out of memory under a compiled loop (5 of
-- 60 runs; none of 60 without its compiler).
if starving then jit.off() else jit.on() end

local alive = {}
for i = 1, 5000 do alive[i] = { id = i, name = "name " .. i, tags = { "a", "b", i } } end

local function check()
  for i = 1, 5000 do
    local t = alive[i]
    assert(t.id == i and t.name == "name " .. i and t.tags[3] == i, "what lived was harmed")
  end
end

-- Each takes and holds; `i` counts. Beside it how many steps a run that does not starve makes.
local shapes = {
  { 20000, function(held, i) held[i] = { id = i, tags = { i, i + 1, i + 2 } } end },
  { 20000, function(held, i) held[i] = ("s%d"):format(i):rep(i % 500) end },
  { 20000, function(held, i) held[i] = function() return i, held end end },
  { 5000, function(held, i) held[i] = coroutine.wrap(coroutine.yield) held[i](i, held) end },
  { 5000, function(held, i) held[i] = ffi.new("double[?]", i % 700 + 1) end },
  { 100, function(held, i) held[i] = ffi.new("uint8_t[?]", i % 50 * 65536 + 1) end },
  { 500, function(held, i) held[1] = (held[1] or "") .. ("0123456789"):rep(i % 100) .. i end },
  { 20, function(held) held[1] = (held[1] or "x"):rep(2) end },
  { 500, function(held) for k = 1, 1000 do held[#held + 1] = k end end },
  { 20000, function(held, i) held["key " .. i] = i held[i + 0.5] = i end },
  {
    20000,
    function(held, i)
      held[i] = newproxy(true)
      getmetatable(held[i]).__gc = function() note(1) return i % 5000 == 0 and { i } end
    end,
  },
}

if has_buffer then
  local function feed(held, i)
    held.buffer = held.buffer or buffer.new()
    held.buffer:put(("b"):rep(1000), i)
  end
  shapes[#shapes + 1] = { 20000, feed }
end

local function take(n)
  local held = {}
  local most, shape = unpack(shapes[n])
  for i = 1, starving and math.huge or most do shape(held, i) end
end

-- To be called before anything else: the next string may be the one too many. The collector itself takes memory, for a
-- smaller table of strings and for finalisers. Where that is not to be had either, as happens with LuaJIT's own
-- allocator, the run ends here, like one that leaves the error to the host.
local function recover()
  for _ = 1, 100 do
    if pcall(collectgarbage) then return end
  end
  error("not enough memory", 0)
end

for i = 1, #shapes do
  local n = (i * 5 + tonumber(seed) + run) % #shapes + 1
  if run % 4 == 3 and i == #shapes then take(n) end
  local ok, why = pcall(take, n)
  recover()
  if starving then
    local memory = type(why) == "string" and why:find("not enough memory", 1, true)
    assert(not ok and memory, "shape " .. n .. ": " .. tostring(why))
  else
    assert(ok, why)
  end
  check()
end
return starving and "starved" or "fed"
