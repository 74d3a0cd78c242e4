-- Kinds of values for fuzz.lua: strings, and buffers of LuaJIT's string.buffer.
local shared = ...
local random, size, mix = shared.random, shared.size, shared.mix
local has_buffer, buffer = pcall(require, "string.buffer")

-- A string that can be made again from its recipe.
local text = {}

local function build(recipe)
  local s = recipe.word:rep(recipe.times, recipe.separator)
  for _, change in ipairs(recipe.changes) do s = change(s) end
  return s
end

local function upper(s) return s:upper() end
local function reverse(s) return s:reverse() end
local function quote(s) return #s < 5000 and ("%q"):format(s) or s end
local function cut(s) return s:sub(2, -2) end
local function swap(s) return #s < 20000 and s:gsub("(%w)(%W)", "%2%1") or s end
local function double(s) return #s < 100000 and s .. s or s end
local function formatted(s) return ("%5d|%-30s|%g|%x"):format(#s, s:sub(1, 40), #s / 3, #s) .. s end
local changes = { upper, reverse, quote, cut, swap, double, formatted }

function text.make()
  local recipe = { word = "w" .. random(1000), times = size(), separator = random(2) == 1 and ", " or "", changes = {} }
  return { recipe = recipe, s = build(recipe) }
end

function text.change(t)
  local list = t.recipe.changes
  if #list > 6 then return text.make() end
  list[#list + 1] = changes[random(#changes)]
  t.s = list[#list](t.s)
end

-- The same recipe gives the same string: interned ones are one object.
function text.read(t)
  assert(({ [t.s] = true })[build(t.recipe)], "a string is not what it was made of")
  return t.s
end

-- Many short strings, all alive, and found again as keys.
local words = {}

function words.make()
  local prefix, set, n = "p" .. random(100) .. ":", {}, size() % 3000
  for i = 1, n do set[prefix .. i] = i end
  return { prefix = prefix, set = set, n = n }
end

function words.change(w)
  local more = random(100)
  for i = w.n + 1, w.n + more do w.set[w.prefix .. i] = i end
  w.n = w.n + more
end

function words.read(w)
  for i = 1, w.n do assert(w.set[w.prefix .. i] == i, "a word is gone") end
  return w.n
end

-- Pieces joined; huge ones now and then.
local pieces = {}

function pieces.make()
  local list = {}
  for i = 1, size() % 500 do list[i] = "piece" .. i end
  return { list = list }
end

function pieces.change(p)
  if random(40) == 1 then
    p.huge = ("0123456789abcdef"):rep(random(200000))
  else
    p.list[#p.list + 1] = ("%d:%s"):format(random(1e6), ("z"):rep(random(60)))
    p.huge = nil
  end
end

function pieces.read(p)
  local joined = table.concat(p.list, ";")
  local parts = 0
  for _ in (joined .. ";"):gmatch("[^;]+") do parts = parts + 1 end
  assert(parts == #p.list, "a piece is gone")
  if p.huge then
    assert(p.huge:find("0123456789abcdef", #p.huge - 15, true) == #p.huge - 15, "the end of a huge string is gone")
    mix(#p.huge)
  end
  -- Too long for any string: an error, before memory is taken.
  mix(select(2, pcall(string.rep, "x", 2 ^ 40)) == "resulting string too large")
  return joined
end

local coded = {}

function coded.make()
  local b = buffer.new(random(2) == 1 and size() or nil)
  return { b = b, fed = 0, taken = 0 }
end

function coded.change(c)
  local what = random(6)
  if what == 1 and #c.b > 0 then
    c.taken = c.taken + #c.b:get(random(#c.b))
  elseif what == 2 then
    local n = size()
    c.b:put(("%04d"):format(random(9999)):rep(n))
    c.fed = c.fed + n * 4
  elseif what == 3 then
    local asked = random(5000)
    -- How much more there is, the second result, is the buffer's capacity: put grows it otherwise when it is compiled.
    local pointer = c.b:reserve(asked)
    local n = math.min(asked, 100)
    require("ffi").fill(pointer, n, 66)
    c.b:commit(n)
    c.fed = c.fed + n
  elseif what == 4 then
    local n = math.min(random(10000), #c.b)
    c.b:skip(n)
    c.taken = c.taken + n
  elseif what == 5 then
    c.b:reset()
    c.taken = c.fed
  else
    c.b:putf("%d-%s", random(9) + 0, "formatted")
    c.fed = c.fed + 11
  end
end

function coded.read(c)
  assert(#c.b == c.fed - c.taken, "a buffer lost bytes")
  local data = { n = random(100), list = { 1, 2, { "deep", key = ("v"):rep(size() % 1000) } }, yes = true, pi = 3.25 }
  local back = buffer.decode(buffer.encode(data))
  assert(back.n == data.n and back.list[3].key == data.list[3].key and back.pi == 3.25)
  return c.b:tostring()
end

return has_buffer and { text, words, pieces, coded } or { text, words, pieces }
