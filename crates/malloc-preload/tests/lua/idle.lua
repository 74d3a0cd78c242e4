-- Shows when the collector runs and on whose stack, for the test of collection while nginx waits. A finaliser tells
-- the test through a FIFO: "." each thousandth, "!" if Lua code was running that had no part in it.
--
-- No allocation makes the collector run here: after a full cycle with this pause the next begins only when a thousand
-- times as much is allocated. So whatever is found was looked for by somebody else.

local M = {}
local ffi = require("ffi")

ffi.cdef([[
  typedef struct { uint32_t events; uint64_t data; } __attribute__((packed)) idle_event;
  int epoll_create1(int); int epoll_wait(int, idle_event *, int, int); int close(int);
]])

local fifo
-- A handler is running, and is inside a C function that waits.
local running, waiting = false, false
local made, ended, raised = 0, 0, 0
local phases = {}

function M.begin(path)
  fifo = assert(io.open(path, "w"))
  fifo:setvbuf("no")
end

-- Whether Lua functions are below the finaliser that called this.
local function others_below()
  for level = 3, 20 do
    local info = debug.getinfo(level, "S")
    if not info then return false end
    if info.what ~= "C" then return true end
  end
end

local function finaliser()
  ended = ended + 1
  if waiting or (not running and others_below()) then fifo:write("!") end
  if ended % 1000 == 0 then fifo:write(".") end
  -- There may be no request: an error or an answer, but no crash.
  local _, phase = pcall(ngx.get_phase)
  phases[tostring(phase):match("[%w_ ]+")] = true
  pcall(function() return ngx.ctx, ngx.var.uri, ngx.now() end)
  return { ended }
end

local function litter(n, finalise)
  collectgarbage("setpause", 100000)
  collectgarbage()
  collectgarbage()
  for i = 1, n do
    local u = newproxy(true)
    getmetatable(u).__gc = finalise
    getmetatable(u).garbage = { i, "garbage " .. i }
  end
  made = made + n
end

local function handler(f)
  return function()
    running = true
    local said = f()
    running = false
    ngx.say(said)
  end
end

M.litter = handler(function()
  litter(20000, finaliser)
  return made .. " made, " .. ended .. " ended"
end)

M.report = handler(function()
  local seen = {}
  for phase in pairs(phases) do seen[#seen + 1] = phase end
  return ended .. " ended, " .. raised .. " raised, phases: " .. table.concat(seen, ", ")
end)

-- Lua on the stack while an event loop waits: it calls epoll_wait itself, first once for long, then in a compiled loop.
M.inside = handler(function()
  local wait, events = ffi.C.epoll_wait, ffi.new("idle_event[1]")
  local epoll = ffi.C.epoll_create1(0)
  litter(20000, finaliser)
  local before = ended
  waiting = true
  local said = wait(epoll, events, 1, 700)
  for _ = 1, ngx.var.args == "once" and 0 or 300 do said = said + wait(epoll, events, 1, 2) end
  waiting = false
  ffi.C.close(epoll)
  assert(said == 0)
  return ended - before .. " ended"
end)

-- A request that waits as nginx means it: none of its code is running, and its locals are to stay.
M.suspended = handler(function()
  local held = {}
  for i = 1, 1000 do held[i] = { i, "held " .. i, function() return held[i][1] end } end
  litter(20000, finaliser)
  local before = ended
  for _ = 1, 400 do
    running = false
    ngx.sleep(0.05)
    running = true
    if ended - before > 15000 then break end
  end
  for i = 1, 1000 do assert(held[i][3]() == i and held[i][2] == "held " .. i, "a local was collected") end
  return ended - before > 15000 and "most ended" or ended - before .. " ended"
end)

M.raise = handler(function()
  litter(3000, function()
    raised = raised + 1
    if raised % 1000 == 0 then fifo:write(".") end
    error("out of a finaliser")
  end)
  return "made"
end)

M.stop = handler(function()
  litter(20000, finaliser)
  collectgarbage("stop")
  return "stopped"
end)

return M
