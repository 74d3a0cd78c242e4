-- A heap that is sparse and at rest, so that its pages come to share memory; then writes on all sides: by Lua, by the
-- collector, by a child and its parent at once. What each wrote only each may see. Says at last in how many runs pages
-- shared memory when it began.
--
--   sparse.lua THREAD RUN RUNS

local _, run, runs = ...
local ffi = require("ffi")
local kept = package.loaded.kept or { tables = {}, strings = {}, closures = {}, generation = 0, meshed = 0 }
package.loaded.kept = kept

local count = 2000

local function build()
  ffi.cdef([[ int fork(void); int waitpid(int, int *, int); void _exit(int); ]])
  local all = {}
  for i = 1, count * 60 do
    local n = i
    all[i] = {
      t = { id = i, list = { i, 0 } },
      s = ("string %d "):format(i):rep(i % 10),
      f = function(x) n = x or n return n end,
    }
  end
  for i = 1, count do
    local it = all[i * 60]
    kept.tables[i], kept.strings[i], kept.closures[i] = it.t, it.s, it.f
  end
  all = nil
  collectgarbage()
  collectgarbage()
end

local function change(generation)
  for i = 1, count do
    kept.tables[i].list[2] = generation + i
    kept.closures[i](generation * i)
  end
  kept.generation = generation
end

local function check()
  local generation = kept.generation
  for i = 1, count do
    local t = kept.tables[i]
    assert(t.id == i * 60 and t.list[1] == i * 60, "a table changed")
    assert(t.list[2] == generation + i and kept.closures[i]() == generation * i, "a write was lost, or is another's")
    assert(kept.strings[i] == ("string %d "):format(i * 60):rep(i * 60 % 10), "a string changed")
  end
end

-- A child that writes, collects and checks, while its parent does the same.
local function fork(generation)
  local child = ffi.C.fork()
  assert(child >= 0, "no child")
  local ok, why = pcall(function()
    check()
    change(child == 0 and generation + 100 or generation)
    collectgarbage()
    check()
  end)
  if child == 0 then
    if not ok then io.stderr:write(why, "\n") end
    ffi.C._exit(ok and 0 or 1)
  end
  local status = ffi.new("int[1]")
  assert(ffi.C.waitpid(child, status, 0) == child and status[0] == 0, "the child found something else")
  assert(ok, why)
end

if run == 0 then
  build()
  change(0)
end
local maps = io.open("/proc/self/maps"):read("*a")
local meshed = maps:find("memfd:ebbtide lua", 1, true)
if meshed then kept.meshed = kept.meshed + 1 end
check()
-- At rest until pages share memory, or for eight runs; then each run writes, in another way.
kept.writes = kept.writes or (meshed or run >= 8) and run
if kept.writes then
  local way = (run - kept.writes) % 3
  if way == 0 then fork(run) elseif way == 1 then change(run) else collectgarbage() end
end
check()
return run + 1 < tonumber(runs) and "on" or kept.meshed .. " meshed"
