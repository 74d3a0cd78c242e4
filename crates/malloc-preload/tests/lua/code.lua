-- Kinds of values for fuzz.lua: closures, coroutines, code made at run time, errors.
local shared = ...
local random, size, mix = shared.random, shared.size, shared.mix

-- Closures that share upvalues.
local closures = {}

function closures.make()
  local list = {}
  for i = 1, size() % 1000 + 1 do
    local n, log = i, {}
    list[i] = {
      add = function(x) n = n + x log[#log % 8 + 1] = x return n end,
      get = function() return n end,
      nest = function() return function() return function() n = n + 1 return n end end end,
    }
  end
  return list
end

function closures.change(list)
  local c = list[random(#list)]
  c.add(random(100))
  c.nest = c.nest and c.nest()
  if type(c.nest) ~= "function" then c.nest = nil end
  if random(8) == 1 then return closures.make() end
end

function closures.read(list)
  local sum = 0
  for _, c in ipairs(list) do sum = sum + c.get() end
  return sum
end

-- Coroutines that wait half-way, some with deep stacks, some inside pcall.
local routines = {}

local function body(first)
  local total, held = first, {}
  while true do
    local x = coroutine.yield(total)
    if x == "stop" then return total, #held end
    if x == "deep" then
      local function down(n) if n == 0 then return coroutine.yield(total) or 0 end return (down(n - 1)) + 1 end
      total = total + down(random(300))
    elseif x == "error" then
      local ok, why = pcall(function() coroutine.yield(total) error({ code = total }) end)
      assert(not ok and why.code == total)
    else
      total = total + x
      held[#held + 1] = { total, ("%d"):format(total) }
    end
  end
end

function routines.make()
  local list = {}
  for i = 1, size() % 300 + 1 do
    list[i] = coroutine.create(body)
    mix(select(2, assert(coroutine.resume(list[i], i))))
  end
  return list
end

function routines.change(list)
  for _ = 1, random(20) do
    local i = random(#list)
    local what = random(10)
    local ok, said = coroutine.resume(list[i], what == 1 and "deep" or what == 2 and "error" or what == 3 and "stop" or what)
    -- "deep" and "error" give back what they are resumed with, which may be a word: arithmetic on it is an error.
    if not ok then said = said:match("attempt.*") or "an error" end
    mix(type(said) == "string" and 1 or said)
    if coroutine.status(list[i]) == "dead" then
      list[i] = coroutine.create(body)
      coroutine.resume(list[i], i)
    end
  end
end

function routines.read(list)
  local waiting = 0
  for _, c in ipairs(list) do
    if coroutine.status(c) == "suspended" then waiting = waiting + 1 end
  end
  assert(waiting == #list)
  local pairs_of = coroutine.wrap(function() for i = 1, 20 do coroutine.yield(i, { i }) end end)
  local i, t = pairs_of()
  return waiting + i + t[1]
end

-- Source text made up at random, compiled, dumped, loaded again and called.
local source = {}

local function expression(depth)
  local n = depth == 0 and random(3) or random(9)
  if n == 1 then return tostring(random(1000)) end
  if n == 2 then return "a" end
  if n == 3 then return "b" end
  if n == 4 then return "(" .. expression(depth - 1) .. " + " .. expression(depth - 1) .. ")" end
  if n == 5 then return "(" .. expression(depth - 1) .. " * 3 % 10007)" end
  if n == 6 then return "#(" .. ("'s' .. %s"):format(expression(depth - 1)) .. ")" end
  if n == 7 then return "({ " .. expression(depth - 1) .. ", x = " .. expression(depth - 1) .. " })[1]" end
  if n == 8 then return "(function(b) return " .. expression(depth - 1) .. " end)(" .. expression(depth - 1) .. ")" end
  return "(function(...) local t = { ... } return #t + select('#', ...) end)(" .. expression(depth - 1) .. ", 2)"
end

local function chunk()
  local lines = { "local a, b = ..." }
  for i = 1, random(12) do
    local n = random(4)
    local e = expression(random(4) - 1)
    if n == 1 then lines[#lines + 1] = ("local v%d = %s a = (a + v%d) %% 65537"):format(i, e, i)
    elseif n == 2 then lines[#lines + 1] = ("for i = 1, %d do b = (b + i + %s) %% 65537 end"):format(random(90), e)
    elseif n == 3 then lines[#lines + 1] = ("if a %% 2 == 0 then b = %s else a = a + 1 end"):format(e)
    else lines[#lines + 1] = ("local t = {} for i = 1, %d do t[i] = { i, tostring(i) } end a = (a + #t + %s) %% 65537")
        :format(random(60), e) end
  end
  lines[#lines + 1] = "return a % 65537, b % 65537"
  return table.concat(lines, "\n")
end

function source.make()
  local made = chunk()
  return { f = assert(loadstring(made, "=made")), text = made }
end

function source.change(s)
  local what = random(4)
  if what == 1 then s.f = assert(loadstring(string.dump(s.f), "dumped"))
  elseif what == 2 then s.f = assert(loadstring(string.dump(s.f, true)))
  elseif what == 3 then mix(select(2, loadstring(s.text .. " return", "=wrong")) ~= nil)
  else return source.make() end
end

function source.read(s)
  local a, b = s.f(3, 5)
  local again_a, again_b = s.f(3, 5)
  assert(a == again_a and b == again_b)
  return a * 7 + b
end

-- Errors out of any depth.
local errors = {}

function errors.make() return { count = 0 } end

local function forever(n) return 1 + forever(n + 1) end
local function deep(n) if n == 0 then error("the bottom", 0) end return (deep(n - 1)) end

function errors.change(e)
  e.count = e.count + 1
  local what = random(5)
  local ok, why
  if what == 1 and random(4) == 1 then ok, why = pcall(forever, 1) why = why:match("stack overflow")
  elseif what == 2 then ok, why = pcall(deep, random(2000))
  elseif what == 3 then ok, why = xpcall(function() return nil + 1 end, function(m) return debug.traceback(m):match("attempt[^\n]*") end)
  elseif what == 4 then ok, why = pcall(error, { "a table", size() }) why = why[1] .. why[2]
  else ok, why = pcall(coroutine.wrap(function() error(("m"):rep(size()), 0) end)) end
  assert(not ok)
  mix(why)
end

function errors.read(e) return e.count end

-- Hot loops that allocate on their traces, some of it sunk by the compiler.
local hot = {}

function hot.make() return { n = random(3000) + 100 } end
function hot.change(h) h.n = random(3000) + 100 end

function hot.read(h)
  local sum, last, kept = 0, { 0 }, {}
  for i = 1, h.n do
    local pair = { i, i * 2 }
    local f = function() return pair[2] end
    if i % 97 == 0 then last = pair kept[#kept + 1] = f end
    local s = "k" .. i % 50
    sum = (sum + pair[1] + f() + #s) % 1000003
  end
  for _, f in ipairs(kept) do sum = sum + f() end
  return sum + last[1]
end

return { closures, routines, source, errors, hot }
