-- Kinds of values for fuzz.lua: tables. A kind makes a value, changes it, and reads it into something to mix.
local shared = ...
local random, size, mix = shared.random, shared.size, shared.mix
local has_new, new = pcall(require, "table.new")
local has_clear, clear = pcall(require, "table.clear")

-- A sequence of numbers that knows its sum.
local array = {}

function array.make()
  local n = size()
  local t = has_new and random(2) == 1 and new(n, 1) or {}
  local sum = 0
  for i = 1, n do
    t[i] = i * 7 % 1001
    sum = sum + t[i]
  end
  return { items = t, sum = sum }
end

function array.change(a)
  local t, n = a.items, #a.items
  local what = random(6)
  if what == 1 and n > 0 then
    for i = n, math.floor(n / 2) + 1, -1 do
      a.sum = a.sum - t[i]
      t[i] = nil
    end
  elseif what == 2 and n < 50000 then
    for i = n + 1, n + size() do
      t[i] = random(1000)
      a.sum = a.sum + t[i]
    end
  elseif what == 3 then
    table.sort(t, function(x, y) return x > y end)
  elseif what == 4 and n > 0 then
    a.sum = a.sum - table.remove(t, random(math.min(n, 20)))
  elseif what == 5 and has_clear then
    clear(t)
    a.sum = 0
  else
    local x = random(1000)
    table.insert(t, random(math.min(n + 1, 20)), x)
    a.sum = a.sum + x
  end
end

function array.read(a)
  local sum = 0
  for i = 1, #a.items do sum = sum + a.items[i] end
  assert(sum == a.sum, "an array lost a number")
  return sum
end

-- Strings, numbers and tables as keys; the order of pairs() depends on addresses, so only sums count.
local map = {}

function map.make()
  local m = { items = {}, keys = {}, sum = 0 }
  for _ = 1, size() % 2000 do map.add(m) end
  return m
end

function map.add(m)
  local n = random(3)
  local key = n == 1 and "key " .. random(100000) or n == 2 and random(1e6) + 0.5 or { random(9) }
  if m.items[key] == nil then
    m.keys[#m.keys + 1] = key
    m.items[key] = #m.keys
    m.sum = m.sum + #m.keys
  end
end

function map.change(m)
  if random(2) == 1 or #m.keys == 0 then
    for _ = 1, random(50) do map.add(m) end
  else
    for _ = 1, random(#m.keys) do
      local key = table.remove(m.keys)
      m.sum = m.sum - m.items[key]
      m.items[key] = nil
    end
  end
end

function map.read(m)
  local sum, count = 0, 0
  for key, value in pairs(m.items) do
    assert(m.keys[value] == key, "a map lost a key")
    sum, count = sum + value, count + 1
  end
  assert(sum == m.sum and count == #m.keys, "a map lost a value")
  return sum
end

-- Trees and lists, to be walked by the collector.
local tree = {}

local function grow(depth)
  if depth == 0 then return { leaf = random(100) } end
  return { left = grow(depth - 1), right = random(4) > 1 and grow(depth - 1) or nil, depth = depth }
end

local function walk(node)
  if node.leaf then return node.leaf end
  return walk(node.left) + (node.right and walk(node.right) or 0) + node.depth
end

function tree.make() return grow(random(9)) end
function tree.read(t) return walk(t) end

function tree.change(t)
  local node = t
  while node.left and random(3) > 1 do node = node.left end
  if node.depth then node.right = grow(random(node.depth)) end
end

-- Weak tables: what is held elsewhere must stay, whatever the collector does.
local weak = {}

function weak.make()
  local modes = { "k", "v", "kv" }
  local w = { held = {}, loose = setmetatable({}, { __mode = modes[random(3)] }) }
  weak.change(w)
  return w
end

function weak.change(w)
  for _ = 1, random(40) do
    local it = { #w.held }
    w.held[#w.held + 1] = it
    w.loose[it] = it
    w.loose[{}] = it
    w.loose[it[1]] = it
    w.loose["s" .. it[1]] = { it }
  end
  if random(5) == 1 then w.held = {} end
  if random(10) == 1 then collectgarbage() end
end

function weak.read(w)
  for i, it in ipairs(w.held) do
    assert(w.loose[it] == it and (w.loose[i - 1] == nil or w.loose[i - 1][1] == i - 1), "a weak table lost what lives")
  end
  return #w.held
end

-- Metatables and finalisers.
local object = {}
local class = { __index = function(_, key) return #key end }
class.__newindex = function(o, key, value) rawset(o, key, value * 2) end
class.__call = function(o, x) return x + o.base end
class.__concat = function(a, b) return (type(a) == "table" and a.base or a) .. "+" .. (type(b) == "table" and b.base or b) end
class.__eq = function(a, b) return a.base == b.base end
class.__lt = function(a, b) return a.base < b.base end
class.__len = function(o) return o.base end
class.__unm = function(o) return setmetatable({ base = -o.base }, class) end

local function finalised(payload)
  local u = newproxy(true)
  local meta = getmetatable(u)
  shared.born()
  local alive = true
  meta.__index = payload
  meta.__gc = function(self)
    assert(alive, "finalised twice")
    alive = false
    -- A finaliser allocates, too, and may hold what was about to go.
    payload.last = { self, ("x"):rep(20 + payload.n) }
    shared.died()
  end
  return u
end

function object.make()
  return { o = setmetatable({ base = random(1000) }, class), proxies = { finalised({ n = 1 }) } }
end

function object.change(v)
  v.o.base = random(1000)
  v.o["new" .. random(30)] = random(100)
  v.proxies[#v.proxies + 1] = finalised({ n = #v.proxies + 1 })
  if #v.proxies > 30 then v.proxies = { finalised({ n = 1 }) } end
end

function object.read(v)
  local other = setmetatable({ base = 500 }, class)
  mix(v.o .. "x" .. other)
  mix(v.o == other)
  mix(v.o < other)
  for i, u in ipairs(v.proxies) do assert(u.n == i, "a proxy lost its payload") end
  return v.o(1) + (-v.o).base + v.o.unknown + (rawget(v.o, "new7") or 0)
end

return { array, map, tree, weak, object }
