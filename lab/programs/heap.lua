-- Brings a Lua heap into a state, says so in one line of JSON, and goes on until its input ends. What it says are the
-- collector's own counts in bytes. Nothing it does later changes the state but what the state is about.
local state, size = arg[1], tonumber(arg[2]) * 2 ^ 20
local ffi = require("ffi")
ffi.cdef [[ int usleep(unsigned int us); ]]

local function count() return math.floor(collectgarbage("count") * 1024) end
local function ready(more)
  io.write(string.format('{"count":%d%s}\n', count(), more or ""))
  io.flush()
end
local function rest() io.read("*l"); os.exit(0, false) end

-- Tables of about 200 bytes until the collector counts so much more.
local function fill(into, bytes)
  local till, n = count() + bytes, #into
  while count() < till do
    n = n + 1
    into[n] = { id = n, name = "name " .. n, tags = { n, n + 1 } }
  end
end

local states = {}

-- All of it garbage that no cycle has found.
function states.garbage()
  collectgarbage()
  local live = count()
  collectgarbage("stop")
  fill({}, size)
  ready(string.format(',"live":%d', live))
  rest()
end

-- Collected, but one in 1000 lives.
function states.collected()
  local all, kept = {}, {}
  fill(all, size)
  for n = 1, #all, 1000 do kept[#kept + 1] = all[n] end
  all = nil
  collectgarbage()
  collectgarbage()
  ready()
  rest()
  return kept
end

-- A table without bound, beside a cache that is full by then; or a cache that fills while watched.
local function work(leaks)
  local leaked, cache, at = {}, {}, 0
  for step = 1, 2000 do
    for _ = 1, 250 do
      at = at % 40000 + 1
      cache[at] = { id = step, text = string.rep("x", 200) .. at }
      if leaks then leaked[#leaked + 1] = { id = step, text = string.rep("y", 300) .. #leaked } end
    end
    if step == (leaks and 160 or 20) then ready() end
    ffi.C.usleep(20000)
  end
  rest()
  return leaked, cache
end

function states.leak() work(true) end
function states.plateau() work(false) end

states[state]()
