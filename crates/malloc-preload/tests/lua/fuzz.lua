-- Random operations on a pool of Lua values. Returns a checksum of everything that a program can observe, which the
-- same seed must give again under any allocator: no addresses, no sizes of the heap, no order of pairs(), no moment at
-- which the collector finds something. What a value must hold is kept beside it, or can be reckoned from it.
--
--   fuzz.lua THREAD RUN SEED OPERATIONS

local thread, run, seed, operations = ...
local here = debug.getinfo(1, "S").source:match("^@(.*)[^/]*%.lua$"):gsub("[^/]*$", "")
local bit = require("bit")
local bxor, lshift, rshift, rol, tobit = bit.bxor, bit.lshift, bit.rshift, bit.rol, bit.tobit

-- Xorshift, 32 bits.
local state = tobit(tonumber(seed) * 2654435761 % 2 ^ 32 + thread * 40503 + run * 977 + 1)
local function random(n)
  state = bxor(state, lshift(state, 13))
  state = bxor(state, rshift(state, 17))
  state = bxor(state, lshift(state, 5))
  return state % n + 1
end

-- Mostly small, sometimes large, now and then huge.
local function size()
  local n = random(1000)
  if n <= 800 then return random(16) - 1 end
  if n <= 970 then return random(300) end
  if n <= 998 then return random(6000) end
  return random(100000)
end

local sum = 0
local function mix(x)
  if type(x) == "string" then
    mix(#x)
    for i = 1, #x, math.max(1, math.floor(#x / 64)) do mix(x:byte(i)) end
  elseif type(x) == "boolean" then
    mix(x and 1 or 2)
  elseif x == nil then
    mix(3)
  else
    sum = tobit(bxor(rol(sum, 5), tobit(x % 4294967296)) + 0x9e3779b9)
  end
end

-- Ended by their finaliser, and made: must be equal at the end, and no finaliser may run twice.
local made, ended = 0, 0
local shared = {
  random = random,
  size = size,
  mix = mix,
  born = function() made = made + 1 return made end,
  died = function() ended = ended + 1 note(1) end,
}

local kinds = {}
for _, name in ipairs({ "tables", "strings", "code", "native" }) do
  for _, kind in ipairs(assert(loadfile(here .. name .. ".lua"))(shared)) do kinds[#kinds + 1] = kind end
end

local pool = {}
shared.any = function()
  local it = pool[random(#pool)]
  return it and it.value
end

-- What a program says to its collector. Its answers depend on the heap's size, so they are not looked at.
local function collect()
  local n = random(60)
  if n <= 30 then collectgarbage("step", random(200))
  elseif n == 31 then collectgarbage()
  elseif n <= 35 then collectgarbage("stop")
  elseif n <= 50 then collectgarbage("restart")
  elseif n <= 55 then collectgarbage("setpause", 100 + random(200))
  else collectgarbage("setstepmul", 100 + random(400)) end
end

local function compiler()
  local n = random(6)
  if n == 1 then jit.off()
  elseif n == 2 then jit.flush()
  elseif n == 3 then jit.opt.start("hotloop=" .. random(60), "hotexit=" .. random(10))
  else jit.on() end
end

local function step(width)
  local i = random(width)
  local it = pool[i]
  local n = random(100)
  if not it or n <= 15 then
    local kind = kinds[random(#kinds)]
    it = { kind = kind, value = kind.make() }
    pool[i] = it
  elseif n <= 60 then
    it.value = it.kind.change(it.value) or it.value
  elseif n <= 90 then
    mix(it.kind.read(it.value))
  elseif n <= 94 then
    pool[i] = false
  elseif n <= 98 then
    collect()
  else
    compiler()
  end
end

-- The pool breathes: wide, then narrow, so that most of it becomes garbage again and again.
local function play()
  local width = 200
  for i = 1, width do pool[i] = false end
  for i = 1, tonumber(operations) do
    step(width)
    if i % 2500 == 0 then
      width = width == 200 and 20 or 200
      for k = width + 1, 200 do pool[k] = false end
    end
  end
  for i = 1, width do
    local it = pool[i]
    if it then mix(it.kind.read(it.value)) end
  end
end

play()
pool, kinds, shared.any = {}, nil, nil
jit.flush()
collectgarbage("restart")
-- What a finaliser resurrects, and what hangs on that, takes a cycle each.
for _ = 1, 6 do collectgarbage() end
jit.on()
collectgarbage("setpause", 200)
collectgarbage("setstepmul", 200)
return ("%08x of %d values with finalisers all but %d ended"):format(sum % 2 ^ 32, made, made - ended)
