-- What the requests of `cargo xtask bench lua returns` do: bursts of many small objects of one kind, of which every
-- 400th is kept, and light requests. None calls the collector but the one that is asked to.

local M = {}
local ffi = require("ffi")
local kept = {}

ffi.cdef([[ typedef struct { double at[4]; int32_t id; } shapes_small; ]])

local function keep(all, n)
  for i = 400, n, 400 do kept[#kept + 1] = all[i] end
end

local shapes = {}

function shapes.tables()
  local all = {}
  for i = 1, 400000 do all[i] = { id = i, name = "name " .. i, tags = { "a", "b", i } } end
  keep(all, 400000)
end

-- 20 to 340 bytes; the number makes each one a string of its own.
function shapes.strings()
  local all, words = {}, ("lorem ipsum dolor sit amet "):rep(12)
  local base = #kept * 400
  for i = 1, 400000 do all[i] = base + i .. words:sub(1, 15 + i % 320) end
  keep(all, 400000)
end

function shapes.closures()
  local all = {}
  for i = 1, 400000 do
    local count, log = i, {}
    all[i] = function(x) count = count + x log[1] = x return count end
    if i % 10 == 0 then
      all[i] = coroutine.wrap(function() while true do count = count + coroutine.yield(count) end end)
      all[i]()
    end
  end
  keep(all, 400000)
end

-- Arrays and hashes that grow by doubling to some 100 KiB; between them what is kept.
function shapes.large()
  local all = {}
  for i = 1, 1200 do
    local list, map = {}, {}
    for k = 1, 6000 do list[k] = k end
    for k = 1, 900 do map["key" .. k] = { i } end
    all[i] = { list = list, map = map }
    if i % 10 == 0 then kept[#kept + 1] = { i, map.key1 } end
    if i > 300 then all[i - 300] = nil end
  end
end

function shapes.cdata()
  local all = {}
  for i = 1, 400000 do
    all[i] = i % 4 == 0 and ffi.new("uint8_t[?]", 16 + i % 500) or ffi.new("shapes_small", { id = i })
  end
  keep(all, 400000)
end

-- Values go to the shared dictionary and come back as new strings. Its memory is of one size and shared.
function shapes.shdict()
  local dict, all = ngx.shared.bench, {}
  for i = 1, 400000 do
    local key = "key" .. i % 5000
    if i % 8 == 0 then dict:set(key, ("value %d "):format(i):rep(1 + i % 20)) end
    all[i] = (dict:get(key) or "") .. i
  end
  keep(all, 400000)
end

function M.burst(shape)
  assert(shapes[shape], "no such shape")()
  return #kept
end

-- A small request of a real service: some tables and strings, all garbage at once.
function M.light()
  local rows = {}
  for i = 1, 20 do rows[i] = { id = i, text = ("row %d of %s"):format(i, ngx.var.uri) } end
  local out = {}
  for i, row in ipairs(rows) do out[i] = row.id .. "=" .. row.text end
  return table.concat(out, "\n")
end

function M.collect()
  collectgarbage()
  return "collected"
end

-- KiB that the collector knows of.
function M.count()
  return collectgarbage("count")
end

return M
